package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testIdentityOrders(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"suspend and resume":                  suspendAndResume,
		"suspend one that is registered":      suspendRegistered,
		"retire":                              retireIdentity,
		"retire one that is suspended":        retireSuspended,
		"replace leaves the identity":         replaceLeavesIdentity,
		"compromise of an identity":           compromiseIdentity,
		"expired certificates stay":           expiredStay,
		"an order without certificates":       orderWithoutCertificates,
		"no release beside a suspension":      noReleaseBesideSuspension,
		"one entry, however many":             oneEntry,
		"a suspension lasts beyond reopening": suspensionLasts,
	})
}

// certificates issues some more certificates to an identity.
func (w *world) certificates(t *testing.T, id pki.SPIFFEID, n int) []ca.Record {
	t.Helper()
	var records []ca.Record
	for range n {
		records = append(records, w.issue(t, w.record(t, id)))
	}
	return records
}

func (w *world) mustAll(t *testing.T, records []ca.Record, want pki.Status) {
	t.Helper()
	for _, r := range records {
		mustEqual(t, "the status", w.certificate(t, r.Ref).Status, want)
	}
}

func (w *world) mustStand(t *testing.T, id pki.SPIFFEID, state pki.IdentityState, generation uint64) {
	t.Helper()
	if have := w.stateOf(t, id); have.State != state || have.Revision != generation {
		t.Errorf("%s is %v in generation %d, want %v in %d", id, have.State, have.Revision, state, generation)
	}
}

func suspendAndResume(t *testing.T, w *world) {
	first, bystander := w.issued(t), w.issued(t)
	id := first.Identity
	records := append(w.certificates(t, id, 2), first)
	revokedBefore := w.certificates(t, id, 1)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revokedBefore[0].Ref})

	suspend := revocation.Change{Action: hold, Reason: pki.CertificateHold, Identity: id, State: pki.Suspended}
	if changes := w.apply(t, suspend); len(changes) != 3 {
		t.Errorf("suspending changed %d certificates", len(changes))
	}
	w.mustStand(t, id, pki.Suspended, 3)
	w.mustAll(t, records, pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: w.now, Version: 2})
	if e := w.lastEntry(t); e.Action != translog.IdentitySuspended || len(e.Changes) != 3 || e.Identity != id {
		t.Errorf("log entry %+v", e)
	}
	if changes := w.apply(t, suspend); len(changes) != 0 {
		t.Errorf("suspending again changed %v", changes)
	}
	w.mustStand(t, id, pki.Suspended, 3)

	resume := revocation.Change{Action: release, Identity: id}
	if changes := w.apply(t, resume); len(changes) != 3 {
		t.Errorf("resuming changed %d certificates", len(changes))
	}
	w.mustStand(t, id, pki.Enrolled, 4)
	w.mustAll(t, records, pki.Status{State: pki.Good, Version: 3})
	w.mustAll(t, revokedBefore, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	if e := w.lastEntry(t); e.Action != translog.IdentityResumed {
		t.Errorf("log entry %+v", e)
	}
	_, err := w.Orders.Apply(context.Background(), revocation.Change{Action: release, Identity: id, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleIdentityState)
	w.mustAll(t, []ca.Record{bystander}, pki.Status{State: pki.Good, Version: 1})
	w.mustStand(t, bystander.Identity, pki.Enrolled, 2)
}

func suspendRegistered(t *testing.T, w *world) {
	id := w.identity(t).ID
	if changes := w.apply(t, revocation.Change{Action: hold, Identity: id, State: pki.Suspended}); len(changes) != 0 {
		t.Errorf("suspending an identity without certificates changed %v", changes)
	}
	w.mustStand(t, id, pki.Suspended, 2)
	w.apply(t, revocation.Change{Action: release, Identity: id})
	w.mustStand(t, id, pki.Registered, 3)
}

func retireIdentity(t *testing.T, w *world) {
	r := w.issued(t)
	order := revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired}
	w.apply(t, order)
	w.mustStand(t, r.Identity, pki.Retired, 3)
	w.mustAll(t, []ca.Record{r}, pki.Status{State: pki.Revoked, Reason: pki.CessationOfOperation, RevokedAt: w.now, Version: 2})
	if e := w.lastEntry(t); e.Action != translog.IdentityRetired {
		t.Errorf("log entry %+v", e)
	}
	logged := len(w.entries(t))
	if changes := w.apply(t, order); len(changes) != 0 {
		t.Errorf("retiring again changed %v", changes)
	}
	for _, o := range []revocation.Change{
		{Action: hold, Reason: pki.CertificateHold, Identity: r.Identity, State: pki.Suspended},
		{Action: release, Identity: r.Identity},
	} {
		o.Actor, o.At = operator, w.now
		_, err := w.Orders.Apply(context.Background(), o)
		mustRefuse(t, err, pki.RuleIdentityState)
	}
	w.mustStand(t, r.Identity, pki.Retired, 3)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
}

