package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testManyCertificates(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"retire an identity with many certificates": retireMany,
		"suspend and resume before the steps":       suspendMany,
		"a key with many certificates":              compromiseMany,
		"a renewal before the steps":                renewDuringHold,
		"a clock ahead of the age of the records":   clockAheadOfAge,
		"a clock ahead, without an age":             clockAheadWithoutAge,
		"a renewal is found by its key":             renewalIsFoundByKey,
		"the number of unexpired certificates":      countUnexpired,
		"the state of the caller of a request":      stateOfCaller,
		"a hold before the steps":                   holdDuringBulk,
		"repeated requests":                         repeatMany,
	})
}

// manyCertificates is a number of certificates that is too large for one transaction. The store changes them with a
// bulk revocation.
const manyCertificates = 150

// issueMany issues a certificate, and then manyCertificates in one batch, to a new identity. If key is set, the batch
// has that key.
func (w *world) issueMany(t *testing.T, key pki.KeyHash) []ca.Record {
	t.Helper()
	first := w.enrollNew(t)
	records := []ca.Record{first}
	var next []ca.Record
	for range manyCertificates {
		r := w.record(t, first.Identity)
		if !key.IsZero() {
			r.KeyHash, r.Guard.Key = key, key
		}
		next = append(next, r)
	}
	for _, refusal := range w.commitBatch(t, w.writeIntent(t, next...), next...) {
		must(t, refusal)
	}
	return append(records, next...)
}

// changeMany makes a change as operator.
func (w *world) changeMany(t *testing.T, change revocation.Change) revocation.ChangeResult {
	t.Helper()
	change.Actor, change.At = operator, w.now
	result, err := w.Statuses.Apply(context.Background(), change)
	must(t, err)
	return result
}

// mustChangeNothing repeats a change. The repeat must neither change a status nor write a log entry.
func (w *world) mustChangeNothing(t *testing.T, change revocation.Change) revocation.ChangeResult {
	t.Helper()
	logged := len(w.entries(t))
	again := w.changeMany(t, change)
	mustEqual(t, "the number of changes in the repeat", len(again.Changed), 0)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
	return again
}

// notifyBulk has the store count a bulk revocation and notify an observer of its statuses.
func (w *world) notifyBulk(t *testing.T, id int64) revocation.BulkRevocation {
	t.Helper()
	notified := 0
	bulk, err := w.Revocation.NotifyBulk(context.Background(), id, pki.StatusObserverFunc(func(c []pki.StatusChange) { notified += len(c) }))
	must(t, err)
	if notified < bulk.Total {
		t.Errorf("the observer got %d statuses of %d certificates", notified, bulk.Total)
	}
	return bulk
}

// retireMany retires an identity. All of its certificates must be revoked at once, before the records are changed.
func retireMany(t *testing.T, w *world) {
	records := w.issueMany(t, pki.KeyHash{})
	id, late := records[0].Identity, w.record(t, records[0].Identity)
	late.Guard.Identity, late.Guard.Revision = id, w.readIdentity(t, id).Revision
	intent := w.writeIntent(t, late)
	result := w.changeMany(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: id, State: pki.Retired})
	if result.BulkRevocation == 0 || len(result.All()) != 0 {
		t.Fatalf("the result is %+v, want a bulk revocation", result)
	}
	w.mustHaveState(t, id, pki.Retired, 3)
	mustRefuse(t, w.commitBatch(t, intent, late)[0], pki.RuleIdentityState)
	if e := w.entries(t); e[len(e)-2].Action != translog.IdentityRetired || e[len(e)-2].Facts()["bulk_revocation"] != "1" {
		t.Errorf("log entries %+v", e[len(e)-2:])
	}
	revoked := pki.Status{State: pki.Revoked, Reason: pki.CessationOfOperation, RevokedAt: w.now, Version: 2}
	w.mustHaveStatus(t, records, revoked)
	if bulk := w.notifyBulk(t, result.BulkRevocation); bulk.Total != len(records) || bulk.Expired != 0 || bulk.Done {
		t.Errorf("the bulk revocation is %+v", bulk)
	}
	retire := revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: id, State: pki.Retired}
	mustEqual(t, "the bulk revocation of the repeat", w.mustChangeNothing(t, retire).BulkRevocation, result.BulkRevocation)
	_, _, err := w.Revocation.ApplyBulk(context.Background(), result.BulkRevocation, 40, w.now)
	must(t, err)
	w.reopen(t)
	w.mustHaveStatus(t, records, revoked)
	w.applyBulk(t, result.BulkRevocation)
	w.mustHaveStatus(t, records, revoked)
	mustEqual(t, "the number of statuses of a repeat after the steps", len(w.mustChangeNothing(t, retire).Unchanged), len(records))
}

