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

func testIdentityChanges(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"suspend and resume":                 suspendAndResume,
		"suspend a registered identity":      suspendRegistered,
		"retire":                             retireIdentity,
		"retire a suspended identity":        retireSuspended,
		"replace keeps the identity":         replaceKeepsIdentity,
		"compromise an identity":             compromiseIdentity,
		"expired certificates are not held":  expiredAreNotHeld,
		"an identity without certificates":   changeWithoutCertificates,
		"no unhold while suspended":          noUnholdWhileSuspended,
		"one log entry for all certificates": oneLogEntry,
		"a suspension is durable":            suspensionIsDurable,
	})
}

// issueCertificates issues n certificates to an identity.
func (w *world) issueCertificates(t *testing.T, id pki.SPIFFEID, n int) []ca.Record {
	t.Helper()
	var records []ca.Record
	for range n {
		records = append(records, w.issue(t, w.record(t, id)))
	}
	return records
}

func (w *world) mustHaveStatus(t *testing.T, records []ca.Record, want pki.Status) {
	t.Helper()
	for _, r := range records {
		mustEqual(t, "the status", w.readCertificate(t, r.Ref).Status, want)
	}
}

func (w *world) mustHaveState(t *testing.T, id pki.SPIFFEID, state pki.IdentityState, revision uint64) {
	t.Helper()
	if have := w.readIdentity(t, id); have.State != state || have.Revision != revision {
		t.Errorf("%s is %v in revision %d, want %v in %d", id, have.State, have.Revision, state, revision)
	}
}

func suspendAndResume(t *testing.T, w *world) {
	first, other := w.enrollNew(t), w.enrollNew(t)
	id := first.Identity
	records := append(w.issueCertificates(t, id, 2), first)
	revokedBefore := w.issueCertificates(t, id, 1)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revokedBefore[0].Ref})

	suspend := revocation.Change{Action: hold, Reason: pki.CertificateHold, Identity: id, State: pki.Suspended}
	if changes := w.apply(t, suspend); len(changes) != 3 {
		t.Errorf("suspending changed %d certificates", len(changes))
	}
	w.mustHaveState(t, id, pki.Suspended, 3)
	w.mustHaveStatus(t, records, pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: w.now, Version: 2})
	if e := w.lastEntry(t); e.Action != translog.IdentitySuspended || len(e.Changes) != 3 || e.Identity != id {
		t.Errorf("log entry %+v", e)
	}
	if changes := w.apply(t, suspend); len(changes) != 0 {
		t.Errorf("suspending again changed %v", changes)
	}
	w.mustHaveState(t, id, pki.Suspended, 3)

	resume := revocation.Change{Action: unhold, Identity: id}
	if changes := w.apply(t, resume); len(changes) != 3 {
		t.Errorf("resuming changed %d certificates", len(changes))
	}
	w.mustHaveState(t, id, pki.Enrolled, 4)
	w.mustHaveStatus(t, records, pki.Status{State: pki.Good, Version: 3})
	w.mustHaveStatus(t, revokedBefore, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	if e := w.lastEntry(t); e.Action != translog.IdentityResumed {
		t.Errorf("log entry %+v", e)
	}
	_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: unhold, Identity: id, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleIdentityState)
	w.mustHaveStatus(t, []ca.Record{other}, pki.Status{State: pki.Good, Version: 1})
	w.mustHaveState(t, other.Identity, pki.Enrolled, 2)
}

func suspendRegistered(t *testing.T, w *world) {
	id := w.register(t).ID
	if changes := w.apply(t, revocation.Change{Action: hold, Identity: id, State: pki.Suspended}); len(changes) != 0 {
		t.Errorf("suspending an identity without certificates changed %v", changes)
	}
	w.mustHaveState(t, id, pki.Suspended, 2)
	w.apply(t, revocation.Change{Action: unhold, Identity: id})
	w.mustHaveState(t, id, pki.Registered, 3)
}

