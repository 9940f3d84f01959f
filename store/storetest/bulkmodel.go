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
func (m *bulkModel) revoke(c *cert, req revocation.BulkRequest) bool {
	if c.status.State == pki.Revoked && (req.Reason != pki.KeyCompromise || c.status.Reason == pki.KeyCompromise) {
		return false
	}
	if c.status.State != pki.Revoked {
		c.status.RevokedAt, c.invalidSince = req.At, time.Time{}
	}
	if !req.InvalidSince.IsZero() {
		c.invalidSince = req.InvalidSince
	}
	c.status.State, c.status.Reason = pki.Revoked, req.Reason
	c.status.Version++
	if req.Reason == pki.KeyCompromise {
		m.compromised[c.KeyHash] = true
	}
	return true
}

// members returns the certificates that a bulk revocation concerns.
func (m *bulkModel) members(req revocation.BulkRequest) []*cert {
	lineage := m.lineage(req.LineageOf)
	inReach := func(c *cert) bool { return !c.NotAfter.Before(m.age) }
	keys := map[pki.KeyHash]bool{}
	selected := map[*cert]bool{}
	for _, c := range m.certs {
		if inReach(c) &&
			(req.Issuer.IsZero() || c.Ref.Issuer == req.Issuer) &&
			(req.Identity.IsZero() || c.Identity == req.Identity) &&
			(req.LineageOf.IsZero() || lineage[c]) &&
			(req.Key.IsZero() || c.KeyHash == req.Key) &&
			(req.Profile == "" || c.Profile == req.Profile) &&
			(req.Label.IsZero() || hasLabel(c.labels, req.Label)) &&
			(req.IssuedFrom.IsZero() || !c.issued.Before(req.IssuedFrom)) &&
			(req.IssuedUntil.IsZero() || c.issued.Before(req.IssuedUntil)) {
			selected[c], keys[c.KeyHash] = true, true
		}
	}
	var all []*cert
	for _, c := range m.certs {
		if selected[c] || req.Reason == pki.KeyCompromise && keys[c.KeyHash] && inReach(c) {
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
func (m *bulkModel) lineage(first pki.CertRef) map[*cert]bool {
	lineage := map[*cert]bool{}
	for grew := true; grew; {
		grew = false
		for i, c := range m.certs {
			if lineage[c] {
				continue
			}
			belongs := c.Ref == first
			for _, before := range m.certs[:i] {
				belongs = belongs || lineage[before] && before.Identity == c.Identity && !before.successor.IsZero() && before.successor == c.KeyHash
			}
			if belongs {
				lineage[c], grew = true, true
			}
		}
	}
	return lineage
}

// check compares the status of each certificate in every read of the store with the model.
func (m *bulkModel) check(t rapid.TB) {
	t.Helper()
	snapshot, _ := m.w.snapshot(t, m.w.now.Add(-24*365*time.Hour))
	for _, c := range m.certs {
		have := m.w.readCertificate(t, c.Ref)
		mustEqual(t, "the status of certificate "+c.Ref.Serial.String(), have.Status, c.status)
		mustEqual(t, "its invalidity date", have.InvalidSince, c.invalidSince)
		mustEqual(t, "its status in the snapshot", snapshot[c.Ref].Status, c.status)
		st, err := m.w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{Identity: c.Identity, Predecessor: c.Ref, Request: c.RequestID, Key: c.KeyHash})
		must(t, err)
		mustEqual(t, "its status as a predecessor", st.Predecessor.Status, c.status)
		if compromised := st.KeyRefusal != nil; compromised != m.compromised[c.KeyHash] {
			t.Fatalf("the key of certificate %s is refused by %v, compromised is %v", c.Ref.Serial, st.KeyRefusal, m.compromised[c.KeyHash])
		}
	}
}

// issue issues or renews a certificate. If its guard must refuse it, issue checks the rule.
func (m *bulkModel) issue(t *rapid.T) {
	id := rapid.SampledFrom(m.identities).Draw(t, "identity")
	r := m.w.record(t, id.ID)
	r.Profile = rapid.SampledFrom([]string{"device", "server"}).Draw(t, "profile")
	r.Ref.Issuer = rapid.SampledFrom([]pki.IssuerID{issuerA, issuerB}).Draw(t, "issuer")
	r.NotAfter = m.w.now.Add(rapid.SampledFrom([]time.Duration{time.Hour, 3 * time.Hour, 24 * time.Hour}).Draw(t, "lifetime"))
	var ofIdentity []*cert
	for _, c := range m.certs {
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
	err := m.w.commit(t, r)
	switch {
	case before != nil && before.status.State != pki.Good:
		mustRefuse(t, err, pki.RuleRevoked)
	case before != nil && !before.successor.IsZero() && before.successor != r.KeyHash:
		mustRefuse(t, err, pki.RuleRenewalKeyConflict)
	case m.compromised[r.KeyHash]:
		mustRefuse(t, err, pki.RuleKeyCompromised)
	default:
		must(t, err)
		if before != nil {
			before.successor = r.KeyHash
		}
		m.certs = append(m.certs, &cert{Record: r, issued: m.w.now, labels: id.Labels, status: pki.Status{State: pki.Good, Version: 1}})
	}
}

var bulkLabels = []pki.Label{{Name: "site", Value: "north"}, {Name: "site", Value: "south"}, {Name: "batch", Value: ""}}

// drawBulkRequest draws a bulk revocation with one or two criteria.
func (m *bulkModel) drawBulkRequest(t *rapid.T) revocation.BulkRequest {
	req := revocation.BulkRequest{Action: revoke, Actor: operator, At: m.w.now, Reason: rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise, pki.Unspecified}).Draw(t, "reason")}
	if rapid.Bool().Draw(t, "with invalidity date") {
		req.InvalidSince = m.w.now.Add(-time.Duration(rapid.IntRange(1, 9).Draw(t, "hours")) * time.Hour)
	}
	c := rapid.SampledFrom(m.certs).Draw(t, "a certificate")
	for n := rapid.IntRange(1, 2).Draw(t, "criteria"); n > 0; n-- {
		switch rapid.SampledFrom([]string{"issuer", "identity", "lineage", "key", "profile", "label", "label", "from", "until"}).Draw(t, "criterion") {
		case "issuer":
			req.Issuer = c.Ref.Issuer
		case "identity":
			req.Identity = c.Identity
		case "lineage":
			req.LineageOf = c.Ref
		case "key":
			req.Key = c.KeyHash
		case "profile":
			req.Profile = c.Profile
		case "label":
			req.Label = rapid.SampledFrom(bulkLabels).Draw(t, "label")
		case "from":
			req.IssuedFrom = c.issued
		case "until":
			req.IssuedUntil = c.issued
		}
	}
	return req
}

// createBulk creates a bulk revocation. The count before it, the changes and the notifications of responders must match
// the model.
func (m *bulkModel) createBulk(t *rapid.T) {
	if len(m.certs) == 0 {
		return
	}
	ctx := context.Background()
	req := m.drawBulkRequest(t)
	counted, err := m.w.Revocation.CountBulk(ctx, req)
	must(t, err)
	bulk, notified, err := m.w.Revocation.CreateBulk(ctx, req)
	must(t, err)
	if !bulk.Done {
		m.open = append(m.open, bulk.ID)
		// The observer copies the changes, because the store may reuse the slice.
		bulk, err = m.w.Revocation.NotifyBulk(ctx, bulk.ID, pki.StatusObserverFunc(func(c []pki.StatusChange) { notified = append(notified, c...) }))
		must(t, err)
	}
	if bulk.Done != req.OfOneIdentity() || !bulk.Counted {
		t.Fatalf("after its creation the bulk revocation is %+v", bulk)
	}
	changed, want := revocation.Affected{}, statuses{}
	for _, c := range m.members(req) {
		if m.revoke(c, req) {
			changed.Add(c.NotAfter, req.At)
		}
		want[c.Ref] = pki.StatusChange{Ref: c.Ref, NotAfter: c.NotAfter, Status: c.status}
	}
	if req.Reason == pki.KeyCompromise && !req.Key.IsZero() {
		m.compromised[req.Key] = true
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
func (m *bulkModel) changeOne(t *rapid.T) {
	if len(m.certs) == 0 {
		return
	}
	c := rapid.SampledFrom(m.certs).Draw(t, "certificate")
	change := revocation.Change{Certificate: c.Ref, Actor: operator, At: m.w.now, Action: rapid.SampledFrom([]revocation.Action{revoke, hold, unhold}).Draw(t, "action")}
	switch change.Action {
	case revoke:
		change.Reason = rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise}).Draw(t, "reason")
	case hold:
		change.Reason = pki.CertificateHold
	}
	_, err := m.w.Statuses.Apply(context.Background(), change)
	final := c.status.State == pki.Revoked
	if final && (change.Action != revoke || change.Reason != c.status.Reason && change.Reason != pki.KeyCompromise) {
		mustRefuse(t, err, pki.RuleAlreadyRevoked)
		return
	}
	must(t, err)
	switch {
	case change.Action == revoke && change.Reason == pki.KeyCompromise && c.status.Reason != pki.KeyCompromise:
		request := revocation.BulkRequest{Reason: change.Reason, At: change.At}
		m.revoke(c, request)
		for _, other := range m.certs {
			if other.KeyHash == c.KeyHash && !other.NotAfter.Before(m.age) {
				m.revoke(other, request)
			}
		}
	case change.Action == revoke:
		m.revoke(c, revocation.BulkRequest{Reason: change.Reason, At: change.At})
	case change.Action == hold && c.status.State == pki.Good:
		c.status = pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: change.At, Version: c.status.Version + 1}
	case change.Action == unhold && c.status.State == pki.Hold:
		c.status = pki.Status{State: pki.Good, Version: c.status.Version + 1}
	}
}

