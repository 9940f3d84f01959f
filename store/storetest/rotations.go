package storetest

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/translog"
)

func testRotations(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"selections":                         rotationSelects,
		"certificates that are not affected": rotationLeavesOut,
		"progress":                           rotationProgresses,
		"the end":                            rotationEnds,
		"confirmation":                       rotationIsConfirmed,
		"the number of open ones is bounded": openRotationsAreBounded,
		"lists":                              listsRotations,
		"many certificates":                  rotationOfMany,
	})
}

// startRotation starts a rotation of the certificates that a selection matches, and confirms their number.
func (w *world) startRotation(t *testing.T, sel pki.Selection) rotation.Rotation {
	t.Helper()
	req := rotation.Request{Selection: sel, Over: time.Hour, Actor: operator, Comment: "old CA", At: w.now}
	n, err := w.Rotations.CountRotation(t.Context(), req)
	must(t, err)
	req.Confirm = n.Affected
	r, err := w.Rotations.StartRotation(t.Context(), req)
	must(t, err)
	mustEqual(t, "the rotation", r, rotation.Rotation{
		ID: r.ID, Affected: n.Affected,
		Request: rotation.Request{Selection: sel, Over: time.Hour, Actor: operator.Named(), Comment: "old CA", At: w.now},
	})
	return r
}

// members returns the certificates of a rotation that were not renewed.
func (w *world) members(t *testing.T, id int64) map[pki.CertRef]bool {
	t.Helper()
	members := map[pki.CertRef]bool{}
	must(t, w.Rotations.RotationMembers(t.Context(), id, func(refs []pki.CertRef) error {
		for _, ref := range refs {
			if members[ref] {
				t.Errorf("the certificate %s was visited twice", ref.Serial)
			}
			members[ref] = true
		}
		return nil
	}))
	return members
}

func (w *world) mustHaveMembers(t *testing.T, r rotation.Rotation, want ...ca.Record) {
	t.Helper()
	refs := map[pki.CertRef]bool{}
	for _, c := range want {
		refs[c.Ref] = true
	}
	mustEqual(t, "the certificates of the rotation", w.members(t, r.ID), refs)
	mustEqual(t, "their number", r.Affected, len(want))
}

func rotationSelects(t *testing.T, w *world) {
	other := w.enrollNew(t)
	labelled := w.issueLabelled(t, 2)
	w.now = w.now.Add(time.Minute)
	later := w.record(t, other.Identity)
	later.Profile, later.Ref.Issuer = "server", issuerB
	w.issue(t, later)
	for name, c := range map[string]struct {
		sel  pki.Selection
		want []ca.Record
	}{
		"label":               {pki.Selection{Label: pki.Label{Name: "batch", Value: "7"}}, labelled},
		"identity":            {pki.Selection{Identity: other.Identity}, []ca.Record{other, later}},
		"profile":             {pki.Selection{Profile: "server"}, []ca.Record{later}},
		"issuer":              {pki.Selection{Issuer: issuerB}, []ca.Record{later}},
		"key":                 {pki.Selection{Key: labelled[1].KeyHash}, labelled[1:]},
		"issued from":         {pki.Selection{IssuedFrom: w.now}, []ca.Record{later}},
		"issued until":        {pki.Selection{IssuedUntil: w.now}, []ca.Record{other, labelled[0], labelled[1]}},
		"identity and issuer": {pki.Selection{Identity: other.Identity, Issuer: issuerA}, []ca.Record{other}},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.startRotation(t, c.sel)
			w.mustHaveMembers(t, r, c.want...)
			w.endRotation(t, r.ID, rotation.Progress{})
		})
	}
	for _, sel := range []pki.Selection{{Identity: w.newIdentity(t).ID}, {Key: w.key()}, {Label: pki.Label{Name: "batch", Value: "8"}}} {
		_, err := w.Rotations.StartRotation(t.Context(), rotation.Request{Selection: sel, Over: time.Hour, Actor: operator, At: w.now})
		mustNotFind(t, err)
	}
}

// A rotation affects no certificate that is expired, revoked, renewed, never delivered, or issued later.
func rotationLeavesOut(t *testing.T, w *world) {
	id := w.newIdentity(t)
	id.Labels = map[string]string{"batch": "7"}
	id, err := w.RA.CreateIdentity(t.Context(), ra.Registration{Identity: id}, operator)
	must(t, err)
	expired := w.issue(t, w.record(t, id.ID))
	w.now = expired.NotAfter.Add(time.Second)
	renewed, revoked, held := w.issue(t, w.record(t, id.ID)), w.issue(t, w.record(t, id.ID)), w.issue(t, w.record(t, id.ID))
	sameKey := w.issue(t, w.record(t, id.ID))
	renewal, again := w.renew(t, renewed, w.key()), w.renew(t, sameKey, sameKey.KeyHash)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.PrivilegeWithdrawn, Certificate: revoked.Ref})
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.abandon(t)
	w.now = w.now.Add(time.Second)
	r := w.startRotation(t, pki.Selection{Label: pki.Label{Name: "batch", Value: "7"}})
	w.issue(t, w.record(t, id.ID))
	w.mustHaveMembers(t, r, held, renewal, again)
	w.reopen(t)
	w.mustHaveMembers(t, r, held, renewal, again)
}

