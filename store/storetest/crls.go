package storetest

import (
	"bytes"
	"context"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testCRLs(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"a number is taken once": numbersAreTakenOnce, "what is revoked": whatIsRevoked, "put": putCRL,
		"what is revoked is of one moment": revokedOfOneMoment,
	})
}

func (w *world) number(t *testing.T, issuer pki.IssuerID) *big.Int {
	t.Helper()
	n, err := w.Revocation.TakeNumber(context.Background(), issuer)
	must(t, err)
	return n
}

func numbersAreTakenOnce(t *testing.T, w *world) {
	ctx := context.Background()
	if n := w.number(t, issuerB); n.Sign() <= 0 {
		t.Errorf("the first number is %v", n)
	}
	var mu sync.Mutex
	var taken []*big.Int
	take := func() {
		for range 5 {
			n, err := w.Revocation.TakeNumber(ctx, issuerA)
			mu.Lock()
			if err != nil {
				t.Errorf("take a number: %v", err)
			} else {
				taken = append(taken, n)
			}
			mu.Unlock()
		}
	}
	for range 3 {
		highest := w.number(t, issuerA)
		taken = append(taken, highest)
		before := len(taken)
		together(take, take, take)
		for _, n := range taken[before:] {
			if n.Cmp(highest) <= 0 {
				t.Errorf("number %v was taken after %v", n, highest)
			}
		}
		w.reopen(t)
	}
	slices.SortFunc(taken, (*big.Int).Cmp)
	for i := range taken[1:] {
		if taken[i].Cmp(taken[i+1]) == 0 {
			t.Errorf("number %v was taken twice", taken[i])
		}
	}
}

