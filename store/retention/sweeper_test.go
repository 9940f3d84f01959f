package retention_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/retention"
)

// fakeStore is a retention.Store that records the calls of a sweeper. Every step takes a given time.
type fakeStore struct {
	retention.Store
	age     time.Time
	steps   int // number of steps before the last
	took    time.Duration
	asked   []retention.Step
	begun   []time.Time
	fails   atomic.Bool
	follows atomic.Bool
	by      []time.Duration
	// entries is the number of steps that remove log entries.
	entries int
	left    []time.Time // when such a step began
}

func (s *fakeStore) Step(_ context.Context, before time.Time) (int, error) {
	if s.entries == 0 {
		return 0, nil
	}
	if want := s.age.Add(-retention.Minimum); !before.Equal(want) {
		return 0, errors.New("a wrong time")
	}
	s.left = append(s.left, time.Now())
	time.Sleep(s.took)
	s.entries--
	return 7, nil
}

func (s *fakeStore) Advance(_ context.Context, by time.Duration, now time.Time) (time.Time, error) {
	if s.fails.Load() {
		return time.Time{}, errors.New("the disk is full")
	}
	if s.follows.Load() {
		return time.Time{}, fmt.Errorf("advance the age: %w", pki.ErrNotLeader)
	}
	s.by = append(s.by, by)
	if s.age = s.age.Add(by); s.age.After(now) {
		s.age = now
	}
	return s.age, nil
}

func (s *fakeStore) Expire(_ context.Context, step retention.Step) (retention.Expired, error) {
	s.asked, s.begun = append(s.asked, step), append(s.begun, time.Now())
	time.Sleep(s.took)
	s.steps--
	return retention.Expired{Certificates: 2, Keys: 1, Next: retention.Position{Row: int64(len(s.asked))}, More: s.steps > 0}, nil
}

// sweeping runs a sweeper until the test ends.
func sweeping(t *testing.T, s *fakeStore, busy *atomic.Bool) *retention.Sweeper {
	t.Helper()
	return logging(t, s, busy, slog.New(slog.DiscardHandler))
}

func logging(t *testing.T, s *fakeStore, busy *atomic.Bool, log *slog.Logger) *retention.Sweeper {
	t.Helper()
	sweeper, err := retention.NewSweeper(retention.Config{
		Store: s, Entries: s, Retention: retention.Minimum, Busy: busy.Load, Clock: time.Now, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sweeper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return sweeper
}

func TestSweeperPausesAfterSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		s := &fakeStore{age: time.Now(), steps: 5, took: 10 * time.Millisecond}
		start := time.Now()
		sweeper := sweeping(t, s, &busy)
		if !sweeper.Last().Ended.IsZero() {
			t.Error("Last returns a sweep before the first one has ended")
		}
		time.Sleep(55 * time.Millisecond) // during the second step
		busy.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []time.Duration{0, 50, 150, 250, 350}
		if len(s.begun) != len(want) {
			t.Fatalf("%d steps, want %d", len(s.begun), len(want))
		}
		for i, at := range s.begun {
			if d := at.Sub(start); d != want[i]*time.Millisecond {
				t.Errorf("step %d started after %v, want %d ms", i+1, d, want[i])
			}
			if a := s.asked[i]; a.After.Row != int64(i) || !a.Before.Equal(start.Add(-retention.Minimum)) || a.Limit < 1 {
				t.Errorf("step %d was called with %+v", i+1, a)
			}
		}
		last := sweeper.Last()
		if last.Expired.Certificates != 10 || last.Expired.Keys != 5 || !last.Ended.Equal(start.Add(360*time.Millisecond)) {
			t.Errorf("Last = %+v", last)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(s.begun) != len(want)+1 || s.asked[len(want)].After != (retention.Position{}) {
			t.Errorf("after the next sweep there were %d steps, the last one from %+v", len(s.begun), s.asked[len(s.asked)-1].After)
		}
	})
}

// Log entries leave after the expired records, in steps with the same pauses.
func TestSweeperRemovesLogEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		s := &fakeStore{age: time.Now(), entries: 3, took: 10 * time.Millisecond}
		start := time.Now()
		sweeper := sweeping(t, s, &busy)
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []time.Duration{10, 60, 110}
		if len(s.left) != len(want) {
			t.Fatalf("%d steps, want %d", len(s.left), len(want))
		}
		for i, at := range s.left {
			if d := at.Sub(start); d != want[i]*time.Millisecond {
				t.Errorf("step %d started after %v, want %d ms", i+1, d, want[i])
			}
		}
		if n := sweeper.Last().Entries; n != 21 {
			t.Errorf("%d entries were removed", n)
		}
	})
}

// The age of the records follows a correct clock, and catches up at twice the speed of time. While the store fails, the
// time that passes is not lost.
func TestTheAgeOfTheRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		start := time.Now()
		s := &fakeStore{age: start.Add(-time.Hour)} // the server was down for an hour
		s.fails.Store(true)
		sweeper := sweeping(t, s, &busy)
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		if !sweeper.Last().Ended.IsZero() || len(s.by) > 0 {
			t.Error("Last returns a sweep that failed")
		}
		s.fails.Store(false)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(s.by) != 6 || s.by[0] != time.Hour || s.by[1] != 20*time.Minute {
			t.Errorf("the age was advanced by %v", s.by)
		}
		if want := start.Add(80 * time.Minute); !s.age.Equal(want) {
			t.Errorf("the age is %v, want %v", s.age, want)
		}
	})
}

func TestARetentionThatIsTooShort(t *testing.T) {
	if _, err := retention.NewSweeper(retention.Config{Retention: retention.Minimum - 1}); err == nil {
		t.Error("NewSweeper accepts a retention below Minimum")
	}
}

// A server that does not lead asks every few seconds whether it has to, without a message, and sweeps as soon as it does.
func TestSweeperFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		var logged strings.Builder
		s := &fakeStore{age: time.Now()}
		s.follows.Store(true)
		sweeper := logging(t, s, &busy, slog.New(slog.NewTextHandler(&logged, nil)))
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if len(s.begun) > 0 || !sweeper.Last().Ended.IsZero() || sweeper.LastKnown().Before(time.Now().Add(-10*time.Second)) {
			t.Errorf("after an hour there were %d steps, a last sweep %+v, and another server was known to lead at %v",
				len(s.begun), sweeper.Last(), sweeper.LastKnown())
		}
		s.follows.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if last := sweeper.Last().Ended; last.IsZero() || !last.Equal(sweeper.LastKnown()) {
			t.Errorf("ten seconds after it leads, the last sweep is of %v", last)
		}
		if strings.Contains(logged.String(), "WARN") {
			t.Errorf("logged:\n%s", logged.String())
		}
	})
}
