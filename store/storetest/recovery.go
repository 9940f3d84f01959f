package storetest

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// graceInTests is how long after their expiry certificates can recover in these tests, and timesInTests how often in a row.
const (
	graceInTests = 24 * time.Hour
	timesInTests = 2
)

func testRecovery(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	for _, c := range recoveryGuards {
		t.Run(c.name, func(t *testing.T) { c.check(t, w) })
	}
	each(t, open, map[string]func(t *testing.T, w *world){
		"recoveries are counted":            countsRecoveries,
		"the predecessor recovers once":     predecessorRecoversOnce,
		"a renewal during a recovery":       renewalDuringRecovery,
		"two recoveries in one transaction": twoRecoveriesAtOnce,
		"bulk revocations reach expired":    bulkReachesExpired,
		"a longer grace later":              graceIsRaised,
	})
}

// recovery returns a record that recovers an identity with the key of one of its certificates. newest is the newest one.
func (w *world) recovery(t rapid.TB, proven, newest ca.Record) ca.Record {
	t.Helper()
	r := w.enrollment(t, w.readIdentity(t, newest.Identity))
	r.Guard.Recovery = pki.Recovery{Certificate: proven.Ref, Grace: graceInTests, Times: timesInTests}
	r.Guard.Predecessor, r.Guard.Supersedes = newest.Ref, proven.Ref != newest.Ref
	r.Evidence = pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{{Kind: pki.EvidenceRecovery, Digest: w.unique()}}, Rule: "field", Policy: 2}
	return r
}

// recoveryState returns the state of the decision about a recovery.
func (w *world) recoveryState(t *testing.T, r ca.Record) ra.RecoveryState {
	t.Helper()
	return w.issuanceState(t, ra.IssuanceQuery{
		Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash, Recovery: r.Guard.Recovery, At: w.now,
	}).Recovery
}

// recoveryCase creates a recovery that the store refuses with the rule want, or accepts if want is empty. The decision and
// the guard must agree.
type recoveryCase struct {
	name string
	want pki.Rule
	make func(t *testing.T, w *world) ca.Record
}

func (c recoveryCase) check(t *testing.T, w *world) {
	r := c.make(t, w)
	decided := w.recoveryState(t, r)
	if c.want == "" {
		if decided.Refusal != nil || decided.Newest != r.Guard.Predecessor {
			t.Errorf("the decision is %+v", decided)
		}
		must(t, w.commit(t, r))
		return
	}
	if decided.Refusal == nil || decided.Refusal.Rule != c.want || decided.Refusal.Hint == "" {
		t.Errorf("the decision is the refusal %v, want %s", decided.Refusal, c.want)
	}
	before := w.readIdentity(t, r.Identity)
	mustRefuse(t, w.commit(t, r), c.want)
	mustEqual(t, "the identity after a refusal", w.readIdentity(t, r.Identity), before)
}

// expired returns the certificate of a new identity, whose certificate expired a minute ago.
func (w *world) expired(t *testing.T) ca.Record {
	t.Helper()
	r := w.enrollNew(t)
	w.now = r.NotAfter.Add(time.Minute)
	return r
}

// recoveryAfter returns a function that creates a recovery after the certificate was changed.
func recoveryAfter(changes ...revocation.Change) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		for _, change := range changes {
			change.Certificate = r.Ref
			w.apply(t, change)
		}
		return w.recovery(t, r, r)
	}
}

// lineageOf returns the certificates of a new identity, each renewed from the one before. All have expired.
func (w *world) lineageOf(t *testing.T, n int) []ca.Record {
	t.Helper()
	all := []ca.Record{w.enrollNew(t)}
	for len(all) < n {
		all = append(all, w.renew(t, all[len(all)-1], w.key()))
	}
	w.now = w.now.Add(61 * time.Minute)
	return all
}

