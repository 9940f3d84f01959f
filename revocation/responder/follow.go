package responder

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/cenkalti/backoff/v5"
)

const (
	// pollEvery is the wait between two looks at a feed whose end was reached.
	pollEvery = 100 * time.Millisecond
	// pollLimit is how many log entries one look reads. An entry may be about thousands of certificates.
	pollLimit = 256
	// sweepEvery is how often expired entries are forgotten.
	sweepEvery = time.Minute
)

// Follow takes in every status of a feed, and then its changes within a fifth of a second, until ctx is done. While
// the feed fails it is tried at least every second, and answers go on until the staleness limit. It returns nil. One
// Follow runs at a time.
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

// A follower is one Follow's place in its feed.
type follower struct {
	responder *Responder
	feed      Feed
	started   bool   // the snapshot is in
	index     uint64 // of the last log entry read
	failing   bool
	retry     *backoff.ExponentialBackOff
	swept     time.Time
}

// step reads once from the feed, and says how long to wait before the next step.
func (f *follower) step(ctx context.Context) time.Duration {
	r := f.responder
	asked := r.clock().Round(0) // by the wall clock: a machine that slept has stale knowledge
	if asked.Before(f.swept) {
		f.started, f.swept = false, asked
		r.restart(asked)
	}
	atEnd, err := f.read(ctx, asked)
	if err != nil {
		if !f.failing && ctx.Err() == nil {
			r.log.Warn("the feed of statuses fails, trying again", "current_at", r.CurrentAt(), "limit", r.staleness, "error", err)
		}
		f.failing = true
		return f.retry.NextBackOff()
	}
	f.retry.Reset()
	if f.failing {
		r.log.Info("the feed of statuses is back")
		f.failing = false
	}
	if !atEnd {
		return 0
	}
	// Everything that the feed had when it was asked is in. Not when it answered: a change may have come since.
	r.current.Store(&asked)
	if asked.Sub(f.swept) >= sweepEvery {
		f.swept = asked
		r.sweep(asked)
	}
	return pollEvery
}

// read takes in the snapshot, or the next changes, and reports whether that was all there is.
func (f *follower) read(ctx context.Context, asked time.Time) (atEnd bool, err error) {
	if !f.started {
		index, err := f.feed.Snapshot(ctx, asked.Add(-expiredGrace), func(c pki.StatusChange) error {
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

// restart prepares for a new snapshot after the clock was set back: what was forgotten as expired may be valid. Until the
// snapshot is in, answers are tryLater. Without it a change that is read late, such as that a certificate was issued, would
// be taken for the newest status of a certificate whose revocation is forgotten.
func (r *Responder) restart(now time.Time) {
	r.current.Store(nil)
	r.forget(now)
}

// forget records that what ended an hour before now, or earlier, may be forgotten, and returns that end.
func (r *Responder) forget(now time.Time) time.Time {
	forgotten := now.Add(-expiredGrace)
	r.forgotten.Store(&forgotten)
	return forgotten
}

// sweep forgets expired certificates.
func (r *Responder) sweep(now time.Time) {
	forgotten := r.forget(now)
	r.mu.RLock()
	all := make([]*issuer, 0, len(r.issuers))
	for _, i := range r.issuers {
		all = append(all, i)
	}
	r.mu.RUnlock()
	for _, i := range all {
		i.statuses.sweep(forgotten)
	}
}
