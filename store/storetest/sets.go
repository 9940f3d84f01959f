package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

func testSets(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"what is under way when the order comes": renewalUnderWay,
		"what comes after the order":             issuedAfterwards,
		"a key that is compromised by a set":     setOfKeys,
		"one after the other":                    setsInOrder,
		"few are changed at once":                fewAtOnce,
		"what is named has to be there":          setOfUnknown,
		"what an order selects by is kept":       keepsSelection,
		"a bound on sets":                        boundOnSets,
		"lists of bulk revocations":              listsBulkRevocations,
		"nothing leaves meanwhile":               nothingLeaves,
		"labels stay meanwhile":                  labelsStay,
		"an order about a key":                   orderAboutKey,
		"a lost order":                           func(t *testing.T, w *world) { lostSet(t, w, true) },
		"a lost order that did not apply":        func(t *testing.T, w *world) { lostSet(t, w, false) },
		"a lost step":                            func(t *testing.T, w *world) { lostFollowing(t, w, true) },
		"a lost step that did not apply":         func(t *testing.T, w *world) { lostFollowing(t, w, false) },
	})
}

// labelled registers an identity with the label batch=7, and issues certificates to it.
func (w *world) labelled(t *testing.T, n int) []ca.Record {
	t.Helper()
	id := w.newIdentity(t)
	id.Labels = map[string]string{"batch": "7"}
	id, err := w.RA.CreateIdentity(context.Background(), id, operator)
	must(t, err)
	return w.certificates(t, id.ID, n)
}

func (w *world) batch(value string, reason pki.Reason) revocation.BulkRequest {
	return revocation.BulkRequest{
		Action: revoke, Selection: pki.Selection{Label: pki.Label{Name: "batch", Value: value}}, Reason: reason, Actor: operator, At: w.now, Comment: "stolen",
	}
}

func (w *world) orderSet(t *testing.T, o revocation.BulkRequest) revocation.BulkRevocation {
	t.Helper()
	set, _, err := w.Revocation.CreateBulk(context.Background(), o)
	must(t, err)
	if set.Done {
		return set
	}
	set, err = w.Revocation.NotifyBulk(context.Background(), set.ID, pki.StatusObserverFunc(func([]pki.StatusChange) {}))
	must(t, err)
	return set
}

// follow has all records of a set follow.
func (w *world) follow(t *testing.T, id int64) revocation.BulkRevocation {
	t.Helper()
	for {
		_, set, err := w.Revocation.ApplyBulk(context.Background(), id, 2, w.now)
		must(t, err)
		if set.Done {
			return set
		}
	}
}

