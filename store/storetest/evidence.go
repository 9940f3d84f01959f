package storetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

// subject returns a new subject of evidence.
func (w *world) subject() pki.EvidenceSubject {
	kinds := pki.EvidenceKinds()
	return pki.EvidenceSubject{Kind: kinds[len(kinds)-1], Hash: w.unique()}
}

// nonce returns a new nonce that is valid for five minutes.
func (w *world) nonce() pki.Nonce {
	b := w.unique()
	return pki.Nonce{ID: [16]byte(b[:]), ExpiresAt: w.now.Add(5 * time.Minute)}
}

// enrollmentAs returns an enrollment of an identity with evidence about a subject.
func (w *world) enrollmentAs(t rapid.TB, id ra.Identity, s pki.EvidenceSubject, nonces ...pki.Nonce) ca.Record {
	t.Helper()
	r := w.enrollment(t, id)
	r.Guard.Subject, r.Guard.Nonces = s, nonces
	r.Evidence = pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{{Kind: s.Kind, Digest: w.unique()}}, Rule: "cameras", Policy: 3}
	if s.IsZero() {
		r.Evidence.Pieces[0].Kind = pki.EvidenceToken
	}
	return r
}

// registerAs registers a device with a subject of evidence.
func (w *world) registerAs(t rapid.TB, s pki.EvidenceSubject) ra.Identity {
	t.Helper()
	id := w.newIdentity(t)
	id.Subject = s
	have, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
	must(t, err)
	return have
}

// withNonces returns an enrollment whose guard has nonces.
func withNonces(nonces func(t *testing.T, w *world) []pki.Nonce) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		all := nonces(t, w)
		return w.enrollmentAs(t, w.register(t), w.subject(), all...)
	}
}

var evidenceGuards = []guardCase{
	{"subject of an identity without one", "", func(t *testing.T, w *world) ca.Record {
		return w.enrollmentAs(t, w.register(t), w.subject())
	}},
	{"subject of the identity", "", func(t *testing.T, w *world) ca.Record {
		id := w.registerAs(t, w.subject())
		return w.enrollmentAs(t, id, id.Subject)
	}},
	{"another subject than the identity's", pki.RuleEvidenceConflict, func(t *testing.T, w *world) ca.Record {
		return w.enrollmentAs(t, w.registerAs(t, w.subject()), w.subject())
	}},
	{"subject of another kind of evidence", pki.RuleEvidenceConflict, func(t *testing.T, w *world) ca.Record {
		id := w.registerAs(t, w.subject())
		other := id.Subject
		other.Kind++
		return w.enrollmentAs(t, id, other)
	}},
	{"subject of another identity", pki.RuleEvidenceConflict, func(t *testing.T, w *world) ca.Record {
		return w.enrollmentAs(t, w.register(t), w.registerAs(t, w.subject()).Subject)
	}},
	{"subject of a retired identity", pki.RuleEvidenceConflict, func(t *testing.T, w *world) ca.Record {
		other := w.registerAs(t, w.subject())
		w.changeIdentity(t, other.ID, retire, pki.Retired)
		return w.enrollmentAs(t, w.register(t), other.Subject)
	}},
	{"identity enrolled with another subject since the decision", pki.RuleEvidenceConflict, func(t *testing.T, w *world) ca.Record {
		id := w.register(t)
		w.issue(t, w.enrollmentAs(t, id, w.subject()))
		return w.enrollmentAs(t, id, w.subject())
	}},
	{"identity enrolled with this subject since the decision", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		id, s := w.register(t), w.subject()
		w.issue(t, w.enrollmentAs(t, id, s))
		return w.enrollmentAs(t, id, s)
	}},
	{"enrollment without a subject of an identity with one", "", func(t *testing.T, w *world) ca.Record {
		return w.enrollment(t, w.registerAs(t, w.subject()))
	}},
	{"terms without an enrollment", pki.RuleRequest, func(t *testing.T, w *world) ca.Record {
		r := w.enrollment(t, w.register(t))
		r.Guard.Enrolls, r.Guard.Terms.HardwareKey = false, true
		return r
	}},
	{"subject without an enrollment", pki.RuleRequest, func(t *testing.T, w *world) ca.Record {
		r := w.enrollmentAs(t, w.register(t), w.subject())
		r.Guard.Enrolls = false
		return r
	}},
	{"nonces that were not used", "", withNonces(func(_ *testing.T, w *world) []pki.Nonce {
		return []pki.Nonce{w.nonce(), w.nonce()}
	})},
	{"nonce twice in one guard", pki.RuleChallengeUsed, withNonces(func(_ *testing.T, w *world) []pki.Nonce {
		n := w.nonce()
		return []pki.Nonce{n, n}
	})},
	{"nonce of another enrollment", pki.RuleChallengeUsed, withNonces(func(t *testing.T, w *world) []pki.Nonce {
		n := w.nonce()
		w.issue(t, w.enrollmentAs(t, w.register(t), w.subject(), n))
		return []pki.Nonce{w.nonce(), n}
	})},
	{"nonce of a refused enrollment", "", withNonces(func(t *testing.T, w *world) []pki.Nonce {
		n := w.nonce()
		mustRefuse(t, w.commit(t, w.enrollmentAs(t, w.registerAs(t, w.subject()), w.subject(), n)), pki.RuleEvidenceConflict)
		return []pki.Nonce{n}
	})},
	{"nonce expired", pki.RuleChallengeExpired, withNonces(func(_ *testing.T, w *world) []pki.Nonce {
		n := w.nonce()
		n.ExpiresAt = w.now
		return []pki.Nonce{n}
	})},
	{"nonce in its last millisecond", "", withNonces(func(_ *testing.T, w *world) []pki.Nonce {
		n := w.nonce()
		n.ExpiresAt = w.now.Add(time.Millisecond)
		return []pki.Nonce{n}
	})},
	{"nonce and request ID used before", pki.RuleRequestIDReused, func(t *testing.T, w *world) ca.Record {
		first := w.issue(t, w.enrollmentAs(t, w.register(t), w.subject(), w.nonce()))
		again := recordWithKey(t, w, first.Identity, first.KeyHash)
		again.RequestID, again.Guard = first.RequestID, first.Guard
		return again
	}},
}

