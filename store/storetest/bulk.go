package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

func testBulk(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"a renewal in progress":              renewalDuringBulk,
		"certificates issued later":          issuedAfterBulk,
		"compromised keys":                   bulkCompromisesKeys,
		"two bulk revocations":               bulksApplyInOrder,
		"one identity is changed at once":    oneIdentityAtOnce,
		"an unknown selection":               bulkOfUnknown,
		"the selection is recorded":          keepsSelection,
		"the number of open ones is bounded": openBulksAreBounded,
		"many open ones of one identity":     openBulksOfOneIdentity,
		"lists":                              listsBulkRevocations,
		"records stay until it is applied":   recordsStayDuringBulk,
		"labels stay until it is applied":    labelsStayDuringBulk,
		"a compromised key":                  compromiseKey,
		"creation applied, commit lost":      func(t *testing.T, w *world) { lostBulkCreation(t, w, true) },
		"creation not applied":               func(t *testing.T, w *world) { lostBulkCreation(t, w, false) },
		"step applied, commit lost":          func(t *testing.T, w *world) { lostBulkStep(t, w, true) },
		"step not applied":                   func(t *testing.T, w *world) { lostBulkStep(t, w, false) },
	})
}

// issueLabelled registers an identity with the label batch=7, and issues n certificates to it.
func (w *world) issueLabelled(t *testing.T, n int) []ca.Record {
	t.Helper()
	id := w.newIdentity(t)
	id.Labels = map[string]string{"batch": "7"}
	id, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
	must(t, err)
	return w.issueCertificates(t, id.ID, n)
}

// bulkByLabel returns a bulk revocation of the certificates of identities with the label batch=value.
func (w *world) bulkByLabel(value string, reason pki.Reason) revocation.BulkRequest {
	return revocation.BulkRequest{
		Action: revoke, Selection: pki.Selection{Label: pki.Label{Name: "batch", Value: value}}, Reason: reason, Actor: operator, At: w.now, Comment: "stolen",
	}
}

// createBulk creates a bulk revocation and has the store count its certificates.
func (w *world) createBulk(t *testing.T, req revocation.BulkRequest) revocation.BulkRevocation {
	t.Helper()
	bulk, _, err := w.Revocation.CreateBulk(context.Background(), req)
	must(t, err)
	if bulk.Done {
		return bulk
	}
	bulk, err = w.Revocation.NotifyBulk(context.Background(), bulk.ID, pki.StatusObserverFunc(func([]pki.StatusChange) {}))
	must(t, err)
	return bulk
}

// applyBulk applies a bulk revocation to all records, in steps of two.
func (w *world) applyBulk(t *testing.T, id int64) revocation.BulkRevocation {
	t.Helper()
	for {
		_, bulk, err := w.Revocation.ApplyBulk(context.Background(), id, 2, w.now)
		must(t, err)
		if bulk.Done {
			return bulk
		}
	}
}

