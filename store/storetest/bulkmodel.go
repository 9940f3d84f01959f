package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// bulkModel is a model of a store with bulk revocations. In the model, a bulk revocation changes all certificates at
// once, while the store applies it in steps.
type bulkModel struct {
	w           *world
	identities  []ra.Identity
	certs       []*cert
	compromised map[pki.KeyHash]bool
	open        []int64   // IDs of the bulk revocations that are not applied to all records
	age         time.Time // the age of the records
}

// cert is a certificate with its expected status.
type cert struct {
	ca.Record
	issued       time.Time
	labels       map[string]string
	successor    pki.KeyHash
	status       pki.Status
	invalidSince time.Time
}

// revoke changes the status of a certificate as a bulk revocation does, and reports whether the status differs from
// before.
func (f *bulkModel) revoke(c *cert, o revocation.BulkRequest) bool {
	if c.status.State == pki.Revoked && (o.Reason != pki.KeyCompromise || c.status.Reason == pki.KeyCompromise) {
		return false
	}
	if c.status.State != pki.Revoked {
		c.status.RevokedAt, c.invalidSince = o.At, time.Time{}
	}
	if !o.InvalidSince.IsZero() {
		c.invalidSince = o.InvalidSince
	}
	c.status.State, c.status.Reason = pki.Revoked, o.Reason
	c.status.Version++
	if o.Reason == pki.KeyCompromise {
		f.compromised[c.KeyHash] = true
	}
	return true
}

// members returns the certificates that a bulk revocation concerns.
func (f *bulkModel) members(o revocation.BulkRequest) []*cert {
	lineage := f.lineage(o.LineageOf)
	inReach := func(c *cert) bool { return !c.NotAfter.Before(f.age) }
	keys := map[pki.KeyHash]bool{}
	selected := map[*cert]bool{}
	for _, c := range f.certs {
		if inReach(c) &&
			(o.Issuer.IsZero() || c.Ref.Issuer == o.Issuer) &&
			(o.Identity.IsZero() || c.Identity == o.Identity) &&
			(o.LineageOf.IsZero() || lineage[c]) &&
			(o.Key.IsZero() || c.KeyHash == o.Key) &&
			(o.Profile == "" || c.Profile == o.Profile) &&
			(o.Label.IsZero() || hasLabel(c.labels, o.Label)) &&
			(o.IssuedFrom.IsZero() || !c.issued.Before(o.IssuedFrom)) &&
			(o.IssuedUntil.IsZero() || c.issued.Before(o.IssuedUntil)) {
			selected[c], keys[c.KeyHash] = true, true
		}
	}
	var all []*cert
	for _, c := range f.certs {
		if selected[c] || o.Reason == pki.KeyCompromise && keys[c.KeyHash] && inReach(c) {
			all = append(all, c)
		}
	}
	return all
}

func hasLabel(labels map[string]string, l pki.Label) bool {
	value, ok := labels[l.Name]
	return ok && value == l.Value
}

// lineage returns a certificate and those renewed from it. It follows the keys of renewals until it finds no more.
func (f *bulkModel) lineage(first pki.CertRef) map[*cert]bool {
	line := map[*cert]bool{}
	for grew := true; grew; {
		grew = false
		for i, c := range f.certs {
			if line[c] {
				continue
			}
			belongs := c.Ref == first
			for _, before := range f.certs[:i] {
				belongs = belongs || line[before] && before.Identity == c.Identity && !before.successor.IsZero() && before.successor == c.KeyHash
			}
			if belongs {
				line[c], grew = true, true
			}
		}
	}
	return line
}

// check compares the status of each certificate in every read of the store with the model.
func (f *bulkModel) check(t rapid.TB) {
	t.Helper()
	snapshot, _ := f.w.snapshot(t, f.w.now.Add(-24*365*time.Hour))
	for _, c := range f.certs {
		have := f.w.readCertificate(t, c.Ref)
		mustEqual(t, "the status of certificate "+c.Ref.Serial.String(), have.Status, c.status)
		mustEqual(t, "its invalidity date", have.InvalidSince, c.invalidSince)
		mustEqual(t, "its status in the snapshot", snapshot[c.Ref].Status, c.status)
		st, err := f.w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: c.Identity, Predecessor: c.Ref, Request: c.RequestID, Key: c.KeyHash})
		must(t, err)
		mustEqual(t, "its status as a predecessor", st.Predecessor.Status, c.status)
		if compromised := st.KeyRefusal != nil; compromised != f.compromised[c.KeyHash] {
			t.Fatalf("the key of certificate %s is refused by %v, compromised is %v", c.Ref.Serial, st.KeyRefusal, f.compromised[c.KeyHash])
		}
	}
}

