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

func testMany(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"retire an identity with many certificates":  retireMany,
		"suspend and resume one before the steps":    suspendMany,
		"a key with many certificates":               compromiseMany,
		"a renewal of what is held and released":     renewHeld,
		"what the clock has hidden":                  reachBehindClock,
		"what the clock has hidden, before any age":  reachWithoutAge,
		"a renewal that is found again by its key":   foundRenewal,
		"how many certificates have not ended":       countUnexpired,
		"a certificate beside what is held and free": holdBesideMany,
		"a repeated request about many certificates": repeatMany,
	})
}

// manyCertificates is more than one transaction changes.
const manyCertificates = 150

// many issues manyCertificates certificates to one identity, in one batch.
func (w *world) many(t *testing.T, key pki.KeyHash) []ca.Record {
	t.Helper()
	first := w.issued(t)
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

func (w *world) orderMany(t *testing.T, o revocation.Change) revocation.ChangeResult {
	t.Helper()
	o.Actor, o.At = operator, w.now
	out, err := w.Orders.Apply(context.Background(), o)
	must(t, err)
	return out
}

// mustChangeNothing repeats an order about many certificates: it leaves no set of its own and no log entry.
func (w *world) mustChangeNothing(t *testing.T, o revocation.Change) revocation.ChangeResult {
	t.Helper()
	logged := len(w.entries(t))
	again := w.orderMany(t, o)
	mustEqual(t, "how many change again", len(again.Changed), 0)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
	return again
}

// tellMany has a set be counted, as an authority does before it answers.
func (w *world) tellMany(t *testing.T, id int64) revocation.BulkRevocation {
	t.Helper()
	told := 0
	set, err := w.Revocation.NotifyBulk(context.Background(), id, pki.StatusObserverFunc(func(c []pki.StatusChange) { told += len(c) }))
	must(t, err)
	if told < set.Total {
		t.Errorf("%d statuses were told of a set of %d", told, set.Total)
	}
	return set
}

// The identity is retired at once, and so are all of its certificates, whatever their records say.
func retireMany(t *testing.T, w *world) {
	records := w.many(t, pki.KeyHash{})
	id, late := records[0].Identity, w.record(t, records[0].Identity)
	late.Guard.Identity, late.Guard.Revision = id, w.stateOf(t, id).Revision
	intent := w.writeIntent(t, late)
	out := w.orderMany(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: id, State: pki.Retired})
	if out.BulkRevocation == 0 || len(out.All()) != 0 {
		t.Fatalf("the order came to %+v, want a set", out)
	}
	w.mustStand(t, id, pki.Retired, 3)
	mustRefuse(t, w.commitBatch(t, intent, late)[0], pki.RuleIdentityState)
	if e := w.entries(t); e[len(e)-2].Action != translog.IdentityRetired || e[len(e)-2].Facts()["bulk_revocation"] != "1" {
		t.Errorf("log entries %+v", e[len(e)-2:])
	}
	revoked := pki.Status{State: pki.Revoked, Reason: pki.CessationOfOperation, RevokedAt: w.now, Version: 2}
	w.mustAll(t, records, revoked)
	if set := w.tellMany(t, out.BulkRevocation); set.Total != len(records) || set.Expired != 0 || set.Done {
		t.Errorf("the set is %+v", set)
	}
	retire := revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: id, State: pki.Retired}
	mustEqual(t, "the set of the repeated order", w.mustChangeNothing(t, retire).BulkRevocation, out.BulkRevocation)
	_, _, err := w.Revocation.ApplyBulk(context.Background(), out.BulkRevocation, 40, w.now)
	must(t, err)
	w.reopen(t)
	w.mustAll(t, records, revoked)
	w.follow(t, out.BulkRevocation)
	w.mustAll(t, records, revoked)
	mustEqual(t, "how many statuses it returns later", len(w.mustChangeNothing(t, retire).Unchanged), len(records))
}