// renewalDuringBulk commits a renewal whose intent was written before the bulk revocation. The commit must be refused.
func renewalDuringBulk(t *testing.T, w *world) {
	before := w.issueLabelled(t, 1)[0]
	next := w.record(t, before.Identity)
	next.Guard.Predecessor = before.Ref
	intent := w.writeIntent(t, next)
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	mustRefuse(t, w.commitBatch(t, intent, next)[0], pki.RuleRevoked)
	w.mustHaveStatus(t, []ca.Record{before}, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	w.applyBulk(t, bulk.ID)
	w.mustHaveStatus(t, []ca.Record{before}, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
}

func issuedAfterBulk(t *testing.T, w *world) {
	before := w.issueLabelled(t, 3)
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	after := w.issueCertificates(t, before[0].Identity, 2)
	mustEqual(t, "the number of revoked certificates", bulk.Total, 3)
	bulk = w.applyBulk(t, bulk.ID)
	mustEqual(t, "the number of changed records", bulk.Applied, 3)
	w.mustHaveStatus(t, after, pki.Status{State: pki.Good, Version: 1})
	bulk = w.createBulk(t, w.bulkByLabel("7", pki.Superseded)) // the same selection: only the new certificates
	mustEqual(t, "the number of revoked certificates", bulk.Total, 2)
}

// bulkCompromisesKeys revokes for keyCompromise. All certificates of the keys must be revoked, and the keys refused,
// before and after the records are changed.
func bulkCompromisesKeys(t *testing.T, w *world) {
	r := w.issueLabelled(t, 1)[0]
	twin := w.record(t, r.Identity)
	twin.KeyHash, twin.Guard.Key, twin.Profile = r.KeyHash, r.KeyHash, "server"
	w.issue(t, twin)
	req := w.bulkByLabel("7", pki.KeyCompromise)
	req.Profile = "device"
	bulk := w.createBulk(t, req)
	mustEqual(t, "the number of revoked certificates", bulk.Total, 2)
	revoked := pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: w.now, Version: 2}
	w.mustHaveStatus(t, []ca.Record{r, twin}, revoked)
	again := w.record(t, r.Identity)
	again.KeyHash, again.Guard.Key = r.KeyHash, r.KeyHash
	mustRefuse(t, w.commit(t, again), pki.RuleKeyCompromised)
	w.applyBulk(t, bulk.ID)
	w.mustHaveStatus(t, []ca.Record{r, twin}, revoked)
	again = w.record(t, r.Identity)
	again.KeyHash, again.Guard.Key = r.KeyHash, r.KeyHash
	mustRefuse(t, w.commit(t, again), pki.RuleKeyCompromised)
}

// bulksApplyInOrder creates two bulk revocations of the same certificates. The store must apply the older one first,
// and each increases the versions.
func bulksApplyInOrder(t *testing.T, w *world) {
	records := w.issueLabelled(t, 3)
	first := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	w.now = w.now.Add(time.Minute)
	second := w.createBulk(t, w.bulkByLabel("7", pki.KeyCompromise))
	mustEqual(t, "the number of upgraded certificates", second.Total, 3)
	want := pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: first.At, Version: 3}
	w.mustHaveStatus(t, records, want)
	changes, bulk, err := w.Revocation.ApplyBulk(context.Background(), second.ID, 10, w.now)
	must(t, err)
	if len(changes) != 0 || bulk.Done {
		t.Errorf("the second bulk revocation was applied first: %v, %+v", changes, bulk)
	}
	w.applyBulk(t, first.ID)
	w.mustHaveStatus(t, records, want)
	w.applyBulk(t, second.ID)
	w.mustHaveStatus(t, records, want)
}

func oneIdentityAtOnce(t *testing.T, w *world) {
	records := w.issueLabelled(t, 3)
	req := w.bulkByLabel("7", pki.Superseded)
	req.Identity = records[0].Identity
	logged := len(w.entries(t))
	bulk := w.createBulk(t, req)
	if !bulk.Done || bulk.Total != 3 {
		t.Errorf("the bulk revocation is %+v", bulk)
	}
	entries := w.entries(t)[logged:]
	if len(entries) != 2 || entries[0].Action != translog.BulkRevocationCreated || len(entries[1].Changes) != 3 || entries[1].Identity != req.Identity {
		t.Errorf("log entries %+v", entries)
	}
	mustEqual(t, "the event of the bulk revocation", entries[0].Event, translog.Event(&translog.BulkRevocation{
		ID: 1, Action: translog.BulkRevoke, Reason: pki.Superseded, Comment: "stolen", Mark: 3, AtOnce: true,
		Selection: pki.Selection{Identity: req.Identity, Label: pki.Label{Name: "batch", Value: "7"}},
	}))
}