func testEvidence(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"the first evidence ties the identity":  firstEvidenceTies,
		"an operator rebinds":                   operatorRebinds,
		"a retired identity frees its evidence": retiredFreesEvidence,
		"registered evidence":                   registeredEvidence,
		"the log has the evidence":              logHasEvidence,
		"devices claim one identity at once":    devicesClaimOneIdentity,
		"devices in one batch":                  devicesInOneBatch,
		"one device claims identities at once":  deviceClaimsIdentities,
		"a nonce is used by one":                nonceIsUsedByOne,
		"a repeat is answered":                  repeatIsAnswered,
	})
}

func firstEvidenceTies(t *testing.T, w *world) {
	id, s := w.register(t), w.subject()
	w.issue(t, w.enrollmentAs(t, id, s))
	have := w.readIdentity(t, id.ID)
	if have.Subject != s || have.State != pki.Enrolled || have.Revision != id.Revision+1 {
		t.Errorf("after its enrollment the identity is %+v, want the subject %s", have, s)
	}
	w.reopen(t)
	w.begin(t)
	mustEqual(t, "the identity after reopening", w.readIdentity(t, id.ID), have)
	w.issue(t, w.enrollmentAs(t, have, pki.EvidenceSubject{})) // such as with a token
	if again := w.readIdentity(t, id.ID); again.Subject != s {
		t.Errorf("evidence without a subject changed that of the identity to %q", again.Subject)
	}
}

func registeredEvidence(t *testing.T, w *world) {
	ctx := context.Background()
	s := w.subject()
	wanted := w.newIdentity(t)
	wanted.Subject = s
	made, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: wanted}, operator)
	must(t, err)
	if made.Subject != s || w.readIdentity(t, wanted.ID).Subject != s {
		t.Errorf("the registered identity is %+v, want the subject %s", made, s)
	}
	same, free, other := wanted, wanted, wanted
	free.Subject, other.Subject = pki.EvidenceSubject{}, w.subject()
	for _, id := range []ra.Identity{same, free} {
		again, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: id}, operator)
		must(t, err)
		mustEqual(t, "the identity, created again", again, made)
	}
	_, err = w.RA.CreateIdentity(ctx, ra.Registration{Identity: other}, operator)
	mustRefuse(t, err, pki.RuleEvidenceConflict)
	second := w.newIdentity(t)
	second.Subject = s
	_, err = w.RA.CreateIdentity(ctx, ra.Registration{Identity: second}, operator)
	mustRefuse(t, err, pki.RuleEvidenceConflict)
	_, err = w.RA.Identity(ctx, second.ID)
	mustNotFind(t, err)

	untied := w.register(t)
	untied.Subject = w.subject()
	_, err = w.RA.CreateIdentity(ctx, ra.Registration{Identity: untied}, operator)
	mustRefuse(t, err, pki.RuleIdentityExists)
	list := w.identities(t, ra.IdentityFilter{}, 10)
	for _, id := range list {
		mustEqual(t, "the listed identity", id, w.readIdentity(t, id.ID))
	}
}

