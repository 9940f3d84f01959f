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

const (
	hold   = revocation.Hold
	unhold = revocation.Unhold
	revoke = revocation.Revoke
	retire = revocation.Revoke // with the state retired
)

// step is a change of a certificate, and the expected result.
type step struct {
	action  revocation.Action
	reason  pki.Reason
	refused pki.Rule // empty if the change is accepted
	changed bool
	want    pki.Status // without the version
}

func testChanges(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	first, second := w.now, w.now.Add(time.Minute) // the times of the first and second step
	good := pki.Status{State: pki.Good}
	held := func(at time.Time) pki.Status {
		return pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: at}
	}
	revoked := func(reason pki.Reason, at time.Time) pki.Status {
		return pki.Status{State: pki.Revoked, Reason: reason, RevokedAt: at}
	}
	for name, steps := range map[string][]step{
		"revoke":                                 {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}},
		"revoke twice":                           {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}, {revoke, pki.Superseded, "", false, revoked(pki.Superseded, first)}},
		"revoke for another reason":              {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}, {revoke, pki.PrivilegeWithdrawn, pki.RuleAlreadyRevoked, false, revoked(pki.Superseded, first)}},
		"revoke without the reason":              {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}, {revoke, pki.Unspecified, pki.RuleAlreadyRevoked, false, revoked(pki.Superseded, first)}},
		"upgrade to keyCompromise":               {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}, {revoke, pki.KeyCompromise, "", true, revoked(pki.KeyCompromise, first)}},
		"upgrade from unspecified":               {{revoke, pki.Unspecified, "", true, revoked(pki.Unspecified, first)}, {revoke, pki.KeyCompromise, "", true, revoked(pki.KeyCompromise, first)}},
		"no downgrade of keyCompromise":          {{revoke, pki.KeyCompromise, "", true, revoked(pki.KeyCompromise, first)}, {revoke, pki.Superseded, pki.RuleAlreadyRevoked, false, revoked(pki.KeyCompromise, first)}},
		"keyCompromise twice":                    {{revoke, pki.KeyCompromise, "", true, revoked(pki.KeyCompromise, first)}, {revoke, pki.KeyCompromise, "", false, revoked(pki.KeyCompromise, first)}},
		"no unhold after a revocation":           {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}, {unhold, 0, pki.RuleAlreadyRevoked, false, revoked(pki.Superseded, first)}},
		"no hold after a revocation":             {{revoke, pki.Superseded, "", true, revoked(pki.Superseded, first)}, {hold, pki.CertificateHold, pki.RuleAlreadyRevoked, false, revoked(pki.Superseded, first)}},
		"hold":                                   {{hold, pki.CertificateHold, "", true, held(first)}},
		"hold twice":                             {{hold, pki.CertificateHold, "", true, held(first)}, {hold, pki.CertificateHold, "", false, held(first)}},
		"hold and unhold":                        {{hold, pki.CertificateHold, "", true, held(first)}, {unhold, 0, "", true, good}},
		"unhold a good certificate":              {{unhold, 0, "", false, good}},
		"hold, then revoke":                      {{hold, pki.CertificateHold, "", true, held(first)}, {revoke, pki.Superseded, "", true, revoked(pki.Superseded, second)}},
		"certificateHold is no reason to revoke": {{revoke, pki.CertificateHold, pki.RuleReason, false, good}},
		"unknown action":                         {{unhold + 1, 0, pki.RuleRequest, false, good}},
		"hold again": {
			{hold, pki.CertificateHold, "", true, held(first)}, {unhold, 0, "", true, good},
			{hold, pki.CertificateHold, "", true, held(second.Add(time.Minute))},
		},
	} {
		t.Run(name, func(t *testing.T) { applySteps(t, w, steps) })
	}
	t.Run("an unknown certificate", func(t *testing.T) { changeUnknown(t, w) })
	t.Run("an undelivered certificate", func(t *testing.T) { changeUndelivered(t, w) })
	t.Run("an expired certificate", func(t *testing.T) { changeExpired(t, w) })
	t.Run("a key with several certificates", func(t *testing.T) { compromiseSharedKey(t, w) })
}