// A renewal that was decided before the order and is recorded after it is refused.
func renewalUnderWay(t *testing.T, w *world) {
	before := w.labelled(t, 1)[0]
	next := w.record(t, before.Identity)
	next.Guard.Predecessor = before.Ref
	intent := w.writeIntent(t, next)
	set := w.orderSet(t, w.batch("7", pki.Superseded))
	mustRefuse(t, w.commitBatch(t, intent, next)[0], pki.RuleRevoked)
	w.mustAll(t, []ca.Record{before}, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	w.follow(t, set.ID)
	w.mustAll(t, []ca.Record{before}, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
}

func issuedAfterwards(t *testing.T, w *world) {
	before := w.labelled(t, 3)
	set := w.orderSet(t, w.batch("7", pki.Superseded))
	after := w.certificates(t, before[0].Identity, 2)
	mustEqual(t, "how many are revoked", set.Total, 3)
	set = w.follow(t, set.ID)
	mustEqual(t, "how many have followed", set.Applied, 3)
	w.mustAll(t, after, pki.Status{State: pki.Good, Version: 1})
	set = w.orderSet(t, w.batch("7", pki.Superseded)) // again, it is about those that the first one was not
	mustEqual(t, "how many are revoked", set.Total, 2)
}

// A set that is not done compromises keys too, and what else they have.
func setOfKeys(t *testing.T, w *world) {
	r := w.labelled(t, 1)[0]
	twin := w.record(t, r.Identity)
	twin.KeyHash, twin.Guard.Key, twin.Profile = r.KeyHash, r.KeyHash, "server"
	w.issue(t, twin)
	o := w.batch("7", pki.KeyCompromise)
	o.Profile = "device"
	set := w.orderSet(t, o)
	mustEqual(t, "how many are revoked", set.Total, 2)
	revoked := pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: w.now, Version: 2}
	w.mustAll(t, []ca.Record{r, twin}, revoked)
	again := w.record(t, r.Identity)
	again.KeyHash, again.Guard.Key = r.KeyHash, r.KeyHash
	mustRefuse(t, w.try(t, again), pki.RuleKeyCompromised)
	w.follow(t, set.ID)
	w.mustAll(t, []ca.Record{r, twin}, revoked)
	again = w.record(t, r.Identity)
	again.KeyHash, again.Guard.Key = r.KeyHash, r.KeyHash
	mustRefuse(t, w.try(t, again), pki.RuleKeyCompromised)
}

// Of two sets the records of the older one follow first, and each has its version.
func setsInOrder(t *testing.T, w *world) {
	records := w.labelled(t, 3)
	first := w.orderSet(t, w.batch("7", pki.Superseded))
	w.now = w.now.Add(time.Minute)
	second := w.orderSet(t, w.batch("7", pki.KeyCompromise))
	mustEqual(t, "how many are upgraded", second.Total, 3)
	want := pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: first.At, Version: 3}
	w.mustAll(t, records, want)
	changes, set, err := w.Revocation.ApplyBulk(context.Background(), second.ID, 10, w.now)
	must(t, err)
	if len(changes) != 0 || set.Done {
		t.Errorf("the second set came first: %v, %+v", changes, set)
	}
	w.follow(t, first.ID)
	w.mustAll(t, records, want)
	w.follow(t, second.ID)
	w.mustAll(t, records, want)
}

func fewAtOnce(t *testing.T, w *world) {
	records := w.labelled(t, 3)
	o := w.batch("7", pki.Superseded)
	o.Identity = records[0].Identity
	logged := len(w.entries(t))
	set := w.orderSet(t, o)
	if !set.Done || set.Total != 3 {
		t.Errorf("the set is %+v", set)
	}
	entries := w.entries(t)[logged:]
	if len(entries) != 2 || entries[0].Action != translog.BulkRevocationCreated || len(entries[1].Changes) != 3 || entries[1].Identity != o.Identity {
		t.Errorf("log entries %+v", entries)
	}
	mustEqual(t, "the event of the bulk revocation", entries[0].Event, translog.Event(&translog.BulkRevocation{
		ID: 1, Action: translog.BulkRevoke, Reason: pki.Superseded, Comment: "stolen", Mark: 3, AtOnce: true,
		Selection: pki.Selection{Identity: o.Identity, Label: pki.Label{Name: "batch", Value: "7"}},
	}))
}

// keepsSelection reads back what orders select by.
func keepsSelection(t *testing.T, w *world) {
	r := w.labelled(t, 1)[0]
	for name, sel := range map[string]pki.Selection{
		"issuer": {Issuer: issuerA}, "identity": {Identity: r.Identity}, "lineage": {LineageOf: r.Ref}, "key": {Key: r.KeyHash}, "profile": {Profile: "device"},
		"label": {Label: pki.Label{Name: "batch", Value: "7"}}, "time": {IssuedFrom: epochStart, IssuedUntil: epochStart.Add(time.Hour)},
	} {
		o := revocation.BulkRequest{Action: revoke, Selection: sel, Reason: pki.Superseded, Actor: operator, At: w.now}
		set, err := w.Revocation.BulkRevocation(context.Background(), w.orderSet(t, o).ID)
		must(t, err)
		mustEqual(t, "the order by "+name, set.BulkRequest, o)
	}
}