var recoveryGuards = []recoveryCase{
	{"newest certificate", "", func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		return w.recovery(t, r, r)
	}},
	{"at the end of the grace", "", func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		w.now = r.NotAfter.Add(graceInTests)
		return w.recovery(t, r, r)
	}},
	{"after the grace", pki.RuleRecoveryGrace, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		w.now = r.NotAfter.Add(graceInTests + time.Second)
		return w.recovery(t, r, r)
	}},
	{"at its expiry", pki.RuleRecoveryValid, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		w.now = r.NotAfter
		return w.recovery(t, r, r)
	}},
	{"with another certificate that is valid", pki.RuleRecoveryValid, func(t *testing.T, w *world) ca.Record {
		r := w.enrollNew(t)
		longer := w.record(t, r.Identity)
		longer.NotAfter = w.now.Add(10 * time.Hour)
		w.issue(t, longer)
		short := w.issue(t, w.record(t, r.Identity))
		w.now = short.NotAfter.Add(time.Minute)
		return w.recovery(t, short, short)
	}},
	{"with another certificate that is valid and revoked", "", func(t *testing.T, w *world) ca.Record {
		r := w.enrollNew(t)
		longer := w.record(t, r.Identity)
		longer.NotAfter = w.now.Add(10 * time.Hour)
		w.issue(t, longer)
		w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Certificate: longer.Ref})
		short := w.issue(t, w.record(t, r.Identity))
		w.now = short.NotAfter.Add(time.Minute)
		return w.recovery(t, short, short)
	}},
	{"on hold", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: hold, Reason: pki.CertificateHold})},
	{"held before", "", recoveryAfter(revocation.Change{Action: hold, Reason: pki.CertificateHold}, revocation.Change{Action: unhold})},
	{"revoked, unspecified", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke})},
	{"revoked, keyCompromise", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke, Reason: pki.KeyCompromise})},
	{"revoked, cACompromise", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke, Reason: pki.CACompromise})},
	{"revoked, affiliationChanged", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke, Reason: pki.AffiliationChanged})},
	{"revoked, cessationOfOperation", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke, Reason: pki.CessationOfOperation})},
	{"revoked, privilegeWithdrawn", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke, Reason: pki.PrivilegeWithdrawn})},
	{"revoked, superseded by an operator", pki.RuleRevoked, recoveryAfter(revocation.Change{Action: revoke, Reason: pki.Superseded})},
	{"compromised key without a revoked certificate", pki.RuleRevoked, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		if w.Retention != nil {
			w.advanceAge(t) // the change then affects no expired certificate, but still marks the key
		}
		w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: r.KeyHash})
		return w.recovery(t, r, r)
	}},
	{"identity suspended", pki.RuleIdentityState, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		w.changeIdentity(t, r.Identity, hold, pki.Suspended)
		return w.recovery(t, r, r)
	}},
	{"identity retired", pki.RuleIdentityState, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		w.changeIdentity(t, r.Identity, revoke, pki.Retired)
		return w.recovery(t, r, r)
	}},
	{"identity not enrolled", pki.RuleIdentityState, func(t *testing.T, w *world) ca.Record {
		r := w.issue(t, w.record(t, w.register(t).ID))
		w.now = r.NotAfter.Add(time.Minute)
		return w.recovery(t, r, r)
	}},
	{"certificate of another identity", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		other := w.enrollNew(t)
		r := w.expired(t)
		return w.recovery(t, other, r)
	}},
	{"certificate of another CA", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		recovery := w.recovery(t, r, r)
		recovery.Guard.Recovery.Certificate.Issuer = issuerB
		return recovery
	}},
	{"predecessor of a certificate that was lost", "", func(t *testing.T, w *world) ca.Record {
		all := w.lineageOf(t, 2)
		return w.recovery(t, all[0], all[1])
	}},
	{"predecessor of a valid certificate", pki.RuleRecoveryValid, func(t *testing.T, w *world) ca.Record {
		old := w.enrollNew(t)
		w.now = old.NotAfter.Add(-time.Minute)
		next := w.renew(t, old, w.key())
		w.now = old.NotAfter.Add(time.Minute)
		return w.recovery(t, old, next)
	}},
	{"superseded predecessor of a certificate that was lost", "", func(t *testing.T, w *world) ca.Record {
		old := w.enrollNew(t)
		next := w.issue(t, w.superseding(t, old, w.key()))
		w.now = next.NotAfter.Add(time.Minute)
		return w.recovery(t, old, next)
	}},
	{"predecessor of the predecessor", pki.RuleRecoveryNewest, func(t *testing.T, w *world) ca.Record {
		all := w.lineageOf(t, 3)
		return w.recovery(t, all[0], all[2])
	}},
	{"certificate before another enrollment", pki.RuleRecoveryNewest, func(t *testing.T, w *world) ca.Record {
		old := w.enrollNew(t)
		newest := w.issue(t, w.enrollment(t, w.readIdentity(t, old.Identity)))
		w.now = newest.NotAfter.Add(time.Minute)
		return w.recovery(t, old, newest)
	}},
	{"predecessor of a revoked certificate", pki.RuleRevoked, func(t *testing.T, w *world) ca.Record {
		all := w.lineageOf(t, 2)
		w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Certificate: all[1].Ref})
		return w.recovery(t, all[0], all[1])
	}},
	{"revoked predecessor", pki.RuleRevoked, func(t *testing.T, w *world) ca.Record {
		all := w.lineageOf(t, 2)
		w.apply(t, revocation.Change{Action: revoke, Reason: pki.PrivilegeWithdrawn, Certificate: all[0].Ref})
		return w.recovery(t, all[0], all[1])
	}},
	{"predecessor revoked as superseded by an operator", pki.RuleRevoked, func(t *testing.T, w *world) ca.Record {
		all := w.lineageOf(t, 2)
		w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: all[0].Ref})
		return w.recovery(t, all[0], all[1])
	}},
	{"the same key", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		return w.withKey(w.recovery(t, r, r), r.KeyHash)
	}},
	{"the key of an earlier certificate", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		all := w.lineageOf(t, 2)
		return w.withKey(w.recovery(t, all[1], all[1]), all[0].KeyHash)
	}},
	{"often enough", pki.RuleRecoveryLimit, func(t *testing.T, w *world) ca.Record {
		r := w.expired(t)
		for range timesInTests {
			r = w.issue(t, w.recovery(t, r, r))
			w.now = r.NotAfter.Add(time.Minute)
		}
		return w.recovery(t, r, r)
	}},
}