// applyBulkStep applies the oldest open bulk revocation to some records. The statuses in the model do not change.
func (m *bulkModel) applyBulkStep(t rapid.TB, limit int) {
	t.Helper()
	if len(m.open) == 0 {
		return
	}
	changes, bulk, err := m.w.Revocation.ApplyBulk(context.Background(), m.open[0], limit, m.w.now)
	must(t, err)
	for _, c := range changes {
		mustEqual(t, "the state of a changed record", m.w.readCertificate(t, c.Ref).Status.State, pki.Revoked)
	}
	if bulk.Done {
		m.open = m.open[1:]
	}
}

// finish applies all bulk revocations to the records, and compares CRLs and log with the model.
func (m *bulkModel) finish(t rapid.TB) {
	t.Helper()
	for len(m.open) > 0 {
		m.applyBulkStep(t, 3)
	}
	m.check(t)
	open, err := m.w.Revocation.OpenBulk(context.Background())
	must(t, err)
	mustEqual(t, "the number of open bulk revocations", len(open), 0)
	longAgo := m.w.now.Add(-24 * 365 * time.Hour)
	revoked := m.listedReasons(t, crl.Listing{NotExpiredAt: longAgo})
	changed := m.listedReasons(t, crl.Listing{NotExpiredAt: longAgo, Delta: true})
	logged := statuses{}
	for _, e := range m.w.entries(t) {
		for _, c := range e.Changes {
			logged.keepNewer(c)
		}
	}
	for _, c := range m.certs {
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
func (m *bulkModel) listedReasons(t rapid.TB, l crl.Listing) map[pki.CertRef]pki.Reason {
	t.Helper()
	found := map[pki.CertRef]pki.Reason{}
	for _, issuer := range []pki.IssuerID{issuerA, issuerB} {
		must(t, m.w.CRLs.View(context.Background(), issuer, func(v crl.View) error {
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
		m := &bulkModel{w: w, compromised: map[pki.KeyHash]bool{}}
		w.now = w.now.Add(48 * time.Hour) // the certificates of earlier runs have expired
		w.register(rt)
		w.advanceAge(rt)
		m.age = w.now
		open, err := w.Revocation.OpenBulk(context.Background())
		must(rt, err)
		for _, bulk := range open { // of a run that failed
			m.open = append(m.open, bulk.ID)
		}
		for len(m.open) > 0 {
			m.applyBulkStep(rt, 100)
		}
		for i := range 3 {
			id := w.newIdentity(rt)
			id.Labels = map[string]string{"site": []string{"north", "south"}[i%2]}
			if i == 2 {
				id.Labels = map[string]string{"batch": ""}
			}
			id, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
			must(rt, err)
			m.identities = append(m.identities, id)
		}
		actions := map[string]func(){
			"issue": func() { m.issue(rt) }, "issue more": func() { m.issue(rt) }, "create bulk": func() { m.createBulk(rt) }, "change one": func() { m.changeOne(rt) },
			"step":        func() { m.applyBulkStep(rt, rapid.IntRange(1, 3).Draw(rt, "limit")) },
			"later":       func() { w.now = w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(rt, "minutes")) * time.Minute) },
			"advance age": func() { w.advanceAge(rt); m.age = w.now },
			"reopen":      func() { w.reopen(t) },
		}
		names := slices.Sorted(maps.Keys(actions))
		for range 2 {
			m.issue(rt)
		}
		for n := range rapid.IntRange(3, 12).Draw(rt, "actions") {
			actions[rapid.SampledFrom(names).Draw(rt, fmt.Sprintf("action %d", n))]()
			m.check(rt)
		}
		m.finish(rt)
	})
}