func setOfUnknown(t *testing.T, w *world) {
	ctx := context.Background()
	r, lost := w.issued(t), w.abandon(t)
	for name, s := range map[string]pki.Selection{
		"issuer": {Issuer: issuerNobody}, "identity": {Identity: w.newIdentity(t).ID}, "key": {Key: w.key()},
		"lineage":              {LineageOf: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}},
		"another's serial":     {LineageOf: pki.CertRef{Issuer: issuerB, Serial: r.Ref.Serial}},
		"what was not issued":  {LineageOf: lost.Ref},
		"the key of no record": {Identity: r.Identity, Key: w.key()},
	} {
		o := revocation.BulkRequest{Action: revoke, Selection: s, Actor: operator, At: w.now}
		_, err := w.Revocation.CountBulk(ctx, o)
		mustMiss(t, err)
		_, _, err = w.Revocation.CreateBulk(ctx, o)
		if err == nil {
			t.Errorf("%s is not on record, and was revoked", name)
		}
		mustMiss(t, err)
	}
	_, err := w.Revocation.BulkRevocation(ctx, 1)
	mustMiss(t, err)
}

func boundOnSets(t *testing.T, w *world) {
	ctx := context.Background()
	records := w.labelled(t, 1)
	for n := 0; ; n++ {
		_, _, err := w.Revocation.CreateBulk(ctx, w.batch("7", pki.Superseded))
		if err == nil && n < 64 {
			continue
		}
		mustRefuse(t, err, pki.RuleOverloaded)
		break
	}
	// One of one identity is never open: it has not to wait for those that are.
	set := w.orderSet(t, revocation.BulkRequest{Action: revoke, Selection: pki.Selection{Identity: w.issued(t).Identity}, Actor: operator, At: w.now})
	if !set.Done || set.Total != 1 {
		t.Errorf("beside as many as there may be, the set of one identity is %+v", set)
	}
	open, err := w.Revocation.OpenBulk(ctx)
	must(t, err)
	for _, set := range open {
		w.follow(t, set.ID)
	}
	w.mustAll(t, records, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	_, _, err = w.Revocation.CreateBulk(ctx, w.batch("7", pki.Superseded))
	must(t, err)
}

// Rows may be used again once the newest have left, and a set ends with a row.
func nothingLeaves(t *testing.T, w *world) {
	r := w.labelled(t, 1)[0]
	set := w.orderSet(t, w.batch("7", pki.Superseded))
	w.now = r.NotAfter.Add(24 * time.Hour)
	w.identity(t) // the log is as new as that
	step := retention.Step{Before: w.now, At: w.now, Limit: 10}
	gone, err := w.Retention.Expire(context.Background(), step)
	must(t, err)
	mustEqual(t, "what left", gone.Certificates, 0)
	w.follow(t, set.ID)
	w.publish(t)
	gone, err = w.Retention.Expire(context.Background(), step)
	must(t, err)
	mustEqual(t, "what left", gone.Certificates, 1)
}

func labelsStay(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.labelled(t, 1)[0]
	set := w.orderSet(t, w.batch("7", pki.Superseded))
	changed := w.stateOf(t, r.Identity)
	changed.Labels = map[string]string{"batch": "8"}
	_, err := w.RA.UpdateIdentity(ctx, changed, operator, w.now)
	mustRefuse(t, err, pki.RuleOverloaded)
	w.follow(t, set.ID)
	_, err = w.RA.UpdateIdentity(ctx, changed, operator, w.now)
	must(t, err)
	w.certificates(t, r.Identity, 1)
	for value, want := range map[string]revocation.Affected{"7": {}, "8": {Valid: 1}} {
		n, err := w.Revocation.CountBulk(ctx, w.batch(value, pki.Superseded))
		must(t, err)
		mustEqual(t, "how many have the label "+value, n, want)
	}
}

func orderAboutKey(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.issued(t)
	twin := w.record(t, r.Identity)
	twin.KeyHash, twin.Guard.Key = r.KeyHash, r.KeyHash
	w.issue(t, twin)
	o := revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: r.KeyHash}
	if changed := w.apply(t, o); len(changed) != 2 {
		t.Errorf("the order changed %v", changed)
	}
	logged := len(w.entries(t))
	if changed := w.apply(t, o); len(changed) != 0 || len(w.entries(t)) != logged {
		t.Errorf("again, it changed %v", changed)
	}
	mustRefuse(t, w.checkKey(t, r.KeyHash, r.Identity), pki.RuleKeyCompromised)
	_, err := w.Orders.Apply(ctx, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Key: w.key(), Actor: operator, At: w.now})
	mustMiss(t, err)
	_, err = w.Orders.Apply(ctx, revocation.Change{Action: revoke, Reason: pki.Superseded, Key: r.KeyHash, Actor: operator, At: w.now})
	mustRefuse(t, err, pki.RuleReason)

	ended := w.issued(t)
	w.now = ended.NotAfter.Add(2 * time.Hour)
	w.grow(t)
	o.Key = ended.KeyHash
	if changed := w.apply(t, o); len(changed) != 0 {
		t.Errorf("of what has ended, the order changed %v", changed)
	}
	mustRefuse(t, w.checkKey(t, ended.KeyHash, ended.Identity), pki.RuleKeyCompromised)
}

