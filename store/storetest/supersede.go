package storetest

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// superseding returns the record of a renewal that revokes the predecessor.
func (w *world) superseding(t *testing.T, predecessor ca.Record, key pki.KeyHash) ca.Record {
	t.Helper()
	r := recordWithKey(t, w, predecessor.Identity, key)
	r.Guard.Predecessor, r.Guard.Supersedes = predecessor.Ref, true
	return r
}

// recordSupersedes commits a renewal that revokes its predecessor. Status, successor, log entry and result must agree.
func recordSupersedes(t *testing.T, w *world) {
	old := w.enrollNew(t)
	w.apply(t, revocation.Change{Action: revocation.Hold, Reason: pki.CertificateHold, Certificate: old.Ref})
	w.apply(t, revocation.Change{Action: revocation.Unhold, Certificate: old.Ref}) // the version is now 3
	w.now = w.now.Add(time.Minute + 300*time.Millisecond)
	r := w.superseding(t, old, w.key())
	want := pki.StatusChange{Ref: old.Ref, NotAfter: old.NotAfter, Status: pki.Status{
		State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now.Truncate(time.Second), Version: 4,
	}}
	mustEqual(t, "the result", w.results(t, w.writeIntent(t, r), r), ca.Results{{Superseded: want}})
	check := func() {
		t.Helper()
		have := w.readCertificate(t, old.Ref)
		mustEqual(t, "the predecessor's status", have.Status, want.Status)
		mustEqual(t, "the predecessor's successor", have.Successor, r.KeyHash)
		st := w.issuanceState(t, ra.IssuanceQuery{Identity: r.Identity, Predecessor: old.Ref, Request: w.requestID(t), Key: w.key()})
		mustEqual(t, "the predecessor in the issuance state", st.Predecessor, ra.Predecessor{Status: want.Status, Profile: old.Profile, IssuedAt: old.IssuedAt, NotAfter: old.NotAfter, Successor: r.KeyHash, Superseded: true})
		mustEqual(t, "the certificate's status", w.readCertificate(t, r.Ref).Status, pki.Status{State: pki.Good, Version: 1})
	}
	check()
	fingerprint := sha256.Sum256(r.DER)
	e := w.lastEntry(t)
	mustEqual(t, "the action", e.Action, translog.CertificateIssued)
	mustEqual(t, "the changes in the log", e.Changes, []pki.StatusChange{
		{Ref: r.Ref, NotAfter: r.NotAfter, Status: pki.Status{State: pki.Good, Version: 1}, Fingerprint: fingerprint[:]}, want,
	})
	w.reopen(t)
	check()
}

// supersededOnce checks that a superseded certificate cannot be renewed, and that a refused renewal supersedes nothing.
func supersededOnce(t *testing.T, w *world) {
	old := w.enrollNew(t)
	refused := w.superseding(t, old, w.key())
	refused.Guard.Identity, refused.Guard.Revision = old.Identity, 99
	mustRefuse(t, w.commit(t, refused), pki.RuleIdentityStale)
	if c := w.readCertificate(t, old.Ref); c.Status.State != pki.Good {
		t.Errorf("after a refused renewal the predecessor is %v", c.Status.State)
	}

	first := w.superseding(t, old, w.key())
	same, another := w.superseding(t, old, first.KeyHash), w.superseding(t, old, w.key())
	refusals := w.commitBatch(t, w.writeIntent(t, first, same, another), first, same, another) // in one transaction
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleRevoked)
	mustRefuse(t, refusals[2], pki.RuleRenewalKeyConflict)
	mustRefuse(t, w.commit(t, w.superseding(t, old, first.KeyHash)), pki.RuleRevoked)
	mustRefuse(t, w.commit(t, w.superseding(t, old, w.key())), pki.RuleRenewalKeyConflict)
	if c := w.readCertificate(t, old.Ref); c.Status.Version != 2 {
		t.Errorf("after one renewal and four refused ones the predecessor has version %d, want 2", c.Status.Version)
	}

	// A certificate that was renewed without a revocation is revoked by its next renewal with the same key.
	earlier := w.enrollNew(t)
	next := w.renew(t, earlier, w.key())
	r := w.superseding(t, earlier, next.KeyHash)
	r.Guard.Renewed = true
	w.issue(t, r)
	if c := w.readCertificate(t, earlier.Ref); c.Status.State != pki.Revoked || c.Successor != next.KeyHash {
		t.Errorf("the predecessor of both renewals is %+v", c)
	}
	w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: earlier.Ref})
	if c := w.readCertificate(t, earlier.Ref); c.Status.Reason != pki.KeyCompromise {
		t.Errorf("after a later compromise the reason is %v", c.Status.Reason)
	}
}

// priorSaysWhetherItSuperseded checks that PriorIssuance.Supersedes is set only for the request that superseded the
// predecessor of the query.
func priorSaysWhetherItSuperseded(t *testing.T, w *world) {
	supersedes := func(old pki.CertRef, by ca.Record) bool {
		t.Helper()
		st := w.issuanceState(t, ra.IssuanceQuery{Identity: by.Identity, Predecessor: old, Request: by.RequestID, Key: by.KeyHash})
		return st.Prior != nil && st.Prior.Supersedes
	}
	first := w.enrollNew(t)
	second := w.issue(t, w.superseding(t, first, w.key()))
	third := w.issue(t, w.superseding(t, second, second.KeyHash)) // keeps the key
	plain := w.renew(t, third, w.key())
	w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: third.Ref}) // by an operator
	for _, c := range []struct {
		what string
		old  pki.CertRef
		by   ca.Record
		want bool
	}{
		{"the renewal of the first", first.Ref, second, true},
		{"the renewal of the second", second.Ref, third, true},
		{"the renewal of the renewal", first.Ref, third, false},
		{"a renewal that revoked nothing", third.Ref, plain, false},
		{"the first enrollment", first.Ref, first, false},
		{"a query about another predecessor", plain.Ref, second, false},
	} {
		if got := supersedes(c.old, c.by); got != c.want {
			t.Errorf("%s supersedes the predecessor: %v", c.what, got)
		}
	}
	if st := w.issuanceState(t, ra.IssuanceQuery{Identity: first.Identity, Request: second.RequestID, Key: second.KeyHash}); st.Prior == nil || st.Prior.Supersedes {
		t.Errorf("without a predecessor the prior issuance is %+v", st.Prior)
	}
}
