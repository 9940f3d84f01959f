package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

func testFeed(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"a snapshot has everything alive": snapshotHasAll, "changes follow the sequenced log": changesFollowLog,
		"a snapshot is of one moment": snapshotOfOneMoment,
	})
}

// statuses is what a responder knows.
type statuses map[pki.CertRef]pki.StatusChange

// take keeps the newer of two statuses, as responders do.
func (s statuses) take(c pki.StatusChange) {
	c.Fingerprint = nil // is with the issue alone
	if have, ok := s[c.Ref]; !ok || have.Status.Version < c.Status.Version {
		s[c.Ref] = c
	}
}

func (w *world) snapshot(t rapid.TB, at time.Time) (statuses, uint64) {
	t.Helper()
	all := statuses{}
	index, err := w.Feed.Snapshot(context.Background(), at, func(c pki.StatusChange) error {
		if _, twice := all[c.Ref]; twice {
			t.Fatalf("certificate %s was visited twice", c.Ref.Serial)
		}
		all.take(c)
		return nil
	})
	must(t, err)
	return all, index
}

func snapshotHasAll(t *testing.T, w *world) {
	good, held, revoked, unreleased := w.issued(t), w.issued(t), w.issued(t), w.abandon(t)
	expired := w.record(t, good.Identity)
	expired.NotAfter = w.now.Add(time.Minute)
	w.issue(t, expired)
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: revoked.Ref})
	_, index := w.snapshot(t, w.now)
	mustEqual(t, "the index before anything is sequenced", index, 0)
	logged := uint64(len(w.entries(t)))

	want := statuses{}
	for _, c := range []pki.StatusChange{
		{Ref: good.Ref, NotAfter: good.NotAfter, Status: pki.Status{State: pki.Good, Version: 1}},
		{Ref: held.Ref, NotAfter: held.NotAfter, Status: pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: w.now, Version: 2}},
		{Ref: revoked.Ref, NotAfter: revoked.NotAfter, Status: pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: w.now, Version: 2}},
		{Ref: unreleased.Ref, NotAfter: unreleased.NotAfter, Status: pki.Status{State: pki.Revoked, RevokedAt: w.now, Version: 1}},
	} {
		want.take(c)
	}
	all, index := w.snapshot(t, expired.NotAfter.Add(time.Second))
	mustEqual(t, "the snapshot", all, want)
	mustEqual(t, "the index", index, logged)
	if all, _ := w.snapshot(t, expired.NotAfter); len(all) != len(want)+1 {
		t.Errorf("%d certificates are alive in the last second of one's life", len(all))
	}
	enough := errors.New("enough")
	if _, err := w.Feed.Snapshot(context.Background(), w.now, func(pki.StatusChange) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a visitor's error came back as %v", err)
	}
}

// snapshotOfOneMoment changes things while a snapshot is read: what the visits missed must come after its index.
func snapshotOfOneMoment(t *testing.T, w *world) {
	var records []pki.CertRef
	for range 5 {
		records = append(records, w.issued(t).Ref)
	}
	known := statuses{}
	index, err := w.Feed.Snapshot(context.Background(), w.now, func(c pki.StatusChange) error {
		if len(known) == 0 {
			for _, ref := range records {
				w.apply(t, revocation.Change{Action: revoke, Certificate: ref})
			}
			w.issued(t)
			w.sequence(t)
		}
		known.take(c)
		return nil
	})
	must(t, err)
	changes, _, err := w.Feed.Changes(context.Background(), index, 1000)
	must(t, err)
	for _, c := range changes {
		known.take(c)
	}
	now, _ := w.snapshot(t, w.now)
	mustEqual(t, "the statuses after the changes since the snapshot", known, now)
}

