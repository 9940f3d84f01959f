package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// strict are terms with every requirement.
var strict = pki.Terms{HardwareKey: true, Keys: []pki.KeyType{pki.P256, pki.Ed25519}, MaxLifetime: 12*time.Hour + time.Nanosecond}

func testTerms(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"terms stay until the next enrollment":  termsStay,
		"each requirement":                      eachRequirement,
		"refused enrollments set no terms":      refusedTerms,
		"a certificate has the key of a query":  sameKey,
		"renewals consume nonces":               renewalConsumesNonces,
		"evidence refusals match guards":        evidenceRefusalsMatchGuards,
		"refusals for unregistered identities":  unregisteredRefusals,
		"the log has the evidence of a refusal": logHasRefusedEvidence,
	})
}

// withTerms returns an enrollment with terms.
func (w *world) withTerms(t *testing.T, id ra.Identity, terms pki.Terms) ca.Record {
	t.Helper()
	r := w.enrollment(t, id)
	r.Guard.Terms = terms
	return r
}

func termsStay(t *testing.T, w *world) {
	made := w.newIdentity(t)
	made.Terms = strict // only an enrollment sets terms
	id, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: made}, operator)
	must(t, err)
	mustEqual(t, "the terms of a new identity", w.readIdentity(t, id.ID).Terms, pki.Terms{})
	first := w.issue(t, w.withTerms(t, id, strict))
	e, ok := w.lastEntry(t).Event.(*translog.IssuedCertificate)
	if !ok {
		t.Fatal("the last entry is not about the certificate")
	}
	mustEqual(t, "the terms in the log", e.Terms, strict)

	w.renew(t, first, w.key())
	w.issue(t, w.record(t, id.ID)) // such as for an issue request
	w.changeIdentity(t, id.ID, hold, pki.Suspended)
	w.changeIdentity(t, id.ID, unhold, pki.Enrolled)
	updated := w.readIdentity(t, id.ID)
	updated.Labels, updated.Subject, updated.Terms = map[string]string{"site": "north"}, w.subject(), pki.Terms{}
	have, err := w.RA.UpdateIdentity(context.Background(), updated, operator, w.now)
	must(t, err)
	mustEqual(t, "the terms of the updated identity", have.Terms, strict)
	w.reopen(t)
	w.begin(t)
	have = w.readIdentity(t, id.ID)
	mustEqual(t, "the terms after reopening", have.Terms, strict)
	mustEqual(t, "the identity in a list", w.identities(t, ra.IdentityFilter{}, 10)[0], have)
	mustEqual(t, "the identity in the state of an issuance",
		w.issuanceState(t, ra.IssuanceQuery{Identity: id.ID, Request: w.requestID(t), Key: w.key()}).Identity, have)

	next := pki.Terms{MaxLifetime: time.Hour}
	w.issue(t, w.withTerms(t, have, next))
	have = w.readIdentity(t, id.ID)
	mustEqual(t, "the terms of the second enrollment", have.Terms, next)
	w.issue(t, w.enrollment(t, have)) // such as with a token, by a rule without terms
	mustEqual(t, "the terms of an enrollment without any", w.readIdentity(t, id.ID).Terms, pki.Terms{})
}

func eachRequirement(t *testing.T, w *world) {
	for _, terms := range []pki.Terms{{HardwareKey: true}, {Keys: pki.KeyTypes()}, {MaxLifetime: 1<<63 - 1}} {
		id := w.register(t)
		w.issue(t, w.withTerms(t, id, terms))
		mustEqual(t, "the terms", w.readIdentity(t, id.ID).Terms, terms)
	}
}

func refusedTerms(t *testing.T, w *world) {
	id := w.register(t)
	r := w.withTerms(t, id, strict)
	r.Guard.Enrolls = false
	mustRefuse(t, w.commit(t, r), pki.RuleRequest)
	r = w.withTerms(t, id, strict)
	r.Guard.Revision++
	mustRefuse(t, w.commit(t, r), pki.RuleIdentityStale)
	mustEqual(t, "the terms", w.readIdentity(t, id.ID).Terms, pki.Terms{})

	// An enrollment makes decisions by earlier terms stale.
	w.issue(t, w.enrollment(t, id))
	decided := w.record(t, id.ID)
	decided.Guard.Identity, decided.Guard.Revision = id.ID, w.readIdentity(t, id.ID).Revision
	w.issue(t, w.withTerms(t, w.readIdentity(t, id.ID), strict))
	mustRefuse(t, w.commit(t, decided), pki.RuleIdentityStale)
}

func sameKey(t *testing.T, w *world) {
	first := w.enrollNew(t)
	renewed := w.renew(t, first, w.key())
	for _, c := range []struct {
		before ca.Record
		key    pki.KeyHash
		want   bool
	}{{first, first.KeyHash, true}, {first, renewed.KeyHash, false}, {renewed, renewed.KeyHash, true}, {renewed, w.key(), false}} {
		q := ra.IssuanceQuery{Identity: first.Identity, Predecessor: c.before.Ref, Request: w.requestID(t), Key: c.key}
		if got := w.issuanceState(t, q).Predecessor.SameKey; got != c.want {
			t.Errorf("certificate %s has the key %s: %t, want %t", c.before.Ref.Serial, c.key, got, c.want)
		}
	}
}

