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
		"find": findCertificate, "pages": pageCertificates, "issuance state": testIssuanceState, "key refusals": keyRefusalsMatchGuards,
	})
}

func findCertificate(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.enrollNew(t)
	want := w.readCertificate(t, r.Ref)
	mustEqual(t, "the time of issue", want.IssuedAt, r.IssuedAt)
	abandoned := w.abandon(t)
	mustEqual(t, "the time of issue of an undelivered certificate", w.readCertificate(t, abandoned.Ref).IssuedAt, abandoned.IssuedAt)
	bySerial, err := w.RA.CertificateBySerial(ctx, r.Ref.Serial)
	must(t, err)
	mustEqual(t, "the certificate by its serial number", bySerial, want)
	_, err = w.RA.Certificate(ctx, pki.CertRef{Issuer: issuerA, Serial: w.serial(t)})
	mustNotFind(t, err)
	_, err = w.RA.CertificateBySerial(ctx, w.serial(t))
	mustNotFind(t, err)
}

// testIssuanceState reads the state for new, repeated and renewing requests.
func testIssuanceState(t *testing.T, w *world) {
	r, other := w.enrollNew(t), w.enrollNew(t)
	want := ra.IssuanceState{Identity: w.readIdentity(t, r.Identity), Prior: &ra.PriorIssuance{
		Certificate: ca.Certificate{Ref: r.Ref, DER: r.DER, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter}, Key: r.KeyHash,
	}}
	mustEqual(t, "a repeated request", w.issuanceState(t, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash}), want)
	want.Prior = nil
	mustEqual(t, "a new request", w.issuanceState(t, ra.IssuanceQuery{Identity: r.Identity, Request: w.requestID(t), Key: w.key()}), want)
	if st := w.issuanceState(t, ra.IssuanceQuery{Identity: other.Identity, Request: r.RequestID, Key: other.KeyHash}); st.Prior != nil {
		t.Errorf("a request of %s returns the certificate of %s", other.Identity, r.Identity)
	}
	renewal := ra.IssuanceQuery{Identity: r.Identity, Predecessor: r.Ref, Request: w.requestID(t), Key: r.KeyHash}
	want.Predecessor = ra.Predecessor{
		Status: w.readCertificate(t, r.Ref).Status, Profile: r.Profile, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter, SameKey: true,
	}
	mustEqual(t, "a renewal", w.issuanceState(t, renewal), want)

	next := w.record(t, r.Identity)
	next.Guard.Predecessor = r.Ref
	w.issue(t, next)
	w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref, Reason: pki.CertificateHold})
	want.Predecessor = ra.Predecessor{
		Status: w.readCertificate(t, r.Ref).Status, Profile: r.Profile, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter, Successor: next.KeyHash, SameKey: true,
	}
	mustEqual(t, "a second renewal of a certificate on hold", w.issuanceState(t, renewal), want)

	for name, q := range map[string]ra.IssuanceQuery{
		"a certificate of another identity": {Identity: other.Identity, Predecessor: r.Ref, Request: w.requestID(t), Key: w.key()},
		"an unknown certificate": {
			Identity: r.Identity, Predecessor: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}, Request: w.requestID(t), Key: w.key(),
		},
		"the serial number under another issuer": {Identity: r.Identity, Predecessor: pki.CertRef{Issuer: issuerB, Serial: r.Ref.Serial}, Request: w.requestID(t), Key: w.key()},
		"an undelivered certificate":             {Identity: r.Identity, Predecessor: w.abandon(t).Ref, Request: w.requestID(t), Key: w.key()},
	} {
		_, err := w.RA.IssuanceState(context.Background(), q)
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleRenewalUnknown {
			t.Errorf("renewing %s: %v, want a refusal by renewal.certificate_unknown", name, err)
		}
	}
	_, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: w.newIdentity(t).ID, Request: w.requestID(t), Key: w.key()})
	mustRefuse(t, err, pki.RuleIdentity)
}

func (w *world) issuanceState(t *testing.T, q ra.IssuanceQuery) ra.IssuanceState {
	t.Helper()
	st, err := w.RA.IssuanceState(context.Background(), q)
	must(t, err)
	return st
}

// keyRefusal returns the refusal of a key for an identity, or nil.
func (w *world) keyRefusal(t *testing.T, key pki.KeyHash, id pki.SPIFFEID) error {
	t.Helper()
	if refusal := w.issuanceState(t, ra.IssuanceQuery{Identity: id, Request: w.requestID(t), Key: key}).KeyRefusal; refusal != nil {
		return refusal
	}
	return nil
}

func pageCertificates(t *testing.T, w *world) {
	one, two := w.register(t).ID, w.register(t).ID
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
	undelivered := w.record(t, one)
	w.commitBatch(t, w.writeIntent(t, undelivered))
	all = append(all, undelivered.Ref)
	slices.Reverse(all)
	slices.Reverse(ofOne)
	for _, limit := range []int{1, 2, 3, len(ofOne), len(all), 100} {
		mustEqual(t, "all certificates", refs(w.list(t, ra.CertificateFilter{}, limit)), all)
		mustEqual(t, "the certificates of one identity", refs(w.list(t, filterByIdentity(one), limit)), ofOne)
	}
	_, _, err := w.RA.Certificates(context.Background(), filterByIdentity(w.newIdentity(t).ID), ra.CertificatePosition{}, 10)
	mustNotFind(t, err)

	// A certificate that is issued between two reads must not shift the second page.
	first, next, err := w.RA.Certificates(context.Background(), filterByIdentity(one), ra.CertificatePosition{}, 2)
	must(t, err)
	w.issue(t, w.record(t, one))
	second, _, err := w.RA.Certificates(context.Background(), filterByIdentity(one), next, 2)
	must(t, err)
	mustEqual(t, "two pages", refs(append(first, second...)), ofOne[:4])
}

func filterByIdentity(id pki.SPIFFEID) ra.CertificateFilter {
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
	for after := (ra.CertificatePosition{}); ; {
		page, next, err := w.RA.Certificates(context.Background(), f, after, limit)
		must(t, err)
		if len(page) > limit {
			t.Fatalf("a page has %d certificates, want at most %d", len(page), limit)
		}
		if list = append(list, page...); next.IsZero() {
			return list
		}
		after = next
	}
}

// keyRefusalsMatchGuards checks that KeyRefusal predicts the result of the key guard.
func keyRefusalsMatchGuards(t *testing.T, w *world) {
	for _, c := range keyGuards {
		t.Run(c.name, func(t *testing.T) {
			r := c.make(t, w)
			err := w.keyRefusal(t, r.KeyHash, r.Identity)
			if c.want == "" {
				must(t, err)
				return
			}
			mustRefuse(t, err, c.want)
		})
	}
	stranger := w.register(t).ID
	mustRefuse(t, w.keyRefusal(t, w.enrollNew(t).KeyHash, stranger), pki.RuleKeyInUse)
	must(t, w.keyRefusal(t, w.key(), stranger))
	unused := w.record(t, w.register(t).ID)
	w.writeIntent(t, unused)
	must(t, w.keyRefusal(t, unused.KeyHash, stranger)) // it has an intent, but no certificate
}