// operatorRebinds replaces the device of an identity.
func operatorRebinds(t *testing.T, w *world) {
	ctx := context.Background()
	old, next := w.subject(), w.subject()
	id := w.register(t)
	w.issue(t, w.enrollmentAs(t, id, old))
	have := w.readIdentity(t, id.ID)
	mustRefuse(t, w.commit(t, w.enrollmentAs(t, have, next)), pki.RuleEvidenceConflict)

	decided := w.enrollmentAs(t, have, old) // before the update
	have.Subject = next
	updated, err := w.RA.UpdateIdentity(ctx, have, operator, w.now)
	must(t, err)
	want := have
	want.Revision++
	mustEqual(t, "the updated identity", updated, want)
	if e := w.lastEntry(t); e.Action != translog.IdentityUpdated || e.Facts()["evidence_subject"] != next.String() {
		t.Errorf("log entry %+v, want the new subject", e)
	}
	mustRefuse(t, w.commit(t, decided), pki.RuleEvidenceConflict)
	w.issue(t, w.enrollmentAs(t, updated, next))
	w.registerAs(t, old) // the old device is free again

	free := w.readIdentity(t, id.ID)
	free.Subject = old
	_, err = w.RA.UpdateIdentity(ctx, free, operator, w.now)
	mustRefuse(t, err, pki.RuleEvidenceConflict)
	free.Subject = pki.EvidenceSubject{}
	updated, err = w.RA.UpdateIdentity(ctx, free, operator, w.now)
	must(t, err)
	third := w.subject()
	w.issue(t, w.enrollmentAs(t, updated, third))
	mustEqual(t, "the subject of the next evidence", w.readIdentity(t, id.ID).Subject, third)
}

func retiredFreesEvidence(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.registerAs(t, w.subject())
	w.changeIdentity(t, id.ID, retire, pki.Retired)
	have := w.readIdentity(t, id.ID)
	other := have
	other.Subject = w.subject()
	_, err := w.RA.UpdateIdentity(ctx, other, operator, w.now)
	mustRefuse(t, err, pki.RuleIdentityState)
	other.Subject, other.Profile = pki.EvidenceSubject{}, "server"
	_, err = w.RA.UpdateIdentity(ctx, other, operator, w.now)
	mustRefuse(t, err, pki.RuleIdentityState)
	have.Subject = pki.EvidenceSubject{}
	freed, err := w.RA.UpdateIdentity(ctx, have, operator, w.now)
	must(t, err)
	if !freed.Subject.IsZero() || freed.State != pki.Retired {
		t.Errorf("the retired identity is %+v, want no subject", freed)
	}
	w.registerAs(t, id.Subject)
}

// logHasEvidence checks that the entry of a certificate has the digests of the evidence, the rule and the subject.
func logHasEvidence(t *testing.T, w *world) {
	s := w.subject()
	r := w.issue(t, w.enrollmentAs(t, w.register(t), s, w.nonce()))
	e, ok := w.lastEntry(t).Event.(*translog.IssuedCertificate)
	want := translog.IssuanceEvidence{
		Pieces: []translog.EvidenceDigest{{Kind: s.Kind, Digest: r.Evidence.Pieces[0].Digest}}, Rule: "cameras", Policy: 3, Subject: s,
	}
	if !ok {
		t.Fatal("the last entry is not about the certificate")
	}
	mustEqual(t, "the evidence in the log", e.Evidence, want)
	w.renew(t, r, w.key())
	if e, ok := w.lastEntry(t).Event.(*translog.IssuedCertificate); !ok {
		t.Error("the last entry is not about the renewal")
	} else {
		mustEqual(t, "the evidence of a renewal", e.Evidence, translog.IssuanceEvidence{})
	}
}