// repeatMany repeats requests with the same request ID. The repeats return no statuses, because the responder was
// notified of each.
func repeatMany(t *testing.T, w *world) {
	id := w.issueMany(t, pki.KeyHash{})[0].Identity
	by := callerOf(w.enrollOperator(t, pki.RoleAdmin))
	retire := revocation.Change{
		Action: revoke, Reason: pki.CessationOfOperation, Identity: id, State: pki.Retired, Actor: by.WithRequest(w.newRequest(t, "retire")), At: w.now,
	}
	first, err := w.Statuses.Apply(t.Context(), retire)
	must(t, err)
	w.applyAllBulks(t)
	again, err := w.Statuses.Apply(t.Context(), retire)
	must(t, err)
	mustEqual(t, "the bulk revocation of the repeat", again.BulkRevocation, first.BulkRevocation)
	mustEqual(t, "the number of statuses that the repeat returns", len(again.All()), 0)

	req := w.bulkByLabel("", pki.KeyCompromise)
	req.Selection, req.Actor = pki.Selection{Identity: id}, by.WithRequest(w.newRequest(t, "revoke"))
	bulk, _, err := w.Revocation.CreateBulk(t.Context(), req)
	must(t, err)
	w.applyAllBulks(t)
	repeated, statuses, err := w.Revocation.CreateBulk(t.Context(), req)
	must(t, err)
	mustEqual(t, "the ID of the repeated bulk revocation", repeated.ID, bulk.ID)
	mustEqual(t, "the number of statuses that its repeat returns", len(statuses), 0)
}

// suspendMany resumes an identity before the suspension is applied to the records. The store must apply the suspension
// first.
func suspendMany(t *testing.T, w *world) {
	records := w.issueMany(t, pki.KeyHash{})
	id := records[0].Identity
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: records[7].Ref})
	suspended := w.changeMany(t, revocation.Change{Action: hold, Identity: id, State: pki.Suspended})
	rest := append(append([]ca.Record{}, records[:7]...), records[8:]...)
	w.mustHaveStatus(t, rest, pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: w.now, Version: 2})
	mustEqual(t, "the number of held certificates", w.notifyBulk(t, suspended.BulkRevocation).Total, len(rest))
	_, _, err := w.Revocation.ApplyBulk(context.Background(), suspended.BulkRevocation, 40, w.now)
	must(t, err)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: records[100].Ref}) // its record is not changed yet
	resumed := w.changeMany(t, revocation.Change{Action: unhold, Identity: id})
	w.mustHaveState(t, id, pki.Enrolled, 4)
	good := append(append([]ca.Record{}, rest[:99]...), rest[100:]...)
	w.mustHaveStatus(t, good, pki.Status{State: pki.Good, Version: 3})
	mustEqual(t, "the number of unheld certificates", w.notifyBulk(t, resumed.BulkRevocation).Total, len(good))
	w.applyBulk(t, suspended.BulkRevocation)
	w.mustHaveStatus(t, good, pki.Status{State: pki.Good, Version: 3})
	w.applyBulk(t, resumed.BulkRevocation)
	w.mustHaveStatus(t, good, pki.Status{State: pki.Good, Version: 3})
	w.mustHaveStatus(t, records[7:8], pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	w.mustHaveStatus(t, records[100:101], pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 3})
}

func compromiseMany(t *testing.T, w *world) {
	key := w.key()
	records := w.issueMany(t, key)
	result := w.changeMany(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: records[1].Ref})
	if result.BulkRevocation == 0 || len(result.Changed) != 1 {
		t.Fatalf("the result is %+v, want one change and a bulk revocation", result)
	}
	mustRefuse(t, w.keyRefusal(t, key, records[0].Identity), pki.RuleKeyCompromised)
	revoked := pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: w.now, Version: 2}
	w.mustHaveStatus(t, records[1:], revoked)
	mustEqual(t, "the number of other certificates", w.notifyBulk(t, result.BulkRevocation).Total, len(records)-2)
	w.applyBulk(t, result.BulkRevocation)
	w.mustHaveStatus(t, records[1:], revoked)
	w.mustHaveStatus(t, records[:1], pki.Status{State: pki.Good, Version: 1})
	again := w.mustChangeNothing(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: key})
	mustEqual(t, "the number of statuses that a repeat returns", len(again.Unchanged), len(records)-1)
	mustEqual(t, "the bulk revocation of the repeat", again.BulkRevocation, 0)
}

// renewDuringHold renews certificates while a suspension and a resumption are not applied to the records. Reads and
// guards must use the status and version after both.
func renewDuringHold(t *testing.T, w *world) {
	records := w.issueMany(t, pki.KeyHash{})
	id := records[0].Identity
	held := w.changeMany(t, revocation.Change{Action: hold, Identity: id, State: pki.Suspended})
	r := w.record(t, id)
	r.Guard.Predecessor = records[3].Ref
	mustRefuse(t, w.commit(t, r), pki.RuleRevoked)
	unheld := w.changeMany(t, revocation.Change{Action: unhold, Identity: id})
	st := w.issuanceState(t, ra.IssuanceQuery{Identity: id, Predecessor: records[3].Ref, Request: w.requestID(t), Key: w.key()})
	mustEqual(t, "the predecessor", st.Predecessor.Status, pki.Status{State: pki.Good, Version: 3})
	r = w.superseding(t, records[3], w.key())
	w.issue(t, r)
	want := pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 4}
	w.mustHaveStatus(t, records[3:4], want)
	w.applyBulk(t, held.BulkRevocation)
	w.applyBulk(t, unheld.BulkRevocation)
	w.mustHaveStatus(t, records[3:4], want)
}