// keepsSelection reads bulk revocations back, one for each field of a selection.
func keepsSelection(t *testing.T, w *world) {
	r := w.issueLabelled(t, 1)[0]
	for name, sel := range map[string]pki.Selection{
		"issuer": {Issuer: issuerA}, "identity": {Identity: r.Identity}, "lineage": {LineageOf: r.Ref}, "key": {Key: r.KeyHash}, "profile": {Profile: "device"},
		"label": {Label: pki.Label{Name: "batch", Value: "7"}}, "time": {IssuedFrom: epochStart, IssuedUntil: epochStart.Add(time.Hour)},
	} {
		req := revocation.BulkRequest{Action: revoke, Selection: sel, Reason: pki.Superseded, Actor: operator, At: w.now}
		bulk, err := w.Revocation.BulkRevocation(context.Background(), w.createBulk(t, req).ID)
		must(t, err)
		mustEqual(t, "the bulk revocation by "+name, bulk.BulkRequest, req)
	}
}

func bulkOfUnknown(t *testing.T, w *world) {
	ctx := context.Background()
	r, abandoned := w.enrollNew(t), w.abandon(t)
	for name, s := range map[string]pki.Selection{
		"issuer": {Issuer: issuerUnknown}, "identity": {Identity: w.newIdentity(t).ID}, "key": {Key: w.key()},
		"lineage":                           {LineageOf: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}},
		"a serial number of another issuer": {LineageOf: pki.CertRef{Issuer: issuerB, Serial: r.Ref.Serial}},
		"an undelivered certificate":        {LineageOf: abandoned.Ref},
		"an identity with an unknown key":   {Identity: r.Identity, Key: w.key()},
	} {
		req := revocation.BulkRequest{Action: revoke, Selection: s, Actor: operator, At: w.now}
		_, err := w.Revocation.CountBulk(ctx, req)
		mustNotFind(t, err)
		_, _, err = w.Revocation.CreateBulk(ctx, req)
		if err == nil {
			t.Errorf("%s is not on record, but was revoked", name)
		}
		mustNotFind(t, err)
	}
	_, err := w.Revocation.BulkRevocation(ctx, 1)
	mustNotFind(t, err)
}