// An order whose commit was lost is one that was given or one that was not, and can be given again.
func lostSet(t *testing.T, w *world, applies bool) {
	ctx := context.Background()
	records := w.labelled(t, 2)
	w.LoseCommit(applies)
	_, _, err := w.Revocation.CreateBulk(ctx, w.batch("7", pki.Superseded))
	mustPass(t, err)
	open, err := w.Revocation.OpenBulk(ctx)
	must(t, err)
	if (len(open) == 1) != applies {
		t.Errorf("open are %v", open)
	}
	again, _, err := w.Revocation.CreateBulk(ctx, w.batch("7", pki.Superseded))
	must(t, err)
	var told []pki.StatusChange
	_, err = w.Revocation.NotifyBulk(ctx, again.ID, pki.StatusObserverFunc(func(c []pki.StatusChange) { told = append(told, c...) }))
	must(t, err)
	if len(told) != 2 || told[0].Status.State != pki.Revoked || told[1].Status.State != pki.Revoked {
		t.Errorf("given again, the order tells %v", told)
	}
	for _, set := range append(open, again) {
		w.follow(t, set.ID)
	}
	w.mustAll(t, records, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
}

func lostFollowing(t *testing.T, w *world, applies bool) {
	records := w.labelled(t, 5)
	set := w.orderSet(t, w.batch("7", pki.Superseded))
	w.LoseCommit(applies)
	_, _, err := w.Revocation.ApplyBulk(context.Background(), set.ID, 2, w.now)
	mustPass(t, err)
	w.reopen(t)
	set = w.follow(t, set.ID)
	mustEqual(t, "how many have followed", set.Applied, 5)
	w.mustAll(t, records, pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: w.now, Version: 2})
	changes := 0
	for _, e := range w.entries(t) {
		if e.Facts()["bulk_revocation"] != "" {
			changes += len(e.Changes)
		}
	}
	mustEqual(t, "the changes in the log", changes, 5)
}

// listsBulkRevocations pages through bulk revocations, of all states and of some.
func listsBulkRevocations(t *testing.T, w *world) {
	ctx := context.Background()
	w.labelled(t, 3)
	var want []int64
	for _, label := range []string{"7", "8", "9", "10"} {
		want = append([]int64{w.orderSet(t, w.batch(label, pki.Superseded)).ID}, want...)
	}
	few := w.batch("7", pki.Superseded)
	few.Selection = pki.Selection{Identity: w.identity(t).ID}
	want = append([]int64{w.orderSet(t, few).ID}, want...)
	open, _, err := w.Revocation.CreateBulk(ctx, w.batch("11", pki.Superseded))
	must(t, err)
	want = append([]int64{open.ID}, want...)
	w.follow(t, want[5])
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
					t.Fatalf("%s: a page of %d, longer than %d", name, len(page), limit)
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
