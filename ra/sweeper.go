package ra

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// DefaultRetention is as long as the longest lifetime of the default profiles: a record outlives the certificate by
	// the time in which its successor shows what went wrong.
	DefaultRetention = 90 * 24 * time.Hour
	// MinRetention is twice the lifetime of a CRL, and how long a clock may be ahead unnoticed without a record leaving
	// whose certificate is alive.
	MinRetention = 48 * time.Hour

	sweepEvery = 10 * time.Minute
	sweepStep  = 256 // certificates a transaction, which takes some milliseconds
	// A step is followed by a pause of some times as long as the step took: the store's writer belongs to issuing.
	idlePause  = 4
	busyPause  = 9
	leastPause = time.Millisecond
	// ageSpeed is how fast the records' age may catch up with the clock after the server did not run.
	ageSpeed = 2
)

// SweeperConfig is what a Sweeper is made of. All fields are needed.
type SweeperConfig struct {
	Records   RetentionRecords
	Retention time.Duration
	Busy      func() bool // whether certificates are being issued
	Clock     func() time.Time
	Log       *slog.Logger
}

// Sweeper has records leave that ended longer than the retention ago. It is safe for concurrent use.
type Sweeper struct {
	c    SweeperConfig
	mu   sync.Mutex
	last Sweep
}

// Sweep is what is known of the last sweep that came to its end. Its zero value is none.
type Sweep struct {
	Ended   time.Time
	Before  time.Time // what ended before it has left
	Expired Expired   // in all its steps
}

// NewSweeper returns a Sweeper.
func NewSweeper(c SweeperConfig) (*Sweeper, error) {
	if c.Retention < MinRetention {
		return nil, fmt.Errorf("ra: a retention of %v is too short: keep records for %v at least", c.Retention, MinRetention)
	}
	return &Sweeper{c: c}, nil
}

// Retention is how long records stay after the end of what they are about.
func (s *Sweeper) Retention() time.Duration { return s.c.Retention }

// Before is the end before which records leave: of the last sweep, or of the first one as the clock would have it.
func (s *Sweeper) Before() time.Time {
	if last := s.Last(); !last.Ended.IsZero() {
		return last.Before
	}
	return s.c.Clock().Add(-s.c.Retention)
}

// Last returns the last sweep.
func (s *Sweeper) Last() Sweep {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Run sweeps until ctx ends, and returns nil. What fails is tried again with the next sweep.
func (s *Sweeper) Run(ctx context.Context) error {
	since := time.Now() // its monotonic clock is one that nobody sets
	for {
		now := time.Now()
		age, err := s.c.Records.Advance(ctx, ageSpeed*now.Sub(since), s.c.Clock())
		if err == nil {
			since = now
			err = s.sweep(ctx, age.Add(-s.c.Retention))
		}
		if err != nil && ctx.Err() == nil {
			s.c.Log.Warn("expired records could not leave the store: trying again", "wait", sweepEvery, "error", err)
		}
		if !pause(ctx, sweepEvery) {
			return nil
		}
	}
}

// sweep takes steps until nothing is left that ended before a time.
func (s *Sweeper) sweep(ctx context.Context, before time.Time) error {
	var all Expired
	for step := (ExpiryStep{Before: before, Limit: sweepStep}); ; {
		step.At = s.c.Clock()
		begun := time.Now()
		e, err := s.c.Records.Expire(ctx, step)
		if err != nil {
			return err
		}
		all.Certificates, all.Tokens, all.Keys = all.Certificates+e.Certificates, all.Tokens+e.Tokens, all.Keys+e.Keys
		step.After = e.Next
		if !e.More {
			break
		}
		if !pause(ctx, s.rest(time.Since(begun))) {
			return ctx.Err()
		}
	}
	s.mu.Lock()
	s.last = Sweep{s.c.Clock(), before, all}
	s.mu.Unlock()
	if all.Certificates+all.Tokens > 0 {
		s.c.Log.Info("expired records have left the store", "ended_before", before.UTC().Format(time.RFC3339),
			"certificates", all.Certificates, "tokens", all.Tokens, "keys", all.Keys)
	}
	return nil
}

// rest is the pause after a step that took so long. By its length the sweep takes a fifth of the writer's time, and a
// tenth while certificates are being issued, whatever the disk can do.
func (s *Sweeper) rest(took time.Duration) time.Duration {
	times := time.Duration(idlePause)
	if s.c.Busy() {
		times = busyPause
	}
	return max(times*took, leastPause)
}

// pause waits, and reports false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