// withKey returns the record with another key.
func (*world) withKey(r ca.Record, key pki.KeyHash) ca.Record {
	r.KeyHash, r.Guard.Key = key, key
	return r
}

// countsRecoveries checks that recoveries are counted in the record of the identity, and what ends the count.
func countsRecoveries(t *testing.T, w *world) {
	count := func(want int, what string) {
		t.Helper()
		for range 2 {
			if got := w.readIdentity(t, w.list(t, ra.CertificateFilter{}, 1)[0].Identity).Recoveries; got != want {
				t.Errorf("after %s the identity has recovered %d times in a row, want %d", what, got, want)
			}
			w.reopen(t)
			w.begin(t)
		}
	}
	r := w.expired(t)
	count(0, "an enrollment")
	r = w.issue(t, w.recovery(t, r, r))
	count(1, "a recovery")
	w.now = r.NotAfter.Add(time.Minute)
	r = w.issue(t, w.recovery(t, r, r))
	count(2, "two recoveries")
	r = w.renew(t, r, w.key())
	count(0, "a renewal")
	w.now = r.NotAfter.Add(time.Minute)
	r = w.issue(t, w.recovery(t, r, r))
	count(1, "a recovery after a renewal")
	w.issue(t, w.record(t, r.Identity))
	count(1, "a certificate without evidence")
	w.issue(t, w.enrollment(t, w.readIdentity(t, r.Identity)))
	count(0, "another enrollment")
}

// predecessorRecoversOnce checks that a recovery with the key of the predecessor revokes the newest certificate, and that the
// key does not pass again.
func predecessorRecoversOnce(t *testing.T, w *world) {
	all := w.lineageOf(t, 2)
	r := w.recovery(t, all[0], all[1])
	want := pki.StatusChange{Ref: all[1].Ref, NotAfter: all[1].NotAfter, Status: pki.Status{
		State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now.Truncate(time.Second), Version: 2,
	}}
	mustEqual(t, "the result", w.results(t, w.writeIntent(t, r), r), ca.Results{{Superseded: want}})
	mustEqual(t, "the status of the lost certificate", w.readCertificate(t, all[1].Ref).Status, want.Status)
	w.now = r.NotAfter.Add(time.Minute)
	mustRefuse(t, w.commit(t, w.recovery(t, all[0], r)), pki.RuleRecoveryNewest)
	mustRefuse(t, w.commit(t, w.recovery(t, all[1], r)), pki.RuleRevoked) // another party may have its key
	next := w.issue(t, w.recovery(t, r, r))
	w.now = next.NotAfter.Add(time.Minute)
	keeps := w.recovery(t, r, next)
	keeps.Guard.Supersedes = false
	mustRefuse(t, w.commit(t, keeps), pki.RuleRequest)
}

// renewalDuringRecovery checks that a recovery is refused if the identity got a certificate after the decision.
func renewalDuringRecovery(t *testing.T, w *world) {
	old := w.enrollNew(t)
	w.now = old.NotAfter.Add(-time.Second)
	next := w.record(t, old.Identity)
	next.Guard.Predecessor = old.Ref
	decidedBefore := w.recovery(t, old, old)
	w.issue(t, next)
	w.now = next.NotAfter.Add(time.Minute)
	mustRefuse(t, w.commit(t, decidedBefore), pki.RuleIdentityStale)
	w.issue(t, w.recovery(t, next, next))
}

