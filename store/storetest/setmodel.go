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

// fleet is what a store should hold, for orders about sets: nothing in it knows steps.
type fleet struct {
	w          *world
	identities []ra.Identity
	certs      []*cert
	marked     map[pki.KeyHash]bool
	open       []int64   // the sets whose records are to follow
	age        time.Time // of the records
}

// cert is one certificate, and how it stands.
type cert struct {
	ca.Record
	issued    time.Time
	labels    map[string]string
	successor pki.KeyHash
	status    pki.Status
	since     time.Time
}

// revoke gives a certificate the status that an order to revoke gives it, and reports whether that is another one.
func (f *fleet) revoke(c *cert, o revocation.BulkRequest) bool {
	if c.status.State == pki.Revoked && (o.Reason != pki.KeyCompromise || c.status.Reason == pki.KeyCompromise) {
		return false
	}
	if c.status.State != pki.Revoked {
		c.status.RevokedAt, c.since = o.At, time.Time{}
	}
	if !o.InvalidSince.IsZero() {
		c.since = o.InvalidSince
	}
	c.status.State, c.status.Reason = pki.Revoked, o.Reason
	c.status.Version++
	if o.Reason == pki.KeyCompromise {
		f.marked[c.KeyHash] = true
	}
	return true
}

// members are the certificates that an order is about.
func (f *fleet) members(o revocation.BulkRequest) []*cert {
	line := f.lineage(o.LineageOf)
	alive := func(c *cert) bool { return !c.NotAfter.Before(f.age) }
	keys := map[pki.KeyHash]bool{}
	selected := map[*cert]bool{}
	for _, c := range f.certs {
		if alive(c) &&
			(o.Issuer.IsZero() || c.Ref.Issuer == o.Issuer) &&
			(o.Identity.IsZero() || c.Identity == o.Identity) &&
			(o.LineageOf.IsZero() || line[c]) &&
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
		if selected[c] || o.Reason == pki.KeyCompromise && keys[c.KeyHash] && alive(c) {
			all = append(all, c)
		}
	}
	return all
}

func hasLabel(labels map[string]string, l pki.Label) bool {
	value, ok := labels[l.Name]
	return ok && value == l.Value
}

// lineage follows the keys of renewals until it finds nothing new.
func (f *fleet) lineage(first pki.CertRef) map[*cert]bool {
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

// check compares everything that tells of a status with the model.
func (f *fleet) check(t rapid.TB) {
	t.Helper()
	snapshot, _ := f.w.snapshot(t, f.w.now.Add(-24*365*time.Hour))
	for _, c := range f.certs {
		have := f.w.certificate(t, c.Ref)
		mustEqual(t, "the status of certificate "+c.Ref.Serial.String(), have.Status, c.status)
		mustEqual(t, "its invalidity date", have.InvalidSince, c.since)
		mustEqual(t, "what the snapshot says of it", snapshot[c.Ref].Status, c.status)
		st, err := f.w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: c.Identity, Predecessor: c.Ref, Request: c.RequestID, Key: c.KeyHash})
		must(t, err)
		mustEqual(t, "what a renewal of it rests on", st.Predecessor.Status, c.status)
		if compromised := st.KeyRefusal != nil; compromised != f.marked[c.KeyHash] {
			t.Fatalf("the key of certificate %s: %v, and that it is compromised is %v", c.Ref.Serial, st.KeyRefusal, f.marked[c.KeyHash])
		}
	}
}

