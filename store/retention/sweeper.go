package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// Default is the longest lifetime in the default profiles. A record then outlives its certificate by the lifetime of
	// the successor, in which problems show.
	Default = 90 * 24 * time.Hour
	// Minimum is twice the lifetime of a CRL. If the clock is ahead by less, no record of a valid certificate is removed.
	Minimum = 48 * time.Hour

	sweepEvery = 10 * time.Minute
	// followEvery is how often a server that does not lead asks whether it has to.
	followEvery = 3 * time.Second
	sweepStep   = 256 // certificates per transaction, which takes some milliseconds
	// After each step the sweeper pauses for a multiple of the step's duration, so that issuing gets the store's writer.
	idlePause = 4
	busyPause = 9
	minPause  = time.Millisecond
	// ageSpeed limits how fast the records' age catches up with the clock after the server was down.
	ageSpeed = 2
)

// Config holds the configuration of a Sweeper. All fields are required.
type Config struct {
	Store     Store
	Entries   Entries
	Retention time.Duration
	Busy      func() bool // whether certificates are being issued
	Clock     func() time.Time
	Log       *slog.Logger
}

// Sweeper removes the records that expired before the retention, and the log entries that were written before it. It is safe
// for concurrent use.
type Sweeper struct {
	c     Config
	mu    sync.Mutex
	last  Sweep
	known time.Time // see LastKnown
}

// Entries removes old entries of the log, whose records stay in the archive. It is used by one goroutine.
type Entries interface {
	// Step removes the oldest entries in one transaction, if they were written before a time and the archive has them. It
	// returns how many it removed. Zero means that no more can leave now.
	Step(ctx context.Context, before time.Time) (removed int, err error)
}

// Sweep describes the last completed sweep. The zero value means that there was none.
type Sweep struct {
	Ended   time.Time
	Before  time.Time // records that expired before it were removed
	Expired Expired   // by all steps together
	Entries int       // log entries that left the store
}

// NewSweeper returns a Sweeper.
func NewSweeper(c Config) (*Sweeper, error) {
	if c.Retention < Minimum {
		return nil, fmt.Errorf("a retention of %v is too short: keep records for %v at least", c.Retention, Minimum)
	}
	return &Sweeper{c: c}, nil
}

// Retention returns how long a record is kept after its certificate or token has expired.
func (s *Sweeper) Retention() time.Duration { return s.c.Retention }

// Before returns the time before which expired records are removed, of the last sweep or, if there was none, by the
// clock.
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

// LastKnown returns when this server ended its last sweep, or learned that another server leads, whose work that is.
func (s *Sweeper) LastKnown() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// Run sweeps until ctx ends, and returns nil. After a failure, the next sweep continues. If several servers share the store,
// the leader sweeps.
func (s *Sweeper) Run(ctx context.Context) error {
	since := time.Now() // has a monotonic clock, which cannot be set
	for {
		now := time.Now()
		age, err := s.c.Store.Advance(ctx, ageSpeed*now.Sub(since), s.c.Clock())
		if err == nil {
			since = now
			err = s.sweep(ctx, age.Add(-s.c.Retention))
		}
		wait := sweepEvery
		if errors.Is(err, pki.ErrNotLeader) {
			wait = followEvery
			s.mu.Lock()
			s.known = s.c.Clock()
			s.mu.Unlock()
		} else if err != nil && ctx.Err() == nil {
			s.c.Log.Warn("removing expired records failed, retrying", "wait", wait, "error", err)
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// sweep removes all records that expired before a time, step by step.
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
	entries, err := s.sweepEntries(ctx, before)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.known = s.c.Clock()
	s.last = Sweep{s.known, before, all, entries}
	s.mu.Unlock()
	if all.Certificates+all.Tokens+entries > 0 {
		s.c.Log.Info("removed expired records", "ended_before", before.UTC().Format(time.RFC3339),
			"certificates", all.Certificates, "tokens", all.Tokens, "keys", all.Keys, "log_entries", entries)
	}
	return nil
}

// sweepEntries removes the log entries that were written before a time, step by step.
func (s *Sweeper) sweepEntries(ctx context.Context, before time.Time) (all int, err error) {
	for {
		begun := time.Now()
		n, err := s.c.Entries.Step(ctx, before)
		all += n
		if err != nil || n == 0 {
			return all, err
		}
		if !pause(ctx, s.rest(time.Since(begun))) {
			return all, ctx.Err()
		}
	}
}

// rest returns the pause after a step of a given duration. With it, sweeping takes a fifth of the writer's time, and a
// tenth while certificates are issued, on any disk.
func (s *Sweeper) rest(took time.Duration) time.Duration {
	times := time.Duration(idlePause)
	if s.c.Busy() {
		times = busyPause
	}
	return max(times*took, minPause)
}

// pause waits for d. It returns false if ctx ends first.
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