// issue issues or renews a certificate. If its guard must refuse it, issue checks the rule.
func (f *bulkModel) issue(t *rapid.T) {
	id := rapid.SampledFrom(f.identities).Draw(t, "identity")
	r := f.w.record(t, id.ID)
	r.Profile = rapid.SampledFrom([]string{"device", "server"}).Draw(t, "profile")
	r.Ref.Issuer = rapid.SampledFrom([]pki.IssuerID{issuerA, issuerB}).Draw(t, "issuer")
	r.NotAfter = f.w.now.Add(rapid.SampledFrom([]time.Duration{time.Hour, 3 * time.Hour, 24 * time.Hour}).Draw(t, "lifetime"))
	var ofIdentity []*cert
	for _, c := range f.certs {
		if c.Identity == id.ID {
			ofIdentity = append(ofIdentity, c)
		}
	}
	var before *cert
	if len(ofIdentity) > 0 && rapid.Bool().Draw(t, "with an earlier key") {
		r.KeyHash = rapid.SampledFrom(ofIdentity).Draw(t, "whose key").KeyHash
		r.Guard.Key = r.KeyHash
	}
	if len(ofIdentity) > 0 && rapid.Bool().Draw(t, "renewal") {
		before = rapid.SampledFrom(ofIdentity).Draw(t, "predecessor")
		r.Guard.Predecessor, r.Guard.Renewed = before.Ref, before.successor == r.KeyHash
	}
	err := f.w.commit(t, r)
	switch {
	case before != nil && before.status.State != pki.Good:
		mustRefuse(t, err, pki.RuleRevoked)
	case before != nil && !before.successor.IsZero() && before.successor != r.KeyHash:
		mustRefuse(t, err, pki.RuleRenewalKeyConflict)
	case f.compromised[r.KeyHash]:
		mustRefuse(t, err, pki.RuleKeyCompromised)
	default:
		must(t, err)
		if before != nil {
			before.successor = r.KeyHash
		}
		f.certs = append(f.certs, &cert{Record: r, issued: f.w.now, labels: id.Labels, status: pki.Status{State: pki.Good, Version: 1}})
	}
}

var bulkLabels = []pki.Label{{Name: "site", Value: "north"}, {Name: "site", Value: "south"}, {Name: "batch", Value: ""}}

// drawBulkRequest draws a bulk revocation with one or two criteria.
func (f *bulkModel) drawBulkRequest(t *rapid.T) revocation.BulkRequest {
	o := revocation.BulkRequest{Action: revoke, Actor: operator, At: f.w.now, Reason: rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise, pki.Unspecified}).Draw(t, "reason")}
	if rapid.Bool().Draw(t, "with invalidity date") {
		o.InvalidSince = f.w.now.Add(-time.Duration(rapid.IntRange(1, 9).Draw(t, "hours")) * time.Hour)
	}
	c := rapid.SampledFrom(f.certs).Draw(t, "a certificate")
	for n := rapid.IntRange(1, 2).Draw(t, "criteria"); n > 0; n-- {
		switch rapid.SampledFrom([]string{"issuer", "identity", "lineage", "key", "profile", "label", "label", "from", "until"}).Draw(t, "criterion") {
		case "issuer":
			o.Issuer = c.Ref.Issuer
		case "identity":
			o.Identity = c.Identity
		case "lineage":
			o.LineageOf = c.Ref
		case "key":
			o.Key = c.KeyHash
		case "profile":
			o.Profile = c.Profile
		case "label":
			o.Label = rapid.SampledFrom(bulkLabels).Draw(t, "label")
		case "from":
			o.IssuedFrom = c.issued
		case "until":
			o.IssuedUntil = c.issued
		}
	}
	return o
}