func rotationProgresses(t *testing.T, w *world) {
	var records []ca.Record
	for range 5 {
		records = append(records, w.issueLabelled(t, 1)...)
	}
	r := w.startRotation(t, pki.Selection{Label: pki.Label{Name: "batch", Value: "7"}})
	progress := func(want rotation.Progress) {
		t.Helper()
		have, err := w.Rotations.RotationProgress(t.Context(), r.ID, w.now)
		must(t, err)
		mustEqual(t, "the progress", have, want)
	}
	progress(rotation.Progress{Due: 5})
	w.now = w.now.Add(time.Minute)
	w.renew(t, records[0], w.key())
	w.issue(t, w.record(t, records[1].Identity)) // with an issue request
	progress(rotation.Progress{Renewed: 2, Due: 3})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.PrivilegeWithdrawn, Certificate: records[2].Ref})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: records[0].Ref})
	progress(rotation.Progress{Renewed: 2, Due: 2})
	mustEqual(t, "the number of certificates that are gone", r.Gone(rotation.Progress{Renewed: 2, Due: 2}), 1)
	if members := w.members(t, r.ID); len(members) != 4 || members[records[0].Ref] {
		t.Errorf("after a renewal, the certificates are %v", members)
	}
	w.now = records[4].NotAfter.Add(time.Second)
	progress(rotation.Progress{Renewed: 2})
}

// endRotation stops a rotation.
func (w *world) endRotation(t *testing.T, id int64, final rotation.Progress) rotation.Rotation {
	t.Helper()
	r, err := w.Rotations.EndRotation(t.Context(), rotation.End{ID: id, Stopped: true, Final: final, Actor: operator, At: w.now})
	must(t, err)
	return r
}

func rotationEnds(t *testing.T, w *world) {
	started := w.startRotation(t, pki.Selection{Identity: w.enrollNew(t).Identity})
	e := w.lastEntry(t)
	mustEqual(t, "the action", e.Action, translog.RotationStarted)
	w.now = w.now.Add(time.Minute)
	stopped := started
	stopped.EndedAt, stopped.Stopped, stopped.Final = w.now, true, rotation.Progress{Renewed: 7, Due: 8}
	mustEqual(t, "the stopped rotation", w.endRotation(t, started.ID, stopped.Final), stopped)
	e = w.lastEntry(t)
	mustEqual(t, "the action", e.Action, translog.RotationStopped)
	mustEqual(t, "the actor", e.Actor, operator.Named())
	logged := len(w.entries(t))
	w.now = w.now.Add(time.Minute)
	mustEqual(t, "the rotation that has ended before", w.endRotation(t, started.ID, rotation.Progress{}), stopped)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)

	second := w.startRotation(t, pki.Selection{Identity: w.enrollNew(t).Identity})
	system := pki.ActorSystem("rotations")
	completed, err := w.Rotations.EndRotation(t.Context(), rotation.End{ID: second.ID, Final: rotation.Progress{Renewed: 1}, Actor: system, At: w.now})
	must(t, err)
	mustEqual(t, "the state", completed.State(), rotation.Completed)
	mustEqual(t, "the action", w.lastEntry(t).Action, translog.RotationCompleted)
	w.reopen(t)
	have, err := w.Rotations.Rotation(t.Context(), second.ID)
	must(t, err)
	mustEqual(t, "the completed rotation", have, completed)
	_, err = w.Rotations.EndRotation(t.Context(), rotation.End{ID: 99, Actor: operator, At: w.now})
	mustNotFind(t, err)
	_, err = w.Rotations.Rotation(t.Context(), 99)
	mustNotFind(t, err)
	_, err = w.Rotations.RotationProgress(t.Context(), 99, w.now)
	mustNotFind(t, err)
	mustNotFind(t, w.Rotations.RotationMembers(t.Context(), 99, func([]pki.CertRef) error { return nil }))
}