// issue issues a certificate, or renews one, as the guards let it.
func (f *fleet) issue(t *rapid.T) {
	id := rapid.SampledFrom(f.identities).Draw(t, "identity")
	r := f.w.record(t, id.ID)
	r.Profile = rapid.SampledFrom([]string{"device", "server"}).Draw(t, "profile")
	r.Ref.Issuer = rapid.SampledFrom([]pki.IssuerID{issuerA, issuerB}).Draw(t, "issuer")
	r.NotAfter = f.w.now.Add(rapid.SampledFrom([]time.Duration{time.Hour, 3 * time.Hour, 24 * time.Hour}).Draw(t, "lifetime"))
	var its []*cert
	for _, c := range f.certs {
		if c.Identity == id.ID {
			its = append(its, c)
		}
	}
	var before *cert
	if len(its) > 0 && rapid.Bool().Draw(t, "with a key it has") {
		r.KeyHash = rapid.SampledFrom(its).Draw(t, "whose key").KeyHash
		r.Guard.Key = r.KeyHash
	}
	if len(its) > 0 && rapid.Bool().Draw(t, "renewal") {
		before = rapid.SampledFrom(its).Draw(t, "predecessor")
		r.Guard.Predecessor, r.Guard.Renewed = before.Ref, before.successor == r.KeyHash
	}
	err := f.w.try(t, r)
	switch {
	case before != nil && before.status.State != pki.Good:
		mustRefuse(t, err, pki.RuleRevoked)
	case before != nil && !before.successor.IsZero() && before.successor != r.KeyHash:
		mustRefuse(t, err, pki.RuleRenewalKeyConflict)
	case f.marked[r.KeyHash]:
		mustRefuse(t, err, pki.RuleKeyCompromised)
	default:
		must(t, err)
		if before != nil {
			before.successor = r.KeyHash
		}
		f.certs = append(f.certs, &cert{Record: r, issued: f.w.now, labels: id.Labels, status: pki.Status{State: pki.Good, Version: 1}})
	}
}

var setLabels = []pki.Label{{Name: "site", Value: "north"}, {Name: "site", Value: "south"}, {Name: "batch", Value: ""}}

// drawOrder draws an order about a set. Half of them select by one thing.
func (f *fleet) drawOrder(t *rapid.T) revocation.BulkRequest {
	o := revocation.BulkRequest{Action: revoke, Actor: operator, At: f.w.now, Reason: rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise, pki.Unspecified}).Draw(t, "reason")}
	if rapid.Bool().Draw(t, "since when") {
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
			o.Label = rapid.SampledFrom(setLabels).Draw(t, "label")
		case "from":
			o.IssuedFrom = c.issued
		case "until":
			o.IssuedUntil = c.issued
		}
	}
	return o
}

// order gives an order about a set. What is counted beforehand, what is changed, and what responders are told agree.
func (f *fleet) order(t *rapid.T) {
	if len(f.certs) == 0 {
		return
	}
	ctx := context.Background()
	o := f.drawOrder(t)
	counted, err := f.w.Revocation.CountBulk(ctx, o)
	must(t, err)
	set, told, err := f.w.Revocation.CreateBulk(ctx, o)
	must(t, err)
	if !set.Done {
		f.open = append(f.open, set.ID)
		// Whoever is told holds on to nothing that is used again.
		set, err = f.w.Revocation.NotifyBulk(ctx, set.ID, pki.StatusObserverFunc(func(c []pki.StatusChange) { told = append(told, c...) }))
		must(t, err)
	}
	if set.Done != o.OfOneIdentity() || !set.Counted {
		t.Fatalf("after the order the set is %+v", set)
	}
	changed, want := revocation.Affected{}, statuses{}
	for _, c := range f.members(o) {
		if f.revoke(c, o) {
			changed.Add(c.NotAfter, o.At)
		}
		want[c.Ref] = pki.StatusChange{Ref: c.Ref, NotAfter: c.NotAfter, Status: c.status}
	}
	if o.Reason == pki.KeyCompromise && !o.Key.IsZero() {
		f.marked[o.Key] = true
	}
	have := statuses{}
	for _, c := range told {
		have[c.Ref] = c
	}
	mustEqual(t, "what responders are told", have, want)
	mustEqual(t, "what is counted beforehand", counted, changed)
	mustEqual(t, "what the set counts", revocation.Affected{Valid: set.Total - set.Expired, Expired: set.Expired}, changed)
}