// createBulk creates a bulk revocation. The count before it, the changes and the notifications of responders must match
// the model.
func (f *bulkModel) createBulk(t *rapid.T) {
	if len(f.certs) == 0 {
		return
	}
	ctx := context.Background()
	o := f.drawBulkRequest(t)
	counted, err := f.w.Revocation.CountBulk(ctx, o)
	must(t, err)
	bulk, notified, err := f.w.Revocation.CreateBulk(ctx, o)
	must(t, err)
	if !bulk.Done {
		f.open = append(f.open, bulk.ID)
		// The observer copies the changes, because the store may reuse the slice.
		bulk, err = f.w.Revocation.NotifyBulk(ctx, bulk.ID, pki.StatusObserverFunc(func(c []pki.StatusChange) { notified = append(notified, c...) }))
		must(t, err)
	}
	if bulk.Done != o.OfOneIdentity() || !bulk.Counted {
		t.Fatalf("after its creation the bulk revocation is %+v", bulk)
	}
	changed, want := revocation.Affected{}, statuses{}
	for _, c := range f.members(o) {
		if f.revoke(c, o) {
			changed.Add(c.NotAfter, o.At)
		}
		want[c.Ref] = pki.StatusChange{Ref: c.Ref, NotAfter: c.NotAfter, Status: c.status}
	}
	if o.Reason == pki.KeyCompromise && !o.Key.IsZero() {
		f.compromised[o.Key] = true
	}
	have := statuses{}
	for _, c := range notified {
		have[c.Ref] = c
	}
	mustEqual(t, "the notified statuses", have, want)
	mustEqual(t, "the count before the creation", counted, changed)
	mustEqual(t, "the count of the bulk revocation", revocation.Affected{Valid: bulk.Total - bulk.Expired, Expired: bulk.Expired}, changed)
}

// changeOne changes one certificate.
func (f *bulkModel) changeOne(t *rapid.T) {
	if len(f.certs) == 0 {
		return
	}
	c := rapid.SampledFrom(f.certs).Draw(t, "certificate")
	o := revocation.Change{Certificate: c.Ref, Actor: operator, At: f.w.now, Action: rapid.SampledFrom([]revocation.Action{revoke, hold, unhold}).Draw(t, "action")}
	switch o.Action {
	case revoke:
		o.Reason = rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise}).Draw(t, "reason")
	case hold:
		o.Reason = pki.CertificateHold
	}
	_, err := f.w.Statuses.Apply(context.Background(), o)
	final := c.status.State == pki.Revoked
	if final && (o.Action != revoke || o.Reason != c.status.Reason && o.Reason != pki.KeyCompromise) {
		mustRefuse(t, err, pki.RuleAlreadyRevoked)
		return
	}
	must(t, err)
	switch {
	case o.Action == revoke && o.Reason == pki.KeyCompromise && c.status.Reason != pki.KeyCompromise:
		request := revocation.BulkRequest{Reason: o.Reason, At: o.At}
		f.revoke(c, request)
		for _, other := range f.certs {
			if other.KeyHash == c.KeyHash && !other.NotAfter.Before(f.age) {
				f.revoke(other, request)
			}
		}
	case o.Action == revoke:
		f.revoke(c, revocation.BulkRequest{Reason: o.Reason, At: o.At})
	case o.Action == hold && c.status.State == pki.Good:
		c.status = pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: o.At, Version: c.status.Version + 1}
	case o.Action == unhold && c.status.State == pki.Hold:
		c.status = pki.Status{State: pki.Good, Version: c.status.Version + 1}
	}
}

// applyBulkStep applies the oldest open bulk revocation to some records. The statuses in the model do not change.
func (f *bulkModel) applyBulkStep(t rapid.TB, limit int) {
	t.Helper()
	if len(f.open) == 0 {
		return
	}
	changes, bulk, err := f.w.Revocation.ApplyBulk(context.Background(), f.open[0], limit, f.w.now)
	must(t, err)
	for _, c := range changes {
		mustEqual(t, "the state of a changed record", f.w.readCertificate(t, c.Ref).Status.State, pki.Revoked)
	}
	if bulk.Done {
		f.open = f.open[1:]
	}
}

