package storetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

func testCertificates(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"find": findCertificate, "pages": pageCertificates, "how a request stands": standing, "check a key": checkKeys,
	})
}

func findCertificate(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.issued(t)
	want := w.certificate(t, r.Ref)
	mustEqual(t, "the time of issue", want.IssuedAt, r.IssuedAt)
	abandoned := w.abandon(t)
	mustEqual(t, "the time of issue of one that was never delivered", w.certificate(t, abandoned.Ref).IssuedAt, abandoned.IssuedAt)
	bySerial, err := w.RA.CertificateBySerial(ctx, r.Ref.Serial)
	must(t, err)
	mustEqual(t, "the certificate by its serial number", bySerial, want)
	_, err = w.RA.Certificate(ctx, pki.CertRef{Issuer: issuerA, Serial: w.serial(t)})
	mustMiss(t, err)
	_, err = w.RA.CertificateBySerial(ctx, w.serial(t))
	mustMiss(t, err)
}

// standing is what a request for a certificate rests on.
func standing(t *testing.T, w *world) {
	r, other := w.issued(t), w.issued(t)
	want := ra.IssuanceState{Identity: w.stateOf(t, r.Identity), Prior: &ra.PriorIssuance{
		Certificate: ca.Certificate{Ref: r.Ref, DER: r.DER, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter}, Key: r.KeyHash,
	}}
	mustEqual(t, "a request that was answered", w.standing(t, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash}), want)
	want.Prior = nil
	mustEqual(t, "a new request", w.standing(t, ra.IssuanceQuery{Identity: r.Identity, Request: w.request(t), Key: w.key()}), want)
	if st := w.standing(t, ra.IssuanceQuery{Identity: other.Identity, Request: r.RequestID, Key: other.KeyHash}); st.Prior != nil {
		t.Errorf("the request of %s is answered with the certificate of %s", other.Identity, r.Identity)
	}
	renewal := ra.IssuanceQuery{Identity: r.Identity, Predecessor: r.Ref, Request: w.request(t), Key: r.KeyHash}
	want.Predecessor = ra.Predecessor{Status: w.certificate(t, r.Ref).Status, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter}
	mustEqual(t, "a renewal", w.standing(t, renewal), want)

	next := w.record(t, r.Identity)
	next.Guard.Predecessor = r.Ref
	w.issue(t, next)
	w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref, Reason: pki.CertificateHold})
	want.Predecessor = ra.Predecessor{Status: w.certificate(t, r.Ref).Status, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter, Successor: next.KeyHash}
	mustEqual(t, "a renewal of what is on hold, and was renewed", w.standing(t, renewal), want)

	for name, q := range map[string]ra.IssuanceQuery{
		"a certificate of another": {Identity: other.Identity, Predecessor: r.Ref, Request: w.request(t), Key: w.key()},
		"an unknown certificate": {
			Identity: r.Identity, Predecessor: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}, Request: w.request(t), Key: w.key(),
		},
		"another issuer's": {Identity: r.Identity, Predecessor: pki.CertRef{Issuer: issuerB, Serial: r.Ref.Serial}, Request: w.request(t), Key: w.key()},
		"unreleased":       {Identity: r.Identity, Predecessor: w.abandon(t).Ref, Request: w.request(t), Key: w.key()},
	} {
		_, err := w.RA.IssuanceState(context.Background(), q)
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleRenewalUnknown {
			t.Errorf("%s to renew: %v", name, err)
		}
	}
	_, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: w.newIdentity(t).ID, Request: w.request(t), Key: w.key()})
	mustRefuse(t, err, pki.RuleIdentity)
}

func (w *world) standing(t *testing.T, q ra.IssuanceQuery) ra.IssuanceState {
	t.Helper()
	st, err := w.RA.IssuanceState(context.Background(), q)
	must(t, err)
	return st
}

// checkKey returns what is against a key, for an identity.
func (w *world) checkKey(t *testing.T, key pki.KeyHash, id pki.SPIFFEID) error {
	t.Helper()
	if refusal := w.standing(t, ra.IssuanceQuery{Identity: id, Request: w.request(t), Key: key}).KeyRefusal; refusal != nil {
		return refusal
	}
	return nil
}

func pageCertificates(t *testing.T, w *world) {
	one, two := w.identity(t).ID, w.identity(t).ID
	var all, ofOne []pki.CertRef
	for i := range 9 {
		id := []pki.SPIFFEID{one, two}[i%2]
		w.now = w.now.Add(time.Millisecond)
		r := w.issue(t, w.record(t, id))
		all = append(all, r.Ref)
		if id == one {
			ofOne = append(ofOne, r.Ref)
		}
	}
	w.now = w.now.Add(time.Millisecond)
	unreleased := w.record(t, one)
	w.commitBatch(t, w.writeIntent(t, unreleased))
	all = append(all, unreleased.Ref)
	slices.Reverse(all)
	slices.Reverse(ofOne)
	for _, limit := range []int{1, 2, 3, len(ofOne), len(all), 100} {
		mustEqual(t, "all certificates", refs(w.list(t, ra.CertificateFilter{}, limit)), all)
		mustEqual(t, "one identity's certificates", refs(w.list(t, ofIdentity(one), limit)), ofOne)
	}
	_, _, err := w.RA.Certificates(context.Background(), ofIdentity(w.newIdentity(t).ID), ra.CertificatePlace{}, 10)
	mustMiss(t, err)

	// The second page begins where the first one ended, although another certificate was issued meanwhile.
	first, next, err := w.RA.Certificates(context.Background(), ofIdentity(one), ra.CertificatePlace{}, 2)
	must(t, err)
	w.issue(t, w.record(t, one))
	second, _, err := w.RA.Certificates(context.Background(), ofIdentity(one), next, 2)
	must(t, err)
	mustEqual(t, "two pages", refs(append(first, second...)), ofOne[:4])
}

func ofIdentity(id pki.SPIFFEID) ra.CertificateFilter {
	return ra.CertificateFilter{Selection: pki.Selection{Identity: id}}
}

func refs(page []ra.Certificate) []pki.CertRef {
	var list []pki.CertRef
	for _, c := range page {
		list = append(list, c.Ref)
	}
	return list
}

// list returns all certificates that a filter matches, read in pages.
func (w *world) list(t rapid.TB, f ra.CertificateFilter, limit int) []ra.Certificate {
	t.Helper()
	var list []ra.Certificate
	for after := (ra.CertificatePlace{}); ; {
		page, next, err := w.RA.Certificates(context.Background(), f, after, limit)
		must(t, err)
		if len(page) > limit {
			t.Fatalf("a page of %d, longer than %d", len(page), limit)
		}
		if list = append(list, page...); next.IsZero() {
			return list
		}
		after = next
	}
}

// checkKeys has to say what the guard would.
func checkKeys(t *testing.T, w *world) {
	for _, c := range keyGuards {
		t.Run(c.name, func(t *testing.T) {
			r := c.make(t, w)
			err := w.checkKey(t, r.KeyHash, r.Identity)
			if c.want == "" {
				must(t, err)
				return
			}
			mustRefuse(t, err, c.want)
		})
	}
	stranger := w.identity(t).ID
	mustRefuse(t, w.checkKey(t, w.issued(t).KeyHash, stranger), pki.RuleKeyInUse)
	must(t, w.checkKey(t, w.key(), stranger))
	unused := w.record(t, w.identity(t).ID)
	w.writeIntent(t, unused)
	must(t, w.checkKey(t, unused.KeyHash, stranger)) // announced, and not issued
}