// A repeat of a request about many certificates reads none of them: each step has told the statuses.
func repeatMany(t *testing.T, w *world) {
	id := w.many(t, pki.KeyHash{})[0].Identity
	by := callerOf(w.issued(t))
	retire := revocation.Change{
		Action: revoke, Reason: pki.CessationOfOperation, Identity: id, State: pki.Retired, Actor: by.WithRequest(w.newRequest(t, "retire")), At: w.now,
	}
	first, err := w.Orders.Apply(t.Context(), retire)
	must(t, err)
	w.followAll(t)
	again, err := w.Orders.Apply(t.Context(), retire)
	must(t, err)
	mustEqual(t, "the set of the repeat", again.BulkRevocation, first.BulkRevocation)
	mustEqual(t, "how many statuses the repeat returns", len(again.All()), 0)

	o := w.batch("", pki.KeyCompromise)
	o.Selection, o.Actor = pki.Selection{Identity: id}, by.WithRequest(w.newRequest(t, "revoke"))
	set, _, err := w.Revocation.CreateBulk(t.Context(), o)
	must(t, err)
	w.followAll(t)
	repeated, standing, err := w.Revocation.CreateBulk(t.Context(), o)
	must(t, err)
	mustEqual(t, "the ID of the repeated set", repeated.ID, set.ID)
	mustEqual(t, "how many statuses its repeat returns", len(standing), 0)
}

// A resumption that comes before the records say that they are on hold comes after them.
func suspendMany(t *testing.T, w *world) {
	records := w.many(t, pki.KeyHash{})
	id := records[0].Identity
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: records[7].Ref})
	suspended := w.orderMany(t, revocation.Change{Action: hold, Identity: id, State: pki.Suspended})
	rest := append(append([]ca.Record{}, records[:7]...), records[8:]...)
	w.mustAll(t, rest, pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: w.now, Version: 2})
	mustEqual(t, "how many are held", w.tellMany(t, suspended.BulkRevocation).Total, len(rest))
	_, _, err := w.Revocation.ApplyBulk(context.Background(), suspended.BulkRevocation, 40, w.now)
	must(t, err)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: records[100].Ref}) // whose record has not followed
	resumed := w.orderMany(t, revocation.Change{Action: release, Identity: id})
	w.mustStand(t, id, pki.Enrolled, 4)
	good := append(append([]ca.Record{}, rest[:99]...), rest[100:]...)
	w.mustAll(t, good, pki.Status{State: pki.Good, Version: 3})
	mustEqual(t, "how many are released", w.tellMany(t, resumed.BulkRevocation).Total, len(good))
	w.follow(t, suspended.BulkRevocation)
	w.mustAll(t, good, pki.Status{State: pki.Good, Version: 3})
	w.follow(t, resumed.BulkRevocation)
	w.mustAll(t, good, pki.Status{State: pki.Good, Version: 3})
	w.mustAll(t, records[7:8], pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	w.mustAll(t, records[100:101], pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 3})
}

func compromiseMany(t *testing.T, w *world) {
	key := w.key()
	records := w.many(t, key)
	out := w.orderMany(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: records[1].Ref})
	if out.BulkRevocation == 0 || len(out.Changed) != 1 {
		t.Fatalf("the order came to %+v, want one certificate and a set", out)
	}
	mustRefuse(t, w.checkKey(t, key, records[0].Identity), pki.RuleKeyCompromised)
	revoked := pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: w.now, Version: 2}
	w.mustAll(t, records[1:], revoked)
	mustEqual(t, "how many follow", w.tellMany(t, out.BulkRevocation).Total, len(records)-2)
	w.follow(t, out.BulkRevocation)
	w.mustAll(t, records[1:], revoked)
	w.mustAll(t, records[:1], pki.Status{State: pki.Good, Version: 1})
	again := w.mustChangeNothing(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: key})
	mustEqual(t, "how many statuses it returns again", len(again.Unchanged), len(records)-1)
	mustEqual(t, "its set", again.BulkRevocation, 0)
}