func retireIdentity(t *testing.T, w *world) {
	r := w.enrollNew(t)
	change := revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired}
	w.apply(t, change)
	w.mustHaveState(t, r.Identity, pki.Retired, 3)
	w.mustHaveStatus(t, []ca.Record{r}, pki.Status{State: pki.Revoked, Reason: pki.CessationOfOperation, RevokedAt: w.now, Version: 2})
	if e := w.lastEntry(t); e.Action != translog.IdentityRetired {
		t.Errorf("log entry %+v", e)
	}
	logged := len(w.entries(t))
	if changes := w.apply(t, change); len(changes) != 0 {
		t.Errorf("retiring again changed %v", changes)
	}
	for _, change := range []revocation.Change{
		{Action: hold, Reason: pki.CertificateHold, Identity: r.Identity, State: pki.Suspended},
		{Action: unhold, Identity: r.Identity},
	} {
		change.Actor, change.At = operator, w.now
		_, err := w.Statuses.Apply(context.Background(), change)
		mustRefuse(t, err, pki.RuleIdentityState)
	}
	w.mustHaveState(t, r.Identity, pki.Retired, 3)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
}

func retireSuspended(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired})
	w.mustHaveState(t, r.Identity, pki.Retired, 4)
	w.mustHaveStatus(t, []ca.Record{r}, pki.Status{State: pki.Revoked, Reason: pki.CessationOfOperation, RevokedAt: w.now, Version: 3})
}

func replaceKeepsIdentity(t *testing.T, w *world) {
	r := w.enrollNew(t)
	change := revocation.Change{Action: revoke, Reason: pki.Superseded, Identity: r.Identity}
	if changes := w.apply(t, change); len(changes) != 1 {
		t.Errorf("replacing changed %v", changes)
	}
	w.mustHaveState(t, r.Identity, pki.Enrolled, 2) // decisions for this revision remain valid
	if e := w.lastEntry(t); e.Action != translog.IdentityReplaced {
		t.Errorf("log entry %+v", e)
	}
	next := w.issue(t, w.enrollment(t, w.readIdentity(t, r.Identity)))
	w.mustHaveStatus(t, []ca.Record{next}, pki.Status{State: pki.Good, Version: 1})
}

func compromiseIdentity(t *testing.T, w *world) {
	before := w.enrollNew(t)
	id := before.Identity
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: before.Ref})
	now := w.issueCertificates(t, id, 2)
	changes := w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Identity: id, State: pki.Retired})
	if len(changes) != 3 {
		t.Errorf("the compromise changed %d certificates, want 3 including the one revoked for another reason", len(changes))
	}
	for _, r := range append(now, before) {
		if s := w.readCertificate(t, r.Ref).Status; s.Reason != pki.KeyCompromise {
			t.Errorf("certificate %s is revoked for %v", r.Ref.Serial, s.Reason)
		}
		mustRefuse(t, w.keyRefusal(t, r.KeyHash, id), pki.RuleKeyCompromised)
	}
}

func expiredAreNotHeld(t *testing.T, w *world) {
	r := w.enrollNew(t)
	last := w.record(t, r.Identity)
	last.NotAfter = r.NotAfter.Add(2 * time.Hour)
	w.issue(t, last)
	w.now = last.NotAfter // last is in its last second, r has expired
	w.advanceAge(t)
	changes := w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	if len(changes) != 1 || changes[0].Ref != last.Ref {
		t.Errorf("suspending changed %v, want the unexpired certificate", changes)
	}
	w.mustHaveStatus(t, []ca.Record{r}, pki.Status{State: pki.Good, Version: 1})
}

func changeWithoutCertificates(t *testing.T, w *world) {
	id := w.register(t).ID
	logged := len(w.entries(t))
	if changes := w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Identity: id}); len(changes) != 0 {
		t.Errorf("replacing nothing changed %v", changes)
	}
	w.mustHaveState(t, id, pki.Registered, 1)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
	_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: revoke, Identity: w.newIdentity(t).ID, Actor: operator, At: w.now})
	mustNotFind(t, err)
}

func noUnholdWhileSuspended(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: unhold, Certificate: r.Ref, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleIdentityState)
	if s := w.readCertificate(t, r.Ref).Status; s.State != pki.Hold {
		t.Errorf("a suspended identity has a certificate that is %v", s.State)
	}
}

func oneLogEntry(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.issueCertificates(t, r.Identity, 5)
	logged := len(w.entries(t))
	changes := w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged+1)
	mustEqual(t, "the logged changes", w.lastEntry(t).Changes, changes)
}

func suspensionIsDurable(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.apply(t, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended})
	w.reopen(t)
	w.mustHaveState(t, r.Identity, pki.Suspended, 3)
	w.begin(t)
	w.apply(t, revocation.Change{Action: unhold, Identity: r.Identity})
	w.mustHaveState(t, r.Identity, pki.Enrolled, 4)
}