func changesFollowLog(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.issued(t)
	must(t, w.Audit.Refused(ctx, operator, first.Identity, pki.Refuse(pki.RuleAccess, "", "no"), w.now)) // an entry without changes
	w.abandon(t)
	w.sequence(t)
	head, err := w.Log.Head(ctx)
	must(t, err)
	w.apply(t, revocation.Change{Action: revoke, Certificate: first.Ref}) // not sequenced

	for _, limit := range []int{1, 2, 3, 100} {
		known := statuses{}
		after := uint64(0)
		for {
			changes, last, err := w.Feed.Changes(ctx, after, limit)
			must(t, err)
			if last == after {
				mustEqual(t, "the changes at the end", len(changes), 0)
				break
			}
			if last > after+uint64(limit) { //nolint:gosec // positive
				t.Fatalf("the changes after %d reach to %d, beyond %d entries", after, last, limit)
			}
			for _, c := range changes {
				known.take(c)
			}
			after = last
		}
		mustEqual(t, "the index at the end", after, head.Size)
		if len(known) != 2 || known[first.Ref].Status.State != pki.Good {
			t.Errorf("by pages of %d the changes are %v", limit, known)
		}
	}
	w.sequence(t)
	changes, last, err := w.Feed.Changes(ctx, head.Size, 100)
	must(t, err)
	if len(changes) != 1 || changes[0].Status.State != pki.Revoked || last != head.Size+1 {
		t.Errorf("after the revocation is sequenced: %v, %d", changes, last)
	}
	changes, last, err = w.Feed.Changes(ctx, last+1000, 100)
	must(t, err)
	if len(changes) != 0 || last != head.Size+1001 {
		t.Errorf("changes beyond the end: %v, %d", changes, last)
	}
}

// testReplay does random things, and checks that a responder which read an early snapshot and then the changes knows
// what one knows that reads a snapshot now.
func testReplay(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	rapid.Check(t, func(rt *rapid.T) {
		var fleet []ra.Identity
		for range rapid.IntRange(1, 2).Draw(rt, "identities") {
			fleet = append(fleet, w.identity(rt))
		}
		var known []pki.CertRef
		something(rt, w, fleet, &known)
		early, index := w.snapshot(rt, w.now)
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			something(rt, w, fleet, &known)
		}
		w.sequence(rt)
		for {
			changes, last, err := w.Feed.Changes(context.Background(), index, rapid.IntRange(1, 5).Draw(rt, "limit"))
			must(rt, err)
			if last == index {
				break
			}
			for _, c := range changes {
				early.take(c)
			}
			index = last
		}
		late, end := w.snapshot(rt, w.now)
		mustEqual(rt, "the statuses that the changes lead to", early, late)
		mustEqual(rt, "the index", index, end)
	})
}

// something issues, abandons, sequences or carries out an order, which may be refused.
func something(t *rapid.T, w *world, fleet []ra.Identity, known *[]pki.CertRef) {
	id := rapid.SampledFrom(fleet).Draw(t, "identity").ID
	o := revocation.Change{Actor: operator, At: w.now}
	switch rapid.SampledFrom([]string{"issue", "issue", "abandon", "sequence", "certificate", "certificate", "identity"}).Draw(t, "what") {
	case "issue":
		r := w.record(t, id)
		r.Guard.Identity, r.Guard.Revision = id, w.stateOf(t, id).Revision
		_ = w.try(t, r) // refused where the identity is suspended or retired, and then a revoked record
		*known = append(*known, r.Ref)
		return
	case "abandon":
		*known = append(*known, w.abandon(t).Ref)
		return
	case "sequence":
		_, err := w.Log.Sequence(context.Background(), rapid.IntRange(1, 4).Draw(t, "entries"))
		must(t, err)
		return
	case "identity":
		o.Identity = id
	default:
		if len(*known) == 0 {
			return
		}
		o.Certificate = rapid.SampledFrom(*known).Draw(t, "certificate")
	}
	o.Action = rapid.SampledFrom([]revocation.Action{revoke, hold, release}).Draw(t, "action")
	switch o.Action {
	case revoke:
		o.Reason = rapid.SampledFrom([]pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.Superseded}).Draw(t, "reason")
		if !o.Identity.IsZero() && rapid.IntRange(0, 4).Draw(t, "retire") == 0 {
			o.State = pki.Retired
		}
	case hold:
		o.Reason = pki.CertificateHold
		if !o.Identity.IsZero() {
			o.State = pki.Suspended
		}
	}
	if _, err := w.Revocation.Apply(context.Background(), o); err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			t.Fatalf("order %+v: %v", o, err)
		}
	}
}
