package responder

import (
	"context"
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
// respond until the staleness limit. Only one Follow may run at a time.
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

// A follower is the state of one call of Follow.
type follower struct {
	responder *Responder
	feed      Feed
	started   bool   // whether the snapshot has been applied
	index     uint64 // index of the last log entry that was read
	failing   bool
	retry     *backoff.ExponentialBackOff
	swept     time.Time
}

// step reads from the feed once. It returns how long to wait before the next step.
func (f *follower) step(ctx context.Context) time.Duration {
	r := f.responder
	readAt := r.clock().Round(0) // without the monotonic clock, which stops while the machine sleeps
	if readAt.Before(f.swept) {
		f.started, f.swept = false, readAt
		r.restart(readAt)
	}
	atEnd, err := f.read(ctx, readAt)
	if err != nil {
		if !f.failing && ctx.Err() == nil {
			r.log.Warn("reading the status feed failed, retrying", "current_at", r.CurrentAt(), "limit", r.staleness, "error", err)
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
	// The statuses are complete as of the time before the read. There may have been changes since.
	r.current.Store(&readAt)
	if readAt.Sub(f.swept) >= sweepEvery {
		f.swept = readAt
		r.sweep(readAt)
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
	changes, last, err := f.feed.Changes(ctx, f.index, pollLimit)
	if err != nil {
		return false, err
	}
	f.responder.Apply(changes...)
	read := last - f.index
	f.index = last
	return read < pollLimit, nil
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
