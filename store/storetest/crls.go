package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/translog"
)

func testCRLs(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"numbers": crlNumbersAreUnique, "revoked certificates": viewListsRevoked, "record": putCRL,
		"consistent view": viewIsConsistent, "changed certificates": viewListsChanges,
		"distribution points": distributionPointsAreKept, "record several": putCRLsTogether,
		"signed elsewhere": putForeignCRL,
	})
}

func (w *world) takeNumber(t *testing.T, issuer pki.IssuerID) *big.Int {
	t.Helper()
	n, err := w.CRLs.TakeNumber(context.Background(), issuer, w.now)
	must(t, err)
	return n
}

func crlNumbersAreUnique(t *testing.T, w *world) {
	ctx := context.Background()
	if n := w.takeNumber(t, issuerB); n.Sign() <= 0 {
		t.Errorf("the first number is %v", n)
	}
	var mu sync.Mutex
	var taken []*big.Int
	take := func() {
		for range 5 {
			n, err := w.CRLs.TakeNumber(ctx, issuerA, w.now)
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
		highest := w.takeNumber(t, issuerA)
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

func viewListsRevoked(t *testing.T, w *world) {
	ctx := context.Background()
	revoked, held, unheld, undelivered, expired := w.enrollNew(t), w.enrollNew(t), w.enrollNew(t), w.abandon(t), w.record(t, w.register(t).ID)
	elsewhere := w.record(t, revoked.Identity)
	elsewhere.Ref.Issuer = issuerB
	w.issue(t, elsewhere)
	expired.NotAfter = w.now.Add(30 * time.Minute)
	w.issue(t, expired)
	change := func(action revocation.Action, reason pki.Reason, ref pki.CertRef) {
		w.apply(t, revocation.Change{Action: action, Reason: reason, Certificate: ref})
	}
	change(revoke, pki.PrivilegeWithdrawn, revoked.Ref)
	change(hold, pki.CertificateHold, held.Ref)
	change(hold, pki.CertificateHold, unheld.Ref)
	change(unhold, 0, unheld.Ref)
	change(revoke, pki.Superseded, elsewhere.Ref)
	change(revoke, pki.Superseded, expired.Ref)

	want := []crl.Entry{
		{Serial: revoked.Ref.Serial, RevokedAt: w.now, Reason: pki.PrivilegeWithdrawn},
		{Serial: held.Ref.Serial, RevokedAt: w.now, Reason: pki.CertificateHold},
		{Serial: undelivered.Ref.Serial, RevokedAt: w.now, Reason: pki.Unspecified},
	}
	sortEntries(want)
	mustEqual(t, "the revoked certificates", w.revokedEntries(t, issuerA, expired.NotAfter.Add(time.Second)), want)
	if n := len(w.revokedEntries(t, issuerA, expired.NotAfter)); n != 4 {
		t.Errorf("%d certificates are listed in the last second of one certificate's validity, want 4", n)
	}
	mustEqual(t, "the revoked certificates of an unknown issuer", w.revokedEntries(t, issuerUnknown, w.now), nil)

	must(t, w.CRLs.View(ctx, issuerA, func(v crl.View) error {
		for _, err := range v.Entries(crl.Listing{NotExpiredAt: w.now}) { // the caller may stop early
			must(t, err)
			break
		}
		return nil
	}))
	errOwn := errors.New("error of the callback")
	if err := w.CRLs.View(ctx, issuerA, func(crl.View) error { return errOwn }); !errors.Is(err, errOwn) {
		t.Errorf("View returns %v, want the error of its callback", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	failed := false
	err := w.CRLs.View(canceled, issuerA, func(v crl.View) error {
		cancel()
		for _, err := range v.Entries(crl.Listing{NotExpiredAt: w.now}) {
			failed = failed || err != nil
		}
		return nil
	})
	if !failed && err == nil {
		t.Error("a view with a canceled context returned no error")
	}
}

func viewIsConsistent(t *testing.T, w *world) {
	ctx := context.Background()
	var want []crl.Entry
	for range 4 {
		r := w.enrollNew(t)
		w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
		want = append(want, crl.Entry{Serial: r.Ref.Serial, RevokedAt: w.now, Reason: pki.CertificateHold})
	}
	sortEntries(want)
	must(t, w.CRLs.View(ctx, issuerA, func(v crl.View) error {
		before := v.Position()
		mustEqual(t, "the revoked certificates", w.viewEntries(t, v, crl.Listing{NotExpiredAt: w.now}), want)
		for _, e := range want {
			w.apply(t, revocation.Change{Action: unhold, Certificate: pki.CertRef{Issuer: issuerA, Serial: e.Serial}})
		}
		w.abandon(t)
		mustEqual(t, "the revoked certificates in the open view", w.viewEntries(t, v, crl.Listing{NotExpiredAt: w.now}), want)
		mustEqual(t, "the position", v.Position(), before)
		changed, err := v.Changed(before)
		must(t, err)
		mustEqual(t, "the changed partitions in the open view", changed, nil)
		return nil
	}))
	if n := len(w.revokedEntries(t, issuerA, w.now)); n != 1 {
		t.Errorf("%d certificates are revoked at the end, want the undelivered one", n)
	}
}

// viewListsChanges checks the entries of delta CRLs, by partition.
func viewListsChanges(t *testing.T, w *world) {
	ctx := context.Background()
	in := func(partition uint16) ca.Record {
		r := w.record(t, w.register(t).ID)
		r.Partition = partition
		return w.issue(t, r)
	}
	change := func(action revocation.Action, reason pki.Reason, r ca.Record) {
		w.apply(t, revocation.Change{Action: action, Reason: reason, Certificate: r.Ref})
	}
	first, held, other, none := in(1), in(1), in(2), in(0)
	in(3) // this partition has no change
	change(revoke, pki.Superseded, first)
	change(hold, 0, held)
	var base uint64
	must(t, w.CRLs.View(ctx, issuerA, func(v crl.View) error {
		base = v.Position()
		mustEqual(t, "the entries of partition 1", len(w.viewEntries(t, v, crl.Listing{Partition: 1, NotExpiredAt: w.now})), 2)
		return nil
	}))
	w.now = w.now.Add(time.Minute)
	change(unhold, 0, held)
	change(revoke, pki.KeyCompromise, first)
	change(revoke, pki.Unspecified, other)
	change(revoke, pki.AffiliationChanged, none)
	abandoned := w.record(t, w.register(t).ID)
	abandoned.Partition = 5
	w.commitBatch(t, w.writeIntent(t, abandoned))
	for range 2 {
		must(t, w.CRLs.View(ctx, issuerA, func(v crl.View) error {
			changed, err := v.Changed(base)
			must(t, err)
			mustEqual(t, "the changed partitions", changed, []uint16{0, 1, 2, 5})
			want := []crl.Entry{
				{Serial: first.Ref.Serial, RevokedAt: w.now.Add(-time.Minute), Reason: pki.KeyCompromise}, {Serial: held.Ref.Serial, Removed: true},
			}
			sortEntries(want)
			l := crl.Listing{Partition: 1, NotExpiredAt: w.now, Delta: true, Since: base}
			mustEqual(t, "the changes in partition 1", w.viewEntries(t, v, l), want)
			mustEqual(t, "the entries of partition 1", len(w.viewEntries(t, v, crl.Listing{Partition: 1, NotExpiredAt: w.now})), 1)
			mustEqual(t, "the entries of partition 2", len(w.viewEntries(t, v, crl.Listing{Partition: 2, NotExpiredAt: w.now})), 1)
			mustEqual(t, "the entries of all partitions", len(w.viewEntries(t, v, crl.Listing{NotExpiredAt: w.now})), 4)
			l.Since = v.Position()
			mustEqual(t, "the changes after the view", w.viewEntries(t, v, l), nil)
			return nil
		}))
		w.reopen(t)
	}
}

func distributionPointsAreKept(t *testing.T, w *world) {
	ctx := context.Background()
	a := crl.Point{Issuer: issuerA, Partition: 1, URL: "http://pki.example/crl/a/1.crl", DeltaURL: "http://pki.example/crl/a/1-delta.crl"}
	b := crl.Point{Issuer: issuerA, Partition: 1, URL: "http://old.example/crl/a/1.crl"}
	c := crl.Point{Issuer: issuerB, Partition: 4096, URL: "http://pki.example/crl/b/4096.crl"}
	for _, points := range [][]crl.Point{{b}, {a, c}, {c, b, a}, nil} {
		must(t, w.CRLs.PutPoints(ctx, points, w.now))
	}
	w.reopen(t)
	have, err := w.CRLs.Points(ctx)
	must(t, err)
	mustEqual(t, "the distribution points on record", have, []crl.Point{b, a, c})
}

func sortEntries(entries []crl.Entry) {
	slices.SortFunc(entries, func(a, b crl.Entry) int { return bytes.Compare(a.Serial.Bytes(), b.Serial.Bytes()) })
}

// viewEntries reads the entries of a view twice, compares them, and returns them sorted by serial number.
func (w *world) viewEntries(t *testing.T, v crl.View, l crl.Listing) []crl.Entry {
	t.Helper()
	var passes [2][]crl.Entry
	for n := range passes {
		for e, err := range v.Entries(l) {
			must(t, err)
			passes[n] = append(passes[n], e)
		}
	}
	mustEqual(t, "the second pass", passes[1], passes[0])
	sortEntries(passes[0])
	return passes[0]
}

func (w *world) revokedEntries(t *testing.T, issuer pki.IssuerID, at time.Time) (all []crl.Entry) {
	t.Helper()
	must(t, w.CRLs.View(context.Background(), issuer, func(v crl.View) error {
		all = w.viewEntries(t, v, crl.Listing{NotExpiredAt: at})
		return nil
	}))
	return all
}

func putCRL(t *testing.T, w *world) {
	ctx := context.Background()
	none, err := w.CRLs.CRLs(ctx)
	must(t, err)
	mustEqual(t, "the CRLs of a new store", len(none), 0)

	at := w.now.Add(time.Minute)
	numbered := func(issuer pki.IssuerID, n *big.Int, der string) crl.CRL {
		return crl.CRL{
			Issuer: issuer, Number: n, ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour), DER: []byte(der),
			SHA256: sha256.Sum256([]byte(der)), Size: int64(len(der)), Entries: 5, Position: 9,
		}
	}
	first := numbered(issuerA, w.takeNumber(t, issuerA), "first")
	must(t, w.CRLs.PutCRLs(ctx, []crl.CRL{first}, operator, at))
	if e := w.lastEntry(t); e.Action != translog.CRLPublished || e.Actor != operator || !e.Time.Equal(at) || e.Facts()["number"] != first.Number.String() {
		t.Errorf("log entry %+v", e)
	}
	huge := new(big.Int).Lsh(big.NewInt(1), 150)
	root := numbered(issuerB, huge, "the root's") // another machine takes its numbers
	must(t, w.CRLs.PutCRLs(ctx, []crl.CRL{root}, operator, at))
	mustRefuse(t, w.CRLs.PutCRLs(ctx, []crl.CRL{numbered(issuerA, first.Number, "same number")}, operator, at), pki.RuleCRL)
	mustRefuse(t, w.CRLs.PutCRLs(ctx, []crl.CRL{numbered(issuerB, big.NewInt(7), "older")}, operator, at), pki.RuleCRL)
	for _, n := range []*big.Int{nil, big.NewInt(-1), new(big.Int).Lsh(big.NewInt(1), 159)} {
		mustRefuse(t, w.CRLs.PutCRLs(ctx, []crl.CRL{numbered(issuerB, n, "no number")}, operator, at), pki.RuleCRL)
	}
	w.mustHaveCRLs(t, first, root)
	second := numbered(issuerA, w.takeNumber(t, issuerA), "second")
	must(t, w.CRLs.PutCRLs(ctx, []crl.CRL{second}, operator, at))
	w.reopen(t)
	w.mustHaveCRLs(t, second, root)
	if n := w.takeNumber(t, issuerB); n.Cmp(huge) <= 0 {
		t.Errorf("number %v was taken, want one above that of the CRL on record", n)
	}
}

// putCRLsTogether records several CRLs in one call. If one is refused, none may be recorded.
func putCRLsTogether(t *testing.T, w *world) {
	ctx := context.Background()
	n := w.takeNumber(t, issuerA)
	base := crl.Base{Number: n, ThisUpdate: w.now, Position: 3}
	full := crl.CRL{Issuer: issuerA, Number: n, ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour), Position: 3, Size: 1 << 40, Entries: 1 << 33}
	part, delta := full, full
	part.Partition, part.Base = 65535, base
	delta.Partition, delta.Delta, delta.Base = 65535, true, base
	round := []crl.CRL{full, part, delta}
	must(t, w.CRLs.PutCRLs(ctx, round, operator, w.now))
	entries := w.entries(t)
	if e := entries[len(entries)-1]; e.Facts()["partition"] != "65535" || e.Facts()["base"] != n.String() || e.Facts()["number"] != n.String() {
		t.Errorf("log entry %+v", e)
	}
	w.mustHaveCRLs(t, round...)
	next := w.takeNumber(t, issuerA)
	full.Number, delta.Number = next, n
	mustRefuse(t, w.CRLs.PutCRLs(ctx, []crl.CRL{full, delta}, operator, w.now), pki.RuleCRL)
	full.Position--
	mustRefuse(t, w.CRLs.PutCRLs(ctx, []crl.CRL{full}, operator, w.now), pki.RuleCRL) // it lacks a change that the recorded one has
	w.reopen(t)
	w.mustHaveCRLs(t, round...)
}

// putForeignCRL replaces a CRL that was signed here by one that was signed elsewhere, which includes no log entries, after the
// key of the CA was moved. The replay of the log must do the same, although the log does not have the bytes.
func putForeignCRL(t *testing.T, w *world) {
	own := crl.CRL{Issuer: issuerA, Number: w.takeNumber(t, issuerA), ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour), Position: 1}
	must(t, w.CRLs.PutCRLs(context.Background(), []crl.CRL{own}, operator, w.now))
	foreign := own
	foreign.Number, foreign.Position, foreign.DER = w.takeNumber(t, issuerA), 0, []byte("signed elsewhere")
	must(t, w.CRLs.PutCRLs(context.Background(), []crl.CRL{foreign}, operator, w.now))
	w.mustHaveCRLs(t, foreign)
}

func (w *world) mustHaveCRLs(t *testing.T, want ...crl.CRL) {
	t.Helper()
	have, err := w.CRLs.CRLs(context.Background())
	must(t, err)
	mustEqual(t, "the number of CRLs", len(have), len(want))
	for _, c := range have {
		i := slices.IndexFunc(want, func(o crl.CRL) bool { return o.Scope() == c.Scope() })
		if i < 0 {
			t.Fatalf("CRL %v of %s is on record", c.Number, c.Scope().Path())
		}
		if diff := cmp.Diff(want[i], c, append(equateValues, cmp.Comparer(sameNumber))...); diff != "" {
			t.Errorf("the record of %s differs (- want, + got):\n%s", c.Scope().Path(), diff)
		}
	}
}

func sameNumber(a, b *big.Int) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Cmp(b) == 0
}