func whatIsRevoked(t *testing.T, w *world) {
	ctx := context.Background()
	revoked, held, released, unreleased, expired := w.issued(t), w.issued(t), w.issued(t), w.abandon(t), w.record(t, w.identity(t).ID)
	elsewhere := w.record(t, revoked.Identity)
	elsewhere.Ref.Issuer = issuerB
	w.issue(t, elsewhere)
	expired.NotAfter = w.now.Add(30 * time.Minute)
	w.issue(t, expired)
	order := func(action revocation.Action, reason pki.Reason, ref pki.CertRef) {
		w.apply(t, revocation.Order{Action: action, Reason: reason, Certificate: ref})
	}
	order(revoke, pki.PrivilegeWithdrawn, revoked.Ref)
	order(hold, pki.CertificateHold, held.Ref)
	order(hold, pki.CertificateHold, released.Ref)
	order(release, 0, released.Ref)
	order(revoke, pki.Superseded, elsewhere.Ref)
	order(revoke, pki.Superseded, expired.Ref)

	want := []revocation.Entry{
		{Serial: revoked.Ref.Serial, RevokedAt: w.now, Reason: pki.PrivilegeWithdrawn},
		{Serial: held.Ref.Serial, RevokedAt: w.now, Reason: pki.CertificateHold},
		{Serial: unreleased.Ref.Serial, RevokedAt: w.now, Reason: pki.Unspecified},
	}
	slices.SortFunc(want, func(a, b revocation.Entry) int { return bytes.Compare(a.Serial.Bytes(), b.Serial.Bytes()) })
	mustEqual(t, "what is revoked", w.revoked(t, issuerA, expired.NotAfter.Add(time.Second)), want)
	if n := len(w.revoked(t, issuerA, expired.NotAfter)); n != 4 {
		t.Errorf("%d are revoked in the last second of one's life, want 4", n)
	}
	mustEqual(t, "what an unknown issuer has revoked", w.revoked(t, issuerNobody, w.now), nil)

	for _, err := range w.Revocation.Revoked(ctx, issuerA, w.now) { // a reader may stop
		must(t, err)
		break
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	failed := false
	for _, err := range w.Revocation.Revoked(gone, issuerA, w.now) {
		failed = failed || err != nil
	}
	if !failed {
		t.Error("a read that could not be made looks like one of nothing")
	}
}

func revokedOfOneMoment(t *testing.T, w *world) {
	var want, got []pki.Serial
	for range 4 {
		r := w.issued(t)
		w.apply(t, revocation.Order{Action: hold, Certificate: r.Ref})
		want = append(want, r.Ref.Serial)
	}
	slices.SortFunc(want, func(a, b pki.Serial) int { return bytes.Compare(a.Bytes(), b.Bytes()) })
	for e, err := range w.Revocation.Revoked(context.Background(), issuerA, w.now) {
		must(t, err)
		if len(got) == 0 {
			for _, serial := range want {
				w.apply(t, revocation.Order{Action: release, Certificate: pki.CertRef{Issuer: issuerA, Serial: serial}})
			}
			w.abandon(t)
		}
		got = append(got, e.Serial)
	}
	mustEqual(t, "what was revoked when the read began", got, want)
}

func (w *world) revoked(t *testing.T, issuer pki.IssuerID, at time.Time) []revocation.Entry {
	t.Helper()
	var all []revocation.Entry
	for e, err := range w.Revocation.Revoked(context.Background(), issuer, at) {
		must(t, err)
		all = append(all, e)
	}
	return all
}

func putCRL(t *testing.T, w *world) {
	ctx := context.Background()
	none, err := w.Revocation.CRLs(ctx)
	must(t, err)
	mustEqual(t, "the CRLs of a new store", len(none), 0)

	at := w.now.Add(time.Minute)
	crl := func(issuer pki.IssuerID, n *big.Int, der string) revocation.CRL {
		return revocation.CRL{Issuer: issuer, Number: n, ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour), DER: []byte(der)}
	}
	first := crl(issuerA, w.number(t, issuerA), "first")
	must(t, w.Revocation.PutCRL(ctx, first, operator, at))
	if e := w.lastEntry(t); e.Action != translog.CRLPublished || e.Actor != operator || !e.Time.Equal(at) || e.Facts["number"] != first.Number.String() {
		t.Errorf("log entry %+v", e)
	}
	huge := new(big.Int).Lsh(big.NewInt(1), 150)
	root := crl(issuerB, huge, "the root's") // whose numbers another machine takes
	must(t, w.Revocation.PutCRL(ctx, root, operator, at))
	mustRefuse(t, w.Revocation.PutCRL(ctx, crl(issuerA, first.Number, "same number"), operator, at), pki.RuleCRL)
	mustRefuse(t, w.Revocation.PutCRL(ctx, crl(issuerB, big.NewInt(7), "older"), operator, at), pki.RuleCRL)
	for _, n := range []*big.Int{nil, big.NewInt(-1), new(big.Int).Lsh(big.NewInt(1), 159)} {
		mustRefuse(t, w.Revocation.PutCRL(ctx, crl(issuerB, n, "no number"), operator, at), pki.RuleCRL)
	}
	w.mustPublish(t, first, root)
	second := crl(issuerA, w.number(t, issuerA), "second")
	must(t, w.Revocation.PutCRL(ctx, second, operator, at))
	w.reopen(t)
	w.mustPublish(t, second, root)
	if n := w.number(t, issuerB); n.Cmp(huge) <= 0 {
		t.Errorf("number %v was taken below the CRL on record", n)
	}
}

func (w *world) mustPublish(t *testing.T, want ...revocation.CRL) {
	t.Helper()
	have, err := w.Revocation.CRLs(context.Background())
	must(t, err)
	mustEqual(t, "the number of CRLs", len(have), len(want))
	for _, c := range have {
		i := slices.IndexFunc(want, func(o revocation.CRL) bool { return o.Issuer == c.Issuer })
		if i < 0 || c.Number.Cmp(want[i].Number) != 0 || string(c.DER) != string(want[i].DER) ||
			!c.ThisUpdate.Equal(want[i].ThisUpdate) || !c.NextUpdate.Equal(want[i].NextUpdate) {
			t.Errorf("CRL %v %q of %s is on record", c.Number, c.DER, c.Issuer.Short())
		}
	}
}