func retireSuspended(t *testing.T, w *world) {
	r := w.issued(t)
	w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired})
	w.mustStand(t, r.Identity, pki.Retired, 4)
	w.mustAll(t, []ca.Record{r}, pki.Status{State: pki.Revoked, Reason: pki.CessationOfOperation, RevokedAt: w.now, Version: 3})
}

func replaceLeavesIdentity(t *testing.T, w *world) {
	r := w.issued(t)
	order := revocation.Change{Action: revoke, Reason: pki.Superseded, Identity: r.Identity}
	if changes := w.apply(t, order); len(changes) != 1 {
		t.Errorf("replacing changed %v", changes)
	}
	w.mustStand(t, r.Identity, pki.Enrolled, 2) // what was decided for it before still holds
	if e := w.lastEntry(t); e.Action != translog.IdentityReplaced {
		t.Errorf("log entry %+v", e)
	}
	next := w.issue(t, w.enrollment(t, w.stateOf(t, r.Identity)))
	w.mustAll(t, []ca.Record{next}, pki.Status{State: pki.Good, Version: 1})
}

func compromiseIdentity(t *testing.T, w *world) {
	before := w.issued(t)
	id := before.Identity
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: before.Ref})
	now := w.certificates(t, id, 2)
	changes := w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Identity: id, State: pki.Retired})
	if len(changes) != 3 {
		t.Errorf("the compromise changed %d certificates; what was revoked for another reason counts too", len(changes))
	}
	for _, r := range append(now, before) {
		if s := w.certificate(t, r.Ref).Status; s.Reason != pki.KeyCompromise {
			t.Errorf("certificate %s is revoked for %v", r.Ref.Serial, s.Reason)
		}
		mustRefuse(t, w.checkKey(t, r.KeyHash, id), pki.RuleKeyCompromised)
	}
}

func expiredStay(t *testing.T, w *world) {
	r := w.issued(t)
	last := w.record(t, r.Identity)
	last.NotAfter = r.NotAfter.Add(2 * time.Hour)
	w.issue(t, last)
	w.now = last.NotAfter // the last second of its life, beyond the first one's
	w.grow(t)
	changes := w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	if len(changes) != 1 || changes[0].Ref != last.Ref {
		t.Errorf("suspending changed %v, want the one that is not expired", changes)
	}
	w.mustAll(t, []ca.Record{r}, pki.Status{State: pki.Good, Version: 1})
}

func orderWithoutCertificates(t *testing.T, w *world) {
	id := w.identity(t).ID
	logged := len(w.entries(t))
	if changes := w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Identity: id}); len(changes) != 0 {
		t.Errorf("replacing nothing changed %v", changes)
	}
	w.mustStand(t, id, pki.Registered, 1)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
	_, err := w.Orders.Apply(context.Background(), revocation.Change{Action: revoke, Identity: w.newIdentity(t).ID, Actor: operator, At: w.now})
	mustMiss(t, err)
}

func noReleaseBesideSuspension(t *testing.T, w *world) {
	r := w.issued(t)
	w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	_, err := w.Orders.Apply(context.Background(), revocation.Change{Action: release, Certificate: r.Ref, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleIdentityState)
	if s := w.certificate(t, r.Ref).Status; s.State != pki.Hold {
		t.Errorf("a suspended identity has a certificate that is %v", s.State)
	}
}

func oneEntry(t *testing.T, w *world) {
	r := w.issued(t)
	w.certificates(t, r.Identity, 5)
	logged := len(w.entries(t))
	changes := w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged+1)
	mustEqual(t, "the logged changes", w.lastEntry(t).Changes, changes)
}

func suspensionLasts(t *testing.T, w *world) {
	r := w.issued(t)
	w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	w.reopen(t)
	w.mustStand(t, r.Identity, pki.Suspended, 3)
	w.begin(t)
	w.apply(t, revocation.Change{Action: release, Identity: r.Identity})
	w.mustStand(t, r.Identity, pki.Enrolled, 4)
}