// Renewals and their guards see what is held and released, and count its versions.
func renewHeld(t *testing.T, w *world) {
	records := w.many(t, pki.KeyHash{})
	id := records[0].Identity
	held := w.orderMany(t, revocation.Change{Action: hold, Identity: id, State: pki.Suspended})
	r := w.record(t, id)
	r.Guard.Predecessor = records[3].Ref
	mustRefuse(t, w.try(t, r), pki.RuleRevoked)
	released := w.orderMany(t, revocation.Change{Action: release, Identity: id})
	st := w.standing(t, ra.IssuanceQuery{Identity: id, Predecessor: records[3].Ref, Request: w.request(t), Key: w.key()})
	mustEqual(t, "the predecessor", st.Predecessor.Status, pki.Status{State: pki.Good, Version: 3})
	r = w.superseding(t, records[3], w.key())
	w.issue(t, r)
	want := pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 4}
	w.mustAll(t, records[3:4], want)
	w.follow(t, held.BulkRevocation)
	w.follow(t, released.BulkRevocation)
	w.mustAll(t, records[3:4], want)
}

func holdBesideMany(t *testing.T, w *world) {
	records := w.many(t, pki.KeyHash{})
	set := w.orderMany(t, revocation.Change{Action: hold, Identity: records[0].Identity, State: pki.Suspended}).BulkRevocation
	released := w.orderMany(t, revocation.Change{Action: release, Identity: records[0].Identity}).BulkRevocation
	_, err := w.Orders.Apply(context.Background(), revocation.Change{Action: hold, Certificate: records[0].Ref, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleOverloaded)
	w.follow(t, set)
	w.follow(t, released)
	w.apply(t, revocation.Change{Action: hold, Certificate: records[0].Ref})
}

// A clock that is ahead of the records' age hides nothing that has not ended, and what ended before that age is passed over.
func reachBehindClock(t *testing.T, w *world) {
	old := w.issued(t)
	w.now = old.NotAfter.Add(time.Minute)
	w.grow(t)
	r := w.record(t, old.Identity)
	r.KeyHash, r.Guard.Key = old.KeyHash, old.KeyHash
	w.issue(t, r)
	w.now = w.now.Add(14 * time.Hour)
	n, err := w.Revocation.CountBulk(context.Background(), revocation.BulkRequest{
		Action: revoke, Selection: pki.Selection{Identity: old.Identity}, Actor: operator, At: w.now,
	})
	must(t, err)
	mustEqual(t, "what is counted", n, revocation.Affected{Expired: 1})
	changed := w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	if len(changed) != 1 || changed[0].Ref != r.Ref {
		t.Errorf("the order changed %v, want the certificate that ends after the records' age", changed)
	}
	if changed := w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: r.KeyHash}); len(changed) != 1 {
		t.Errorf("the order about the key changed %v, want one certificate", changed)
	}
}

func reachWithoutAge(t *testing.T, w *world) {
	r := w.issued(t)
	w.now = r.NotAfter.Add(14 * time.Hour)
	changed := w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired})
	if len(changed) != 1 {
		t.Errorf("before there is an age, the order changed %v, want all there is", changed)
	}
}

func foundRenewal(t *testing.T, w *world) {
	old, key := w.issued(t), w.key()
	q := ra.IssuanceQuery{Identity: old.Identity, Predecessor: old.Ref, Request: w.request(t), Key: key}
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
	r := w.issued(t)
	w.certificates(t, r.Identity, 4)
	for at, want := range map[time.Time]int{w.now: 3, r.NotAfter.Add(-time.Millisecond): 3, r.NotAfter: 0} {
		n, err := w.RA.Unexpired(context.Background(), r.Identity, at, 3)
		must(t, err)
		mustEqual(t, "how many have not ended", n, want)
	}
	_, err := w.RA.Unexpired(context.Background(), w.newIdentity(t).ID, w.now, 3)
	mustRefuse(t, err, pki.RuleIdentity)
}