// devicesClaimOneIdentity lets many devices register the same identity at once, each with its own evidence, as a policy
// does, and enroll as it. Exactly one gets a certificate.
func devicesClaimOneIdentity(t *testing.T, w *world) {
	for _, registered := range []bool{false, true} {
		wanted := w.newIdentity(t)
		if registered { // without a subject: then only the enrollment decides
			_, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: wanted}, operator)
			must(t, err)
		}
		const devices = 8
		var records [devices]ca.Record
		var errs [devices]error
		var writer sync.Mutex // the journal has one caller at a time
		var run []func()
		for i := range devices {
			records[i] = w.enrollmentAs(t, ra.Identity{ID: wanted.ID, Revision: 1}, w.subject(), w.nonce())
			intent := w.writeIntent(t, records[i])
			run = append(run, func() {
				errs[i] = w.claim(wanted, registered, &records[i])
				writer.Lock()
				defer writer.Unlock()
				commit := ca.BatchCommit{Intent: intent, At: w.now}
				if errs[i] == nil {
					commit.Records = records[i : i+1]
				}
				results, err := w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{commit}, nil)
				if err == nil && errs[i] == nil {
					err = results[0][0].Refusal
				}
				if err != nil {
					errs[i] = err
				}
			})
		}
		together(run...)
		have := w.readIdentity(t, wanted.ID)
		winners := 0
		for i, err := range errs {
			if err == nil {
				winners++
				mustEqual(t, "the subject of the identity", have.Subject, records[i].Guard.Subject)
				continue
			}
			mustRefuse(t, err, pki.RuleEvidenceConflict)
		}
		if winners != 1 || have.State != pki.Enrolled || have.Revision != 2 {
			t.Errorf("%d devices enrolled, and the identity is %+v; want one", winners, have)
		}
	}
}

// claim does what the registrar does before it issues: it registers the identity if that is necessary, and reads its
// state.
func (w *world) claim(wanted ra.Identity, registered bool, r *ca.Record) error {
	if wanted.Subject = r.Guard.Subject; !registered {
		if _, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: wanted}, operator); err != nil {
			return err
		}
	}
	st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{
		Identity: wanted.ID, Request: r.RequestID, Key: r.KeyHash, At: w.now,
	})
	if err == nil && !st.Identity.Subject.IsZero() && st.Identity.Subject != r.Guard.Subject {
		err = wanted.ID.EvidenceConflict()
	}
	return err
}

func devicesInOneBatch(t *testing.T, w *world) {
	id := w.register(t)
	a, b := w.enrollmentAs(t, id, w.subject()), w.enrollmentAs(t, id, w.subject())
	refusals := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleEvidenceConflict)
	mustEqual(t, "the subject", w.readIdentity(t, id.ID).Subject, a.Guard.Subject)
}

// deviceClaimsIdentities lets one device register and enroll as many identities at once.
func deviceClaimsIdentities(t *testing.T, w *world) {
	s := w.subject()
	var ids []ra.Identity
	for range 8 {
		id := w.newIdentity(t)
		id.Subject = s
		ids = append(ids, id)
	}
	errs := make([]error, len(ids))
	var run []func()
	for i := range ids {
		run = append(run, func() {
			_, errs[i] = w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: ids[i]}, operator)
		})
	}
	together(run...)
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
			continue
		}
		mustRefuse(t, err, pki.RuleEvidenceConflict)
	}
	if made != 1 {
		t.Errorf("%d identities have one subject, want one", made)
	}
	a, b, other := w.register(t), w.register(t), w.subject()
	first, second := w.enrollmentAs(t, a, other), w.enrollmentAs(t, b, other)
	refusals := w.commitBatch(t, w.writeIntent(t, first, second), first, second)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleEvidenceConflict)
}

func nonceIsUsedByOne(t *testing.T, w *world) {
	n := w.nonce()
	a, b := w.enrollmentAs(t, w.register(t), w.subject(), n), w.enrollmentAs(t, w.register(t), w.subject(), n)
	refusals := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleChallengeUsed)
	if id := w.readIdentity(t, b.Identity); id.State != pki.Registered || !id.Subject.IsZero() {
		t.Errorf("the refused enrollment changed the identity to %+v", id)
	}
	w.reopen(t)
	w.begin(t)
	c := w.enrollmentAs(t, w.register(t), w.subject(), n)
	mustRefuse(t, w.commit(t, c), pki.RuleChallengeUsed)
	w.now = n.ExpiresAt
	mustRefuse(t, w.commit(t, w.enrollmentAs(t, w.register(t), w.subject(), n)), pki.RuleChallengeExpired)
}

// repeatIsAnswered checks that a repeated request finds its certificate, although its nonce was used and has expired.
func repeatIsAnswered(t *testing.T, w *world) {
	r := w.issue(t, w.enrollmentAs(t, w.register(t), w.subject(), w.nonce()))
	w.now = w.now.Add(time.Hour)
	st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{
		Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash, At: w.now,
	})
	must(t, err)
	if st.Prior == nil || st.Prior.Certificate.Ref != r.Ref || st.Prior.Key != r.KeyHash {
		t.Errorf("the earlier certificate is %+v, want %s", st.Prior, r.Ref.Serial)
	}
	again := recordWithKey(t, w, r.Identity, r.KeyHash)
	again.RequestID, again.Guard = r.RequestID, r.Guard
	mustRefuse(t, w.commit(t, again), pki.RuleRequestIDReused)
}