func rotationIsConfirmed(t *testing.T, w *world) {
	labelled := w.issueLabelled(t, 2)
	for range 17 {
		w.enrollNew(t)
	}
	req := rotation.Request{Selection: pki.Selection{Identity: labelled[0].Identity}, Over: time.Hour, Actor: operator, At: w.now}
	n, err := w.Rotations.CountRotation(t.Context(), req)
	must(t, err)
	mustEqual(t, "the numbers of certificates", n, rotation.Counts{Affected: 2, Living: 19})
	for _, confirm := range []int{0, 1, 3} {
		req.Confirm = confirm
		_, err := w.Rotations.StartRotation(t.Context(), req)
		mustRefuse(t, err, pki.RuleUnconfirmed)
	}
	req.Confirm = 2
	_, err = w.Rotations.StartRotation(t.Context(), req)
	must(t, err)
	w.enrollNew(t) // now there are as many that a tenth is two
	req.Confirm = 0
	_, err = w.Rotations.StartRotation(t.Context(), req)
	must(t, err)
}

func openRotationsAreBounded(t *testing.T, w *world) {
	sel := pki.Selection{Identity: w.enrollNew(t).Identity}
	var first rotation.Rotation
	for range rotation.MaxOpen {
		first = w.startRotation(t, sel)
	}
	req := rotation.Request{Selection: sel, Over: time.Hour, Confirm: 1, Actor: operator, At: w.now}
	_, err := w.Rotations.StartRotation(t.Context(), req)
	mustRefuse(t, err, pki.RuleOverloaded)
	w.endRotation(t, first.ID, rotation.Progress{})
	_, err = w.Rotations.StartRotation(t.Context(), req)
	must(t, err)
}

func listsRotations(t *testing.T, w *world) {
	sel := pki.Selection{Identity: w.enrollNew(t).Identity}
	var newest, open []rotation.Rotation
	for i := range 5 {
		r := w.startRotation(t, sel)
		if i%2 == 0 {
			r = w.endRotation(t, r.ID, rotation.Progress{Due: 1})
		} else {
			open = append(open, r)
		}
		newest = append([]rotation.Rotation{r}, newest...)
	}
	have, err := w.Rotations.OpenRotations(t.Context())
	must(t, err)
	mustEqual(t, "the open rotations", have, open)
	var all []rotation.Rotation
	for after := int64(0); ; {
		page, next, err := w.Rotations.Rotations(t.Context(), after, 2)
		must(t, err)
		all = append(all, page...)
		if after = next; next == 0 {
			break
		}
	}
	mustEqual(t, "the pages", all, newest)
	if _, _, err := w.Rotations.Rotations(t.Context(), 0, 0); err == nil {
		t.Error("a page of no rotations is accepted")
	}
}

// The members of a large rotation are visited in several steps.
func rotationOfMany(t *testing.T, w *world) {
	const many = 5000
	id := w.register(t)
	var records []ca.Record
	for range many {
		records = append(records, w.record(t, id.ID))
	}
	w.commitBatch(t, w.writeIntent(t, records...), records...)
	r := w.startRotation(t, pki.Selection{Profile: "device"})
	mustEqual(t, "the number of certificates", len(w.members(t, r.ID)), many)
	p, err := w.Rotations.RotationProgress(t.Context(), r.ID, w.now)
	must(t, err)
	mustEqual(t, "the progress", p, rotation.Progress{Due: many})
	w.issue(t, w.record(t, id.ID))
	p, err = w.Rotations.RotationProgress(t.Context(), r.ID, w.now)
	must(t, err)
	mustEqual(t, "the progress after a renewal", p, rotation.Progress{Renewed: many})
}

// lostRotation loses the commits of the start and of the end of a rotation. A repeat of the request completes each, and
// there is only one rotation.
func lostRotation(t *testing.T, w *world, applies bool) {
	caller := callerOf(w.enrollOperator(t, pki.RoleRevoker))
	req := rotation.Request{
		Selection: pki.Selection{Identity: w.enrollNew(t).Identity}, Over: time.Hour, Confirm: 1, At: w.now, Actor: caller.WithRequest(w.newRequest(t, "start")),
	}
	w.LoseCommit(applies)
	_, err := w.Rotations.StartRotation(t.Context(), req)
	mustBeTemporary(t, err)
	started, err := w.Rotations.StartRotation(t.Context(), req)
	must(t, err)
	end := rotation.End{ID: started.ID, Stopped: true, Actor: caller.WithRequest(w.newRequest(t, "stop")), At: w.now}
	w.LoseCommit(applies)
	_, err = w.Rotations.EndRotation(t.Context(), end)
	mustBeTemporary(t, err)
	ended, err := w.Rotations.EndRotation(t.Context(), end)
	must(t, err)
	mustEqual(t, "the state", ended.State(), rotation.Stopped)
	w.reopen(t)
	all, _, err := w.Rotations.Rotations(t.Context(), 0, 10)
	must(t, err)
	mustEqual(t, "the rotations", all, []rotation.Rotation{ended})
}
