package responder

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/cenkalti/backoff/v5"
)

const (
	// pollEvery is the pause before the next read when a read has reached the end of the feed.
	pollEvery = 100 * time.Millisecond
	// pollLimit is the maximum number of log entries in one read. One entry may contain the statuses of thousands of
	// certificates.
	pollLimit = 256
	// sweepEvery is the interval at which the statuses of expired certificates are removed.
	sweepEvery = time.Minute
)

// Follow reads all statuses of a feed, and then applies the feed's changes within a fifth of a second. It runs until
// ctx ends and returns nil. If the feed fails, Follow retries at least every second, and the responder continues to
// respond until the statuses are too old. Only one Follow may run at a time.
func (r *Responder) Follow(ctx context.Context, feed Feed) error {
	f := &follower{responder: r, feed: feed, retry: &backoff.ExponentialBackOff{
		InitialInterval: pollEvery, RandomizationFactor: 0.25, Multiplier: 1.5, MaxInterval: 800 * time.Millisecond,
	}}
	for ctx.Err() == nil {
		wait := f.step(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// missedChanges is the error of a feed that no longer has changes that the follower has not read.
type missedChanges interface {
	error
	NeedsSnapshot() bool
}

// A follower is the state of one call of Follow.
type follower struct {
	responder *Responder
	feed      Feed
	started   bool   // whether the snapshot has been applied
	index     uint64 // index of the last log entry that was read
	goal      goal
	failing   bool
	stale     bool // whether the responder was stale after the last step
	retry     *backoff.ExponentialBackOff
	swept     time.Time // without the monotonic clock
}

// A goal is what the follower must read for the statuses to be complete as of a time: all entries that were written
// before. The zero value is none.
type goal struct {
	index uint64
	at    time.Time
}

// step reads from the feed once. It returns how long to wait before the next step.
func (f *follower) step(ctx context.Context) time.Duration {
	defer f.reportStaleness(ctx)
	r := f.responder
	readAt := r.clock()
	wall := readAt.Round(0) // without the monotonic clock, which stops while the machine sleeps
	if wall.Before(f.swept) {
		f.started, f.swept, f.goal = false, wall, goal{}
		r.restart(wall)
	}
	atEnd, err := f.read(ctx, readAt)
	if err != nil {
		if !f.failing && ctx.Err() == nil {
			r.log.Warn("reading the status feed failed, retrying", "current_at", r.CurrentAt(), "error", err)
		}
		f.failing = true
		return f.retry.NextBackOff()
	}
	f.retry.Reset()
	if f.failing {
		r.log.Info("status feed recovered")
		f.failing = false
	}
	if !atEnd {
		return 0
	}
	if wall.Sub(f.swept) >= sweepEvery {
		f.swept = wall
		r.sweep(wall)
	}
	return pollEvery
}

// read applies the snapshot or the next changes. It reports whether it reached the end of the feed.
func (f *follower) read(ctx context.Context, readAt time.Time) (atEnd bool, err error) {
	if !f.started {
		index, err := f.feed.Snapshot(ctx, readAt.Add(-expiredGrace), func(c pki.StatusChange) error {
			f.responder.Apply(c)
			return nil
		})
		if err != nil {
			return false, err
		}
		f.started, f.index = true, index
		return false, nil
	}
	r := f.responder
	isShared := r.maxStaleness > 0
	var late *time.Timer // ends the read
	if isShared {
		// Statuses that arrive later are too old anyway. Another connection may work when this one does not.
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		late = time.AfterFunc(r.maxStaleness, cancel)
		defer late.Stop()
	}
	if isShared && f.goal == (goal{}) {
		// Other processes have written entries that may not be in the feed yet.
		written, err := f.feed.Written(ctx)
		if err != nil {
			return false, err
		}
		f.goal = goal{written, readAt}
	}
	last, err := f.feed.Changes(ctx, f.index, pollLimit, func(changes []pki.StatusChange) {
		r.Apply(changes...)
		if isShared { // a bulk revocation may have very many members
			late.Reset(r.maxStaleness)
		}
	})
	if behind, ok := errors.AsType[missedChanges](err); ok && behind.NeedsSnapshot() {
		r.log.Warn("status feed no longer has the next change, reading all statuses again", "error", err)
		f.started = false
		return false, nil
	}
	if err != nil {
		return false, err
	}
	read := last - f.index
	f.index, atEnd = last, read < pollLimit
	switch {
	case !isShared && atEnd: // Apply got the changes that are not in the feed yet
		r.current.Store(&readAt)
	case isShared && f.index >= f.goal.index:
		readAt, f.goal = f.goal.at, goal{}
		r.current.Store(&readAt)
	}
	return atEnd, nil
}

// reportStaleness logs when the responder becomes stale, and when it is no longer.
func (f *follower) reportStaleness(ctx context.Context) {
	r := f.responder
	is := r.IsStale() && !r.CurrentAt().IsZero() // at the start, there is nothing to report
	if is == f.stale || ctx.Err() != nil {
		return
	}
	f.stale = is
	if is {
		r.log.Error("the statuses are older than the limit, refusing calls and answering OCSP with tryLater", "current_at", r.CurrentAt(), "limit", r.maxStaleness)
	} else {
		r.log.Info("the statuses are current again")
	}
}

// restart prepares for a new snapshot after the clock was set back, because certificates that were removed as expired
// may be valid again. Until the snapshot is applied, the responder sends tryLater. Otherwise it could use an old status
// of a certificate, such as good at its issuance, although a later revocation was removed.
func (r *Responder) restart(now time.Time) {
	r.current.Store(nil)
	r.setExpiredBefore(now)
}

// setExpiredBefore records that the statuses of certificates may be removed if they expired more than an hour before
// now. It returns the time one hour before now.
func (r *Responder) setExpiredBefore(now time.Time) time.Time {
	forgotten := now.Add(-expiredGrace)
	r.expiredBefore.Store(&forgotten)
	return forgotten
}

// sweep removes the statuses of expired certificates.
func (r *Responder) sweep(now time.Time) {
	forgotten := r.setExpiredBefore(now)
	for _, i := range r.allIssuers() {
		i.statuses.sweep(forgotten)
	}
}

// allIssuers returns the issuers that are known at this time.
func (r *Responder) allIssuers() []*issuer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.issuers))
}