func twoRecoveriesAtOnce(t *testing.T, w *world) {
	r := w.expired(t)
	a, b := w.recovery(t, r, r), w.recovery(t, r, r)
	refusals := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleIdentityStale)
	if id := w.readIdentity(t, r.Identity); id.Recoveries != 1 {
		t.Errorf("the identity has recovered %d times, want once", id.Recoveries)
	}
}

// bulkReachesExpired checks that changes of several certificates affect those that expired within the grace, whether they
// are applied at once or in steps.
func bulkReachesExpired(t *testing.T, w *world) {
	need(t, w.Revocation != nil, "bulk revocations")
	labelled := w.issueLabelled(t, 1)[0]
	id := w.readIdentity(t, labelled.Identity)
	labelled = w.issue(t, w.enrollment(t, id))
	other := w.enrollNew(t)
	late := w.enrollNew(t)
	w.now = labelled.NotAfter.Add(graceInTests / 2)
	w.advanceAge(t)
	req := w.bulkByLabel("7", pki.CessationOfOperation)
	req.Grace = graceInTests
	bulk := w.createBulk(t, req)
	refused := w.recovery(t, labelled, labelled)
	mustRefuse(t, w.commit(t, refused), pki.RuleRevoked) // before a step has changed the record
	if bulk = w.applyBulk(t, bulk.ID); bulk.Total != bulk.Expired || bulk.Total < 1 {
		t.Errorf("the bulk revocation has changed %+v", bulk)
	}
	mustRefuse(t, w.commit(t, w.recovery(t, labelled, labelled)), pki.RuleRevoked)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: other.Identity, Grace: graceInTests})
	mustRefuse(t, w.commit(t, w.recovery(t, other, other)), pki.RuleRevoked)
	w.now = late.NotAfter.Add(graceInTests)
	w.advanceAge(t)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: late.Identity, Grace: graceInTests - time.Second})
	w.issue(t, w.recovery(t, late, late)) // it had expired before the grace of the change
}

// graceIsRaised revokes in bulk while certificates could not recover, so that an expired certificate keeps its status. When
// they can later, the certificate cannot.
func graceIsRaised(t *testing.T, w *world) {
	need(t, w.Revocation != nil, "bulk revocations")
	labelled := w.issueLabelled(t, 1)[0]
	labelled = w.issue(t, w.enrollment(t, w.readIdentity(t, labelled.Identity)))
	line, other := w.enrollNew(t), w.enrollNew(t)
	w.now = labelled.NotAfter.Add(time.Hour)
	w.advanceAge(t)
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.CessationOfOperation))
	w.applyBulk(t, bulk.ID)
	w.createBulk(t, revocation.BulkRequest{
		Action: revoke, Selection: pki.Selection{LineageOf: line.Ref}, Reason: pki.CessationOfOperation, Actor: operator, At: w.now,
	})
	for _, r := range []ca.Record{labelled, line} {
		if s := w.readCertificate(t, r.Ref).Status; s.State != pki.Good {
			t.Fatalf("the bulk revocation has changed an expired certificate to %v", s)
		}
		mustRefuse(t, w.commit(t, w.recovery(t, r, r)), pki.RuleRevoked)
		enrolled := w.issue(t, w.enrollment(t, w.readIdentity(t, r.Identity)))
		w.now = enrolled.NotAfter.Add(time.Minute)
		w.issue(t, w.recovery(t, enrolled, enrolled)) // a later certificate is not selected
	}
	w.now = other.NotAfter.Add(graceInTests)
	w.issue(t, w.recovery(t, other, other))
}

// recover is a step of a history: it recovers an identity with one of its certificates.
func (h *history) recover(t *rapid.T) {
	if len(h.records) == 0 {
		return
	}
	before := rapid.SampledFrom(h.records).Draw(t, "expired")
	at := h.w.now
	h.w.now = at.Add(25 * time.Hour) // all certificates have expired
	defer func() { h.w.now = at }()
	page, _, err := h.w.RA.Certificates(context.Background(), ra.CertificateFilter{Selection: pki.Selection{Identity: before.Identity}}, ra.CertificatePosition{}, 1)
	must(t, err)
	if len(page) == 0 {
		return
	}
	newest := ca.Record{Identity: before.Identity, Ref: page[0].Ref}
	r := h.w.recovery(t, before, newest)
	r.IssuedAt, r.NotAfter = at, at.Add(time.Minute)
	r.Guard.Recovery.Grace, r.Guard.Recovery.Times = 100*time.Hour, 100
	h.add(t, r)
}