// finish applies all bulk revocations to the records, and compares CRLs and log with the model.
func (f *bulkModel) finish(t rapid.TB) {
	t.Helper()
	for len(f.open) > 0 {
		f.applyBulkStep(t, 3)
	}
	f.check(t)
	open, err := f.w.Revocation.OpenBulk(context.Background())
	must(t, err)
	mustEqual(t, "the number of open bulk revocations", len(open), 0)
	longAgo := f.w.now.Add(-24 * 365 * time.Hour)
	revoked := f.listedReasons(t, crl.Listing{NotExpiredAt: longAgo})
	changed := f.listedReasons(t, crl.Listing{NotExpiredAt: longAgo, Delta: true})
	logged := statuses{}
	for _, e := range f.w.entries(t) {
		for _, c := range e.Changes {
			logged.keepNewer(c)
		}
	}
	for _, c := range f.certs {
		reason, listed := revoked[c.Ref]
		if listed != (c.status.State != pki.Good) || listed && reason != c.status.Reason {
			t.Fatalf("certificate %s has the status %v, in the CRL: %v (%v)", c.Ref.Serial, c.status, listed, reason)
		}
		if delta, has := changed[c.Ref]; has != (c.status.Version > 1) || listed && delta != reason {
			t.Fatalf("certificate %s has the status %v, in a delta CRL since the beginning: %v (%v)", c.Ref.Serial, c.status, has, delta)
		}
		mustEqual(t, "the newest status in the log", logged[c.Ref].Status, c.status)
	}
}

// listedReasons returns the reasons in the CRLs of both issuers.
func (f *bulkModel) listedReasons(t rapid.TB, l crl.Listing) map[pki.CertRef]pki.Reason {
	t.Helper()
	found := map[pki.CertRef]pki.Reason{}
	for _, issuer := range []pki.IssuerID{issuerA, issuerB} {
		must(t, f.w.CRLs.View(context.Background(), issuer, func(v crl.View) error {
			for e, err := range v.Entries(l) {
				if err != nil {
					return err
				}
				found[pki.CertRef{Issuer: issuer, Serial: e.Serial}] = e.Reason
			}
			return nil
		}))
	}
	return found
}

// testBulkModel takes random steps, among them bulk revocations and their steps, and compares the store with a
// bulkModel.
func testBulkModel(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	rapid.Check(t, func(rt *rapid.T) {
		f := &bulkModel{w: w, compromised: map[pki.KeyHash]bool{}}
		w.now = w.now.Add(48 * time.Hour) // the certificates of earlier runs have expired
		w.register(rt)
		w.advanceAge(rt)
		f.age = w.now
		open, err := w.Revocation.OpenBulk(context.Background())
		must(rt, err)
		for _, bulk := range open { // of a run that failed
			f.open = append(f.open, bulk.ID)
		}
		for len(f.open) > 0 {
			f.applyBulkStep(rt, 100)
		}
		for i := range 3 {
			id := w.newIdentity(rt)
			id.Labels = map[string]string{"site": []string{"north", "south"}[i%2]}
			if i == 2 {
				id.Labels = map[string]string{"batch": ""}
			}
			id, err := w.RA.CreateIdentity(context.Background(), id, operator)
			must(rt, err)
			f.identities = append(f.identities, id)
		}
		actions := map[string]func(){
			"issue": func() { f.issue(rt) }, "issue more": func() { f.issue(rt) }, "create bulk": func() { f.createBulk(rt) }, "change one": func() { f.changeOne(rt) },
			"step":        func() { f.applyBulkStep(rt, rapid.IntRange(1, 3).Draw(rt, "limit")) },
			"later":       func() { w.now = w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(rt, "minutes")) * time.Minute) },
			"advance age": func() { w.advanceAge(rt); f.age = w.now },
			"reopen":      func() { w.reopen(t); w.begin(rt) },
		}
		names := slices.Sorted(maps.Keys(actions))
		for range 2 {
			f.issue(rt)
		}
		for n := range rapid.IntRange(3, 12).Draw(rt, "actions") {
			actions[rapid.SampledFrom(names).Draw(rt, fmt.Sprintf("action %d", n))]()
			f.check(rt)
		}
		f.finish(rt)
	})
}