// single gives an order about one certificate.
func (f *fleet) single(t *rapid.T) {
	if len(f.certs) == 0 {
		return
	}
	c := rapid.SampledFrom(f.certs).Draw(t, "certificate")
	o := revocation.Change{Certificate: c.Ref, Actor: operator, At: f.w.now, Action: rapid.SampledFrom([]revocation.Action{revoke, hold, release}).Draw(t, "action")}
	switch o.Action {
	case revoke:
		o.Reason = rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise}).Draw(t, "reason")
	case hold:
		o.Reason = pki.CertificateHold
	}
	_, err := f.w.Orders.Apply(context.Background(), o)
	final := c.status.State == pki.Revoked
	if final && (o.Action != revoke || o.Reason != c.status.Reason && o.Reason != pki.KeyCompromise) {
		mustRefuse(t, err, pki.RuleAlreadyRevoked)
		return
	}
	must(t, err)
	switch {
	case o.Action == revoke && o.Reason == pki.KeyCompromise && c.status.Reason != pki.KeyCompromise:
		so := revocation.BulkRequest{Reason: o.Reason, At: o.At}
		f.revoke(c, so)
		for _, other := range f.certs {
			if other.KeyHash == c.KeyHash && !other.NotAfter.Before(f.age) {
				f.revoke(other, so)
			}
		}
	case o.Action == revoke:
		f.revoke(c, revocation.BulkRequest{Reason: o.Reason, At: o.At})
	case o.Action == hold && c.status.State == pki.Good:
		c.status = pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: o.At, Version: c.status.Version + 1}
	case o.Action == release && c.status.State == pki.Hold:
		c.status = pki.Status{State: pki.Good, Version: c.status.Version + 1}
	}
}

// step has some records follow, which changes nothing that anybody is told.
func (f *fleet) step(t rapid.TB, limit int) {
	t.Helper()
	if len(f.open) == 0 {
		return
	}
	changes, set, err := f.w.Revocation.ApplyBulk(context.Background(), f.open[0], limit, f.w.now)
	must(t, err)
	for _, c := range changes {
		mustEqual(t, "what a record says that has followed", f.w.certificate(t, c.Ref).Status.State, pki.Revoked)
	}
	if set.Done {
		f.open = f.open[1:]
	}
}

// finish has all records follow, and then looks at what CRLs and the log say.
func (f *fleet) finish(t rapid.TB) {
	t.Helper()
	for len(f.open) > 0 {
		f.step(t, 3)
	}
	f.check(t)
	open, err := f.w.Revocation.OpenBulk(context.Background())
	must(t, err)
	mustEqual(t, "the sets that are not done", len(open), 0)
	always := f.w.now.Add(-24 * 365 * time.Hour)
	revoked := f.listed(t, crl.Listing{NotExpiredAt: always})
	changed := f.listed(t, crl.Listing{NotExpiredAt: always, Delta: true})
	logged := statuses{}
	for _, e := range f.w.entries(t) {
		for _, c := range e.Changes {
			logged.take(c)
		}
	}
	for _, c := range f.certs {
		reason, listed := revoked[c.Ref]
		if listed != (c.status.State != pki.Good) || listed && reason != c.status.Reason {
			t.Fatalf("certificate %s, which is %v, in the CRL: %v (%v)", c.Ref.Serial, c.status, listed, reason)
		}
		if delta, has := changed[c.Ref]; has != (c.status.Version > 1) || listed && delta != reason {
			t.Fatalf("certificate %s, which is %v, in a delta of everything: %v (%v)", c.Ref.Serial, c.status, has, delta)
		}
		mustEqual(t, "what the log comes to", logged[c.Ref].Status, c.status)
	}
}

// listed are the reasons that CRLs of all issuers give.
func (f *fleet) listed(t rapid.TB, l crl.Listing) map[pki.CertRef]pki.Reason {
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

// testSetModel does random things beside sets whose records follow, and compares with what has no steps.
func testSetModel(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	rapid.Check(t, func(rt *rapid.T) {
		f := &fleet{w: w, marked: map[pki.KeyHash]bool{}}
		w.now = w.now.Add(48 * time.Hour) // what a run before this one has issued has ended
		w.identity(rt)
		w.grow(rt)
		f.age = w.now
		left, err := w.Revocation.OpenBulk(context.Background())
		must(rt, err)
		for _, set := range left { // of a run that failed
			f.open = append(f.open, set.ID)
		}
		for len(f.open) > 0 {
			f.step(rt, 100)
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
			"issue": func() { f.issue(rt) }, "issue more": func() { f.issue(rt) }, "order": func() { f.order(rt) }, "single": func() { f.single(rt) },
			"step":  func() { f.step(rt, rapid.IntRange(1, 3).Draw(rt, "limit")) },
			"later": func() { w.now = w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(rt, "minutes")) * time.Minute) },
			"older": func() { w.grow(rt); f.age = w.now },
			"anew":  func() { w.reopen(t); w.begin(rt) },
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
