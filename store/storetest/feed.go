package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

func testFeed(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"snapshot": snapshotHasUnexpired, "changes follow the sequenced log": changesFollowLog,
		"consistent snapshot": snapshotIsConsistent,
	})
}

// statuses contains the statuses that a responder has read from the feed.
type statuses map[pki.CertRef]pki.StatusChange

// keepNewer keeps the status with the higher version, as a responder does.
func (s statuses) keepNewer(c pki.StatusChange) {
	c.Fingerprint = nil // only the change of an issuance has it
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
		all.keepNewer(c)
		return nil
	})
	must(t, err)
	return all, index
}

// changes returns the status changes after an index, and the index of the last entry that was read.
func (w *world) changes(t rapid.TB, after uint64, limit int) (all []pki.StatusChange, last uint64) {
	t.Helper()
	last, err := w.Feed.Changes(context.Background(), after, limit, func(changes []pki.StatusChange) { all = append(all, changes...) })
	must(t, err)
	return all, last
}

func snapshotHasUnexpired(t *testing.T, w *world) {
	good, held, revoked, undelivered := w.enrollNew(t), w.enrollNew(t), w.enrollNew(t), w.abandon(t)
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
		{Ref: undelivered.Ref, NotAfter: undelivered.NotAfter, Status: pki.Status{State: pki.Revoked, RevokedAt: w.now, Version: 1}},
	} {
		want.keepNewer(c)
	}
	all, index := w.snapshot(t, expired.NotAfter.Add(time.Second))
	mustEqual(t, "the snapshot", all, want)
	mustEqual(t, "the index", index, logged)
	if all, _ := w.snapshot(t, expired.NotAfter); len(all) != len(want)+1 {
		t.Errorf("the snapshot has %d certificates in the last second of one certificate's validity", len(all))
	}
	errOwn := errors.New("error of the callback")
	if _, err := w.Feed.Snapshot(context.Background(), w.now, func(pki.StatusChange) error { return errOwn }); !errors.Is(err, errOwn) {
		t.Errorf("Snapshot returns %v, want the error of its callback", err)
	}
}

// snapshotIsConsistent makes changes while it reads a snapshot. The feed must return each change that the snapshot
// lacks.
func snapshotIsConsistent(t *testing.T, w *world) {
	var records []pki.CertRef
	for range 5 {
		records = append(records, w.enrollNew(t).Ref)
	}
	known := statuses{}
	index, err := w.Feed.Snapshot(context.Background(), w.now, func(c pki.StatusChange) error {
		if len(known) == 0 {
			for _, ref := range records {
				w.apply(t, revocation.Change{Action: revoke, Certificate: ref})
			}
			w.enrollNew(t)
			w.sequence(t)
		}
		known.keepNewer(c)
		return nil
	})
	must(t, err)
	changes, _ := w.changes(t, index, 1000)
	for _, c := range changes {
		known.keepNewer(c)
	}
	now, _ := w.snapshot(t, w.now)
	mustEqual(t, "the statuses of the snapshot and later changes", known, now)
}

func changesFollowLog(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.enrollNew(t)
	must(t, w.Audit.Refused(ctx, audit.Refusal{ // an entry without changes
		By: operator, Identity: first.Identity, Why: pki.Refuse(pki.RuleAccess, "", "no"), At: w.now,
	}))
	w.abandon(t)
	w.sequence(t)
	head, err := w.Log.Head(ctx)
	must(t, err)
	w.apply(t, revocation.Change{Action: revoke, Certificate: first.Ref}) // not yet sequenced

	for _, limit := range []int{1, 2, 3, 100} {
		known := statuses{}
		position := uint64(0)
		for {
			changes, last := w.changes(t, position, limit)
			if last == position {
				mustEqual(t, "the changes at the end", len(changes), 0)
				break
			}
			if last > position+uint64(limit) { //nolint:gosec // positive
				t.Fatalf("the changes after %d reach to %d, beyond %d entries", position, last, limit)
			}
			for _, c := range changes {
				known.keepNewer(c)
			}
			position = last
		}
		mustEqual(t, "the index at the end", position, head.Size)
		if len(known) != 2 || known[first.Ref].Status.State != pki.Good {
			t.Errorf("in pages of %d the changes are %v", limit, known)
		}
	}
	w.sequence(t)
	changes, last := w.changes(t, head.Size, 100)
	if len(changes) != 1 || changes[0].Status.State != pki.Revoked || last != head.Size+1 {
		t.Errorf("after the revocation is sequenced: %v, %d", changes, last)
	}
	changes, last = w.changes(t, last+1000, 100)
	if len(changes) != 0 || last != head.Size+1001 {
		t.Errorf("changes beyond the end: %v, %d", changes, last)
	}
}

// testFeedModel takes random steps. A responder that reads an early snapshot and then the changes must have the same
// statuses as one that reads a snapshot at the end.
func testFeedModel(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	rapid.Check(t, func(rt *rapid.T) {
		var fleet []ra.Identity
		for range rapid.IntRange(1, 2).Draw(rt, "identities") {
			fleet = append(fleet, w.register(rt))
		}
		var known []pki.CertRef
		randomStep(rt, w, fleet, &known)
		early, index := w.snapshot(rt, w.now)
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			randomStep(rt, w, fleet, &known)
		}
		w.sequence(rt)
		for {
			changes, last := w.changes(rt, index, rapid.IntRange(1, 5).Draw(rt, "limit"))
			if last == index {
				break
			}
			for _, c := range changes {
				early.keepNewer(c)
			}
			index = last
		}
		late, end := w.snapshot(rt, w.now)
		mustEqual(rt, "the statuses of the early snapshot and all changes", early, late)
		mustEqual(rt, "the index", index, end)
	})
}

// randomStep issues or abandons a certificate, sequences the log, or makes a change, which the store may refuse.
func randomStep(t *rapid.T, w *world, fleet []ra.Identity, known *[]pki.CertRef) {
	id := rapid.SampledFrom(fleet).Draw(t, "identity").ID
	change := revocation.Change{Actor: operator, At: w.now}
	switch rapid.SampledFrom([]string{"issue", "issue", "abandon", "sequence", "certificate", "certificate", "identity"}).Draw(t, "step") {
	case "issue":
		r := w.record(t, id)
		r.Guard.Identity, r.Guard.Revision = id, w.readIdentity(t, id).Revision
		_ = w.commit(t, r) // if the identity is suspended or retired, the certificate is refused and recorded as revoked
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
		change.Identity = id
	default:
		if len(*known) == 0 {
			return
		}
		change.Certificate = rapid.SampledFrom(*known).Draw(t, "certificate")
	}
	change.Action = rapid.SampledFrom([]revocation.Action{revoke, hold, unhold}).Draw(t, "action")
	switch change.Action {
	case revoke:
		change.Reason = rapid.SampledFrom([]pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.Superseded}).Draw(t, "reason")
		if !change.Identity.IsZero() && rapid.IntRange(0, 4).Draw(t, "retire") == 0 {
			change.State = pki.Retired
		}
	case hold:
		change.Reason = pki.CertificateHold
		if !change.Identity.IsZero() {
			change.State = pki.Suspended
		}
	}
	if _, err := w.Statuses.Apply(context.Background(), change); err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			t.Fatalf("change %+v: %v", change, err)
		}
	}
}