// holdDuringBulk holds a certificate while bulk revocations are not applied to its record. The store must refuse until
// they are.
func holdDuringBulk(t *testing.T, w *world) {
	records := w.issueMany(t, pki.KeyHash{})
	held := w.changeMany(t, revocation.Change{Action: hold, Identity: records[0].Identity, State: pki.Suspended}).BulkRevocation
	unheld := w.changeMany(t, revocation.Change{Action: unhold, Identity: records[0].Identity}).BulkRevocation
	_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: hold, Certificate: records[0].Ref, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleOverloaded)
	w.applyBulk(t, held)
	w.applyBulk(t, unheld)
	w.apply(t, revocation.Change{Action: hold, Certificate: records[0].Ref})
}

// clockAheadOfAge makes changes with a clock 14 hours ahead of the age of the records. They must concern the
// certificates that expire after that age, and no others.
func clockAheadOfAge(t *testing.T, w *world) {
	old := w.enrollNew(t)
	w.now = old.NotAfter.Add(time.Minute)
	w.advanceAge(t)
	r := w.record(t, old.Identity)
	r.KeyHash, r.Guard.Key = old.KeyHash, old.KeyHash
	w.issue(t, r)
	w.now = w.now.Add(14 * time.Hour)
	n, err := w.Revocation.CountBulk(context.Background(), revocation.BulkRequest{
		Action: revoke, Selection: pki.Selection{Identity: old.Identity}, Actor: operator, At: w.now,
	})
	must(t, err)
	mustEqual(t, "the count", n, revocation.Affected{Expired: 1})
	changed := w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	if len(changed) != 1 || changed[0].Ref != r.Ref {
		t.Errorf("the change concerned %v, want the certificate that expires after the age of the records", changed)
	}
	if changed := w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: r.KeyHash}); len(changed) != 1 {
		t.Errorf("the change of the key concerned %v, want one certificate", changed)
	}
}

// clockAheadWithoutAge retires an identity with a clock 14 hours ahead, before the records have an age. All
// certificates must be revoked.
func clockAheadWithoutAge(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.now = r.NotAfter.Add(14 * time.Hour)
	changed := w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired})
	if len(changed) != 1 {
		t.Errorf("before the records have an age, the change concerned %v, want all certificates", changed)
	}
}

// renewalIsFoundByKey finds the newest good certificate with the key of a renewal.
func renewalIsFoundByKey(t *testing.T, w *world) {
	old, key := w.enrollNew(t), w.key()
	q := ra.IssuanceQuery{Identity: old.Identity, Predecessor: old.Ref, Request: w.requestID(t), Key: key}
	find := func(want *ca.Record) {
		t.Helper()
		a, err := w.RA.Renewed(context.Background(), q, w.now)
		must(t, err)
		if (a == nil) != (want == nil) || want != nil && (a.Certificate.Ref != want.Ref || a.Key != key) {
			t.Errorf("found %+v, want %+v", a, want)
		}
	}
	find(nil)
	first := w.renew(t, old, key)
	find(&first)
	second := w.record(t, old.Identity)
	second.KeyHash, second.Guard.Key = key, key
	w.issue(t, second)
	find(&second)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: second.Ref})
	find(&first)
	w.now = first.NotAfter
	find(nil)
}

func countUnexpired(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.issueCertificates(t, r.Identity, 4)
	for at, want := range map[time.Time]int{w.now: 3, r.NotAfter.Add(-time.Millisecond): 3, r.NotAfter: 0} {
		st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: r.Identity, At: at, MaxUnexpired: 3})
		must(t, err)
		mustEqual(t, "the number of unexpired certificates", st.Unexpired, want)
	}
}

// stateOfCaller checks that IssuanceState returns the state of the caller, also if the identity is not registered.
func stateOfCaller(t *testing.T, w *world) {
	caller := w.enrollNew(t).Identity
	for identity, rule := range map[pki.SPIFFEID]pki.Rule{w.enrollNew(t).Identity: "", w.newIdentity(t).ID: pki.RuleIdentity} {
		for c, want := range map[pki.SPIFFEID]pki.IdentityState{caller: pki.Enrolled, {}: 0, w.newIdentity(t).ID: 0} {
			st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: identity, Caller: c})
			if rule == "" {
				must(t, err)
			} else {
				mustRefuse(t, err, rule)
			}
			mustEqual(t, "the state of the caller", st.Caller.State, want)
		}
	}
}