func renewalConsumesNonces(t *testing.T, w *world) {
	first, n := w.enrollNew(t), w.nonce()
	renewal := func() ca.Record {
		r := w.record(t, first.Identity)
		r.Guard.Predecessor, r.Guard.Nonces, r.Guard.Renewed = first.Ref, []pki.Nonce{n}, true
		return r
	}
	r := renewal()
	r.Evidence.Pieces = []pki.EvidenceDigest{{Kind: pki.EvidenceTPM, Digest: w.unique()}}
	w.issue(t, r)
	if got := w.lastEntry(t).Facts()["evidence"]; got != "tpm:"+translog.Hash(r.Evidence.Pieces[0].Digest).String() {
		t.Errorf("the log has the evidence %q", got)
	}
	again := renewal()
	again.KeyHash, again.Guard.Key = r.KeyHash, r.KeyHash
	mustRefuse(t, w.commit(t, again), pki.RuleChallengeUsed)
	mustRefuse(t, w.commit(t, w.enrollmentAs(t, w.register(t), w.subject(), n)), pki.RuleChallengeUsed)
}

// evidenceRefusalsMatchGuards checks that SubjectRefusal and NonceRefusal predict the results of the guards.
func evidenceRefusalsMatchGuards(t *testing.T, w *world) {
	for _, c := range evidenceGuards {
		t.Run(c.name, func(t *testing.T) {
			r := c.make(t, w)
			if c.want == pki.RuleRequest || c.want == pki.RuleRequestIDReused {
				return // refused because of something else
			}
			if c.want == pki.RuleIdentityStale {
				c.want = ""
			}
			st := w.issuanceState(t, evidenceQuery(r, w.now))
			var got pki.Rule
			if st.SubjectRefusal != nil {
				got = st.SubjectRefusal.Rule
			} else if st.NonceRefusal != nil {
				got = st.NonceRefusal.Rule
			}
			if got != c.want {
				t.Errorf("the state predicts the refusal %q, want %q", got, c.want)
			}
		})
	}
}

// evidenceQuery returns the query with which an enrollment is decided.
func evidenceQuery(r ca.Record, at time.Time) ra.IssuanceQuery {
	return ra.IssuanceQuery{
		Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash, At: at, Subject: r.Guard.Subject, Nonces: r.Guard.Nonces,
	}
}

// unregisteredRefusals checks the state of an identity that is not registered yet: it says what would refuse the
// identity's first certificate.
func unregisteredRefusals(t *testing.T, w *world) {
	n := w.nonce()
	holder := w.issue(t, w.enrollmentAs(t, w.register(t), w.subject(), n))
	compromised := w.enrollNew(t)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: compromised.Ref})
	state := func(edit func(q *ra.IssuanceQuery)) ra.IssuanceState {
		q := ra.IssuanceQuery{
			Identity: w.newIdentity(t).ID, Request: w.requestID(t), Key: w.key(), At: w.now, Caller: holder.Identity,
			Subject: w.subject(), Nonces: []pki.Nonce{w.nonce()},
		}
		edit(&q)
		st, err := w.RA.IssuanceState(context.Background(), q)
		mustRefuse(t, err, pki.RuleIdentity)
		return st
	}
	caller, err := w.RA.Identity(context.Background(), holder.Identity)
	must(t, err)
	none := ra.IssuanceState{Caller: pki.CallerIdentity{State: pki.Enrolled, Labels: caller.Labels}}
	mustEqual(t, "the state without a refusal", state(func(*ra.IssuanceQuery) {}), none)
	for name, c := range map[string]struct {
		edit func(q *ra.IssuanceQuery)
		want [3]pki.Rule // of the key, the subject and the nonce
	}{
		"key of another identity":     {func(q *ra.IssuanceQuery) { q.Key = holder.KeyHash }, [3]pki.Rule{0: pki.RuleKeyInUse}},
		"compromised key":             {func(q *ra.IssuanceQuery) { q.Key = compromised.KeyHash }, [3]pki.Rule{0: pki.RuleKeyCompromised}},
		"subject of another identity": {func(q *ra.IssuanceQuery) { q.Subject = holder.Guard.Subject }, [3]pki.Rule{1: pki.RuleEvidenceConflict}},
		"used nonce":                  {func(q *ra.IssuanceQuery) { q.Nonces = append(q.Nonces, n) }, [3]pki.Rule{2: pki.RuleChallengeUsed}},
		"expired nonce":               {func(q *ra.IssuanceQuery) { q.At = n.ExpiresAt }, [3]pki.Rule{2: pki.RuleChallengeExpired}},
	} {
		st := state(c.edit)
		for i, got := range []*pki.Refusal{st.KeyRefusal, st.SubjectRefusal, st.NonceRefusal} {
			if (got == nil) != (c.want[i] == "") || got != nil && got.Rule != c.want[i] {
				t.Errorf("%s: refusal %d is %v, want %q", name, i, got, c.want[i])
			}
		}
	}
}

func logHasRefusedEvidence(t *testing.T, w *world) {
	digest := w.unique()
	must(t, w.Audit.Refused(context.Background(), audit.Refusal{
		By: pki.ActorEvidence(pki.EvidenceX5C, "0123"), Why: &pki.Refusal{Rule: pki.RulePolicy}, At: w.now,
		Evidence: pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{{Kind: pki.EvidenceX5C, Digest: digest}, {Kind: pki.EvidenceToken}}, Rule: "a", Policy: 2},
	}))
	mustEqual(t, "the log entry", w.lastEntry(t), translog.Entry{
		Time: w.now, Actor: pki.ActorEvidence(pki.EvidenceX5C, "0123"), Action: translog.RequestRefused, Outcome: translog.Refused,
		Event: &translog.Refusal{Rule: pki.RulePolicy, Evidence: translog.IssuanceEvidence{
			Pieces: []translog.EvidenceDigest{{Kind: pki.EvidenceX5C, Digest: digest}, {Kind: pki.EvidenceToken}}, Rule: "a", Policy: 2,
		}},
	})
}