func openBulksAreBounded(t *testing.T, w *world) {
	ctx := context.Background()
	records := w.issueLabelled(t, 1)
	for n := 0; ; n++ {
		_, _, err := w.Revocation.CreateBulk(ctx, w.bulkByLabel("7", pki.Superseded))
		if err == nil && n < 64 {
			continue
		}
		mustRefuse(t, err, pki.RuleOverloaded)
		break
	}
	// A bulk revocation of one identity is applied at once, so the bound does not concern it.
	bulk := w.createBulk(t, revocation.BulkRequest{Action: revoke, Selection: pki.Selection{Identity: w.enrollNew(t).Identity}, Actor: operator, At: w.now})
	if !bulk.Done || bulk.Total != 1 {
		t.Errorf("at the bound, the bulk revocation of one identity is %+v", bulk)
	}
	open, err := w.Revocation.OpenBulk(ctx)
	must(t, err)
	for _, bulk := range open {
		w.applyBulk(t, bulk.ID)
	}
	w.mustHaveStatus(t, records, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	_, _, err = w.Revocation.CreateBulk(ctx, w.bulkByLabel("7", pki.Superseded))
	must(t, err)
}

// openBulksOfOneIdentity creates as many open bulk revocations as there can be, which need the upper bits of a mask too. Each
// selects so many certificates of one identity that it is not applied at once.
func openBulksOfOneIdentity(t *testing.T, w *world) {
	ctx := context.Background()
	id, other := w.register(t).ID, w.enrollNew(t)
	records := w.issueCertificates(t, id, 129)
	created := 0
	for {
		_, _, err := w.Revocation.CreateBulk(ctx, revocation.BulkRequest{
			Action: revoke, Selection: pki.Selection{Identity: id}, Reason: pki.Superseded, Actor: operator, At: w.now})
		if err != nil {
			mustRefuse(t, err, pki.RuleOverloaded)
			break
		}
		created++
		w.mustHaveStatus(t, records[:1], pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
		w.mustHaveStatus(t, []ca.Record{other}, pki.Status{State: pki.Good, Version: 1})
	}
	if created < 33 {
		t.Errorf("%d bulk revocations were open, want more than an integer of 32 bits has bits", created)
	}
}

// recordsStayDuringBulk runs retention while a bulk revocation is open. Its selection ends at a row ID, which must not
// be assigned again before the bulk revocation is applied.
func recordsStayDuringBulk(t *testing.T, w *world) {
	r := w.issueLabelled(t, 1)[0]
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	w.now = r.NotAfter.Add(24 * time.Hour)
	w.register(t) // writes a log entry with this time
	step := retention.Step{Before: w.now, At: w.now, Limit: 10}
	expired, err := w.Retention.Expire(context.Background(), step)
	must(t, err)
	mustEqual(t, "the removed certificates", expired.Certificates, 0)
	w.applyBulk(t, bulk.ID)
	w.publishCRL(t)
	expired, err = w.Retention.Expire(context.Background(), step)
	must(t, err)
	mustEqual(t, "the removed certificates", expired.Certificates, 1)
}

func labelsStayDuringBulk(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.issueLabelled(t, 1)[0]
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	changed := w.readIdentity(t, r.Identity)
	changed.Labels = map[string]string{"batch": "8"}
	_, err := w.RA.UpdateIdentity(ctx, changed, operator, w.now)
	mustRefuse(t, err, pki.RuleOverloaded)
	w.applyBulk(t, bulk.ID)
	_, err = w.RA.UpdateIdentity(ctx, changed, operator, w.now)
	must(t, err)
	w.issueCertificates(t, r.Identity, 1)
	for value, want := range map[string]revocation.Affected{"7": {}, "8": {Valid: 1}} {
		n, err := w.Revocation.CountBulk(ctx, w.bulkByLabel(value, pki.Superseded))
		must(t, err)
		mustEqual(t, "the certificates with the label "+value, n, want)
	}
}

func compromiseKey(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.enrollNew(t)
	twin := w.record(t, r.Identity)
	twin.KeyHash, twin.Guard.Key = r.KeyHash, r.KeyHash
	w.issue(t, twin)
	change := revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: r.KeyHash}
	if changed := w.apply(t, change); len(changed) != 2 {
		t.Errorf("the change concerned %v", changed)
	}
	logged := len(w.entries(t))
	if changed := w.apply(t, change); len(changed) != 0 || len(w.entries(t)) != logged {
		t.Errorf("the repeated change concerned %v", changed)
	}
	mustRefuse(t, w.keyRefusal(t, r.KeyHash, r.Identity), pki.RuleKeyCompromised)
	_, err := w.Statuses.Apply(ctx, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: w.key(), Actor: operator, At: w.now})
	mustNotFind(t, err)
	_, err = w.Statuses.Apply(ctx, revocation.Change{Action: revoke, Reason: pki.Superseded, Key: r.KeyHash, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleReason)

	expired := w.enrollNew(t)
	w.now = expired.NotAfter.Add(2 * time.Hour)
	w.advanceAge(t)
	change.Key = expired.KeyHash
	if changed := w.apply(t, change); len(changed) != 0 {
		t.Errorf("the change concerned expired certificates: %v", changed)
	}
	mustRefuse(t, w.keyRefusal(t, expired.KeyHash, expired.Identity), pki.RuleKeyCompromised)
}

// lostBulkCreation creates a bulk revocation whose commit fails, and creates it again.
func lostBulkCreation(t *testing.T, w *world, applies bool) {
	ctx := context.Background()
	records := w.issueLabelled(t, 2)
	w.LoseCommit(applies)
	_, _, err := w.Revocation.CreateBulk(ctx, w.bulkByLabel("7", pki.Superseded))
	mustBeTemporary(t, err)
	open, err := w.Revocation.OpenBulk(ctx)
	must(t, err)
	if (len(open) == 1) != applies {
		t.Errorf("the open bulk revocations are %v", open)
	}
	again, _, err := w.Revocation.CreateBulk(ctx, w.bulkByLabel("7", pki.Superseded))
	must(t, err)
	var notified []pki.StatusChange
	_, err = w.Revocation.NotifyBulk(ctx, again.ID, pki.StatusObserverFunc(func(c []pki.StatusChange) { notified = append(notified, c...) }))
	must(t, err)
	if len(notified) != 2 || notified[0].Status.State != pki.Revoked || notified[1].Status.State != pki.Revoked {
		t.Errorf("the repeated bulk revocation notifies of %v", notified)
	}
	for _, bulk := range append(open, again) {
		w.applyBulk(t, bulk.ID)
	}
	w.mustHaveStatus(t, records, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
}

func lostBulkStep(t *testing.T, w *world, applies bool) {
	records := w.issueLabelled(t, 5)
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	w.LoseCommit(applies)
	_, _, err := w.Revocation.ApplyBulk(context.Background(), bulk.ID, 2, w.now)
	mustBeTemporary(t, err)
	w.reopen(t)
	bulk = w.applyBulk(t, bulk.ID)
	mustEqual(t, "the number of changed records", bulk.Applied, 5)
	w.mustHaveStatus(t, records, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	changes := 0
	for _, e := range w.entries(t) {
		if e.Facts()["bulk_revocation"] != "" {
			changes += len(e.Changes)
		}
	}
	mustEqual(t, "the changes in the log", changes, 5)
}

// listsBulkRevocations reads pages of bulk revocations, of all states and of some.
func listsBulkRevocations(t *testing.T, w *world) {
	ctx := context.Background()
	w.issueLabelled(t, 3)
	var want []int64
	for _, label := range []string{"7", "8", "9", "10"} {
		want = append([]int64{w.createBulk(t, w.bulkByLabel(label, pki.Superseded)).ID}, want...)
	}
	ofIdentity := w.bulkByLabel("7", pki.Superseded)
	ofIdentity.Selection = pki.Selection{Identity: w.register(t).ID}
	want = append([]int64{w.createBulk(t, ofIdentity).ID}, want...)
	open, _, err := w.Revocation.CreateBulk(ctx, w.bulkByLabel("11", pki.Superseded))
	must(t, err)
	want = append([]int64{open.ID}, want...)
	w.applyBulk(t, want[5])
	for name, c := range map[string]struct {
		states []revocation.BulkState
		want   []int64
	}{
		"of all states": {nil, want},
		"selecting":     {[]revocation.BulkState{revocation.BulkSelecting}, want[:1]},
		"applying":      {[]revocation.BulkState{revocation.BulkApplying}, want[2:5]},
		"done":          {[]revocation.BulkState{revocation.BulkDone}, []int64{want[1], want[5]}},
		"open":          {[]revocation.BulkState{revocation.BulkApplying, revocation.BulkSelecting}, append(want[:1:1], want[2:5]...)},
		"of any state":  {[]revocation.BulkState{revocation.BulkDone, revocation.BulkSelecting, revocation.BulkApplying}, want},
	} {
		for _, limit := range []int{1, 2, 6, 100} {
			var got []int64
			for after := int64(0); ; {
				page, next, err := w.Revocation.BulkRevocations(ctx, c.states, after, limit)
				must(t, err)
				if len(page) > limit {
					t.Fatalf("%s: a page has %d bulk revocations, want at most %d", name, len(page), limit)
				}
				for _, b := range page {
					have, err := w.Revocation.BulkRevocation(ctx, b.ID)
					must(t, err)
					mustEqual(t, name, b, have)
					got = append(got, b.ID)
				}
				if after = next; next == 0 {
					break
				}
			}
			mustEqual(t, name, got, c.want)
		}
	}
	if page, _, err := w.Revocation.BulkRevocations(ctx, nil, 0, 0); err == nil && len(page) > 0 {
		t.Errorf("a page of at most 0 has %d bulk revocations", len(page))
	}
}
