package retention

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// Default is the longest lifetime of the default profiles: a record outlives its certificate by the lifetime of the
	// successor, in which faults show.
	Default = 90 * 24 * time.Hour
	// Minimum is twice the lifetime of a CRL. A clock may be ahead by as much without the record of a valid certificate leaving.
	Minimum = 48 * time.Hour

	sweepEvery = 10 * time.Minute
	sweepStep  = 256 // certificates a transaction, which takes some milliseconds
	// A step is followed by a pause of some times as long as the step took: the store's writer belongs to issuing.
	idlePause  = 4
	busyPause  = 9
	leastPause = time.Millisecond
	// ageSpeed is how fast the records' age may catch up with the clock after the server did not run.
	ageSpeed = 2
)

// Config is what a Sweeper is made of. All fields are needed.
type Config struct {
	Store     Store
	Retention time.Duration
	Busy      func() bool // whether certificates are being issued
	Clock     func() time.Time
	Log       *slog.Logger
}

// Sweeper removes records that expired longer than the retention ago. It is safe for concurrent use.
type Sweeper struct {
	c    Config
	mu   sync.Mutex
	last Sweep
}

// Sweep describes the last sweep that was completed. Its zero value is none.
type Sweep struct {
	Ended   time.Time
	Before  time.Time // records that expired before it have left
	Expired Expired   // in all its steps
}

// NewSweeper returns a Sweeper.
func NewSweeper(c Config) (*Sweeper, error) {
	if c.Retention < Minimum {
		return nil, fmt.Errorf("a retention of %v is too short: keep records for %v at least", c.Retention, Minimum)
	}
	return &Sweeper{c: c}, nil
}

// Retention returns how long the record of a certificate or token stays after that has expired.
func (s *Sweeper) Retention() time.Duration { return s.c.Retention }

// Before returns the time before which expired records leave: of the last sweep, or by the clock if there was none.
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

// Run sweeps until ctx ends, and returns nil. The next sweep retries what failed.
func (s *Sweeper) Run(ctx context.Context) error {
	since := time.Now() // its monotonic clock is one that nobody sets
	for {
		now := time.Now()
		age, err := s.c.Store.Advance(ctx, ageSpeed*now.Sub(since), s.c.Clock())
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

// sweep takes steps until no record is left that expired before a time.
func (s *Sweeper) sweep(ctx context.Context, before time.Time) error {
	var all Expired
	for step := (Step{Before: before, Limit: sweepStep}); ; {
		step.At = s.c.Clock()
		begun := time.Now()
		e, err := s.c.Store.Expire(ctx, step)
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

// rest returns the pause after a step that took so long. With it the sweep takes a fifth of the writer's time, and a tenth
// while certificates are being issued, on any disk.
func (s *Sweeper) rest(took time.Duration) time.Duration {
	times := time.Duration(idlePause)
	if s.c.Busy() {
		times = busyPause
	}
	return max(times*took, leastPause)
}

// pause waits, and returns false if ctx ends first.
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