// applySteps applies steps, a minute apart. After each it checks the results of the store's reads.
func applySteps(t *testing.T, w *world, steps []step) {
	r := w.enrollNew(t)
	version := uint64(1)
	for i, s := range steps {
		logged := len(w.entries(t))
		at := w.now.Add(time.Duration(i) * time.Minute).Add(123 * time.Millisecond)
		changes, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: s.action, Reason: s.reason, Certificate: r.Ref, Actor: operator, At: at})
		if s.refused != "" {
			mustRefuse(t, err, s.refused)
		} else {
			must(t, err)
		}
		want := s.want
		if s.changed {
			version++
		}
		want.Version = version
		wantChanges := []pki.StatusChange{{Ref: r.Ref, NotAfter: r.NotAfter, Status: want}}
		if s.refused != "" {
			wantChanges = nil
		}
		mustEqual(t, "the changes", changes.All(), wantChanges)
		mustEqual(t, "the status", w.readCertificate(t, r.Ref).Status, want)
		all := w.entries(t)
		if !s.changed {
			mustEqual(t, "the number of log entries", len(all), logged)
			continue
		}
		e := all[len(all)-1]
		mustEqual(t, "the logged changes", e.Changes, wantChanges)
		wantAction := map[revocation.Action]translog.Action{
			hold: translog.CertificateHeld, unhold: translog.CertificateUnheld, revoke: translog.CertificateRevoked}[s.action]
		if len(all) != logged+1 || e.Action != wantAction || e.Actor != operator || e.Identity != r.Identity || !e.Time.Equal(at) {
			t.Errorf("%d log entries, the last one %+v", len(all)-logged, e)
		}
	}
	if id := w.readIdentity(t, r.Identity); id.State != pki.Enrolled || id.Revision != 2 {
		t.Errorf("after changes of a certificate its identity is %v in revision %d", id.State, id.Revision)
	}
}

// compromiseSharedKey revokes one of several certificates with the same key for keyCompromise. All certificates of the
// key must be revoked, and no others.
func compromiseSharedKey(t *testing.T, w *world) {
	first := w.enrollNew(t)
	renewed, otherKey := w.record(t, first.Identity), w.record(t, first.Identity)
	renewed.KeyHash, renewed.Guard.Key = first.KeyHash, first.KeyHash
	w.issue(t, renewed)
	w.issue(t, otherKey)
	superseded := w.record(t, first.Identity)
	superseded.KeyHash, superseded.Guard.Key = first.KeyHash, first.KeyHash
	w.issue(t, superseded)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: superseded.Ref})

	changed := w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: first.Ref})
	if len(changed) != 3 {
		t.Errorf("the compromise changed %d certificates, want the three of the key", len(changed))
	}
	for _, r := range []ca.Record{first, renewed, superseded} {
		if s := w.readCertificate(t, r.Ref).Status; s.State != pki.Revoked || s.Reason != pki.KeyCompromise {
			t.Errorf("certificate %s of the key is %v (%v)", r.Ref.Serial, s.State, s.Reason)
		}
	}
	w.mustHaveStatus(t, []ca.Record{otherKey}, pki.Status{State: pki.Good, Version: 1})
	if e := w.lastEntry(t); len(e.Changes) != 3 {
		t.Errorf("the log entry has %d changes", len(e.Changes))
	}
}

func changeUnknown(t *testing.T, w *world) {
	r := w.enrollNew(t)
	for _, ref := range []pki.CertRef{{Issuer: issuerA, Serial: w.serial(t)}, {Issuer: issuerB, Serial: r.Ref.Serial}} {
		_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: revoke, Certificate: ref, Actor: operator, At: w.now})
		mustNotFind(t, err)
	}
	_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: revoke, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleRequest)
	_, err = w.Statuses.Apply(context.Background(), revocation.Change{Action: revoke, Certificate: r.Ref, Identity: r.Identity, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleRequest)
}

func changeUndelivered(t *testing.T, w *world) {
	r := w.abandon(t)
	if changes := w.apply(t, revocation.Change{Action: revoke, Reason: pki.Unspecified, Certificate: r.Ref}); len(changes) != 0 {
		t.Errorf("revoking an undelivered certificate changed %v", changes)
	}
	for _, action := range []revocation.Action{hold, unhold} {
		_, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: action, Certificate: r.Ref, Actor: operator, At: w.now})
		mustRefuse(t, err, pki.RuleAlreadyRevoked)
	}
}

func changeExpired(t *testing.T, w *world) {
	r := w.enrollNew(t)
	at := r.NotAfter.Add(time.Hour)
	changes, err := w.Statuses.Apply(context.Background(), revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: r.Ref, Actor: operator, At: at})
	must(t, err)
	if len(changes.Changed) != 1 {
		t.Errorf("revoking an expired certificate changed %v", changes)
	}
	mustRefuse(t, w.keyRefusal(t, r.KeyHash, r.Identity), pki.RuleKeyCompromised)
}
