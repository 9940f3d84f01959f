package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/retention"
)

// leaderWork has a function for each method that only the leader may call. There is work to do for each.
func (w *world) leaderWork(t *testing.T) map[string]func(w *world) error {
	t.Helper()
	ctx := context.Background()
	w.issueLabelled(t, 3)
	bulk := w.createBulk(t, w.bulkByLabel("7", pki.Superseded))
	started := w.startRotation(t, pki.Selection{Identity: w.enrollNew(t).Identity})
	return map[string]func(w *world) error{
		"Advance": func(w *world) error { _, err := w.Retention.Advance(ctx, time.Second, w.now); return err },
		"Expire": func(w *world) error {
			_, err := w.Retention.Expire(ctx, retention.Step{Before: w.now, At: w.now, Limit: 1})
			return err
		},
		"ApplyBulk": func(w *world) error { _, _, err := w.Revocation.ApplyBulk(ctx, bulk.ID, 1, w.now); return err },
		"EndRotation": func(w *world) error {
			_, err := w.Rotations.EndRotation(ctx, rotation.End{ID: started.ID, Actor: pki.ActorSystem("rotations"), At: w.now})
			return err
		},
		"Sequence": func(w *world) error { _, err := w.Log.Sequence(ctx, 1); return err },
	}
}

// mustFollow fails unless this server may do no work of the leader.
func (w *world) mustFollow(t *testing.T, work map[string]func(w *world) error) {
	t.Helper()
	before, err := w.Log.Written(context.Background())
	must(t, err)
	for name, do := range work {
		if err := do(w); !errors.Is(err, pki.ErrNotLeader) {
			t.Errorf("%s by a server that does not lead: %v", name, err)
		}
	}
	after, err := w.Log.Written(context.Background())
	must(t, err)
	mustEqual(t, "the number of log entries", after, before)
}

// mustDoAll fails unless this server does the work of the leader.
func (w *world) mustDoAll(t *testing.T, work map[string]func(w *world) error) {
	t.Helper()
	for name, do := range work {
		if err := do(w); err != nil {
			t.Errorf("%s by the leader: %v", name, err)
		}
	}
}

// oldestLeads has the leader stand still until its lease has ended.
func oldestLeads(t *testing.T, first, second *world) {
	work := first.leaderWork(t)
	second.mustFollow(t, work)
	first.mustDoAll(t, work)
	work = first.leaderWork(t)
	waitForLease()
	second.mustFollow(t, work) // nothing has fenced the leader
	second.fenceOthers(t)
	first.mustFollow(t, work)
	second.mustDoAll(t, work)

	work = second.leaderWork(t)
	epoch, _, err := first.Journal.BeginAgain(context.Background(), first.epoch)
	must(t, err)
	first.epoch = epoch
	first.mustFollow(t, work)
	second.mustDoAll(t, work)
}

// withoutEpochFollows: a server that has no epoch, or one whose epoch was replaced, does nothing that the leader does.
func withoutEpochFollows(t *testing.T, first, _ *world) {
	work := first.leaderWork(t)
	for name, open := range map[string]func(t *testing.T) Store{"the same server": first.Second, "another server": first.Another} {
		t.Run(name, func(t *testing.T) {
			(&world{Store: open(t), now: first.now}).mustFollow(t, work)
		})
	}
	newer := &world{Store: first.Second(t), now: first.now}
	newer.begin(t)
	first.mustFollow(t, work)
	newer.mustFollow(t, work) // the other server is older now
}

// operatorEndsRotation: an operator may end a rotation at any server.
func operatorEndsRotation(t *testing.T, first, second *world) {
	started := first.startRotation(t, pki.Selection{Identity: first.enrollNew(t).Identity})
	_, err := second.Rotations.EndRotation(context.Background(), rotation.End{ID: started.ID, Stopped: true, Actor: operator, At: first.now})
	must(t, err)
}

// oneAges has two servers advance the age of the records in turn, as each does for the time that it has measured itself.
func oneAges(t *testing.T, first, second *world) {
	ctx := context.Background()
	first.enrollNew(t)
	late := first.now.Add(1000 * time.Hour)
	start, err := first.Retention.Advance(ctx, 0, late)
	must(t, err)
	for range 5 {
		_, err = first.Retention.Advance(ctx, time.Hour, late)
		must(t, err)
		if _, err := second.Retention.Advance(ctx, time.Hour, late); !errors.Is(err, pki.ErrNotLeader) {
			t.Errorf("a server that does not lead advances the age: %v", err)
		}
	}
	waitForLease()
	second.fenceOthers(t)
	age, err := second.Retention.Advance(ctx, 100*time.Hour, late) // during which the other server has led
	must(t, err)
	mustEqual(t, "the age", age, start.Add(5*time.Hour))
	age, err = second.Retention.Advance(ctx, time.Hour, late)
	must(t, err)
	mustEqual(t, "the age", age, start.Add(6*time.Hour))
}
