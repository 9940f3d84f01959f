package responder

import (
	"context"
	"time"
)

// MaxSigning is maxSigning, for tests that fill it.
const MaxSigning = maxSigning

// FollowOnce reads a feed to its end, and no more.
func FollowOnce(r *Responder, feed Feed) error {
	f := &follower{responder: r, feed: feed}
	for {
		asked := r.clock().Round(0)
		atEnd, err := f.read(context.Background(), asked)
		if err != nil {
			return err
		}
		if atEnd {
			r.current.Store(&asked)
			return nil
		}
	}
}

// Kept counts the answers that are kept.
func Kept(r *Responder) int {
	r.answers.mu.RLock()
	defer r.answers.mu.RUnlock()
	return len(r.answers.byID)
}

// Keep bounds the answers that are kept.
func Keep(r *Responder, limit int) { r.answers.limit = limit }

// Sweep forgets what has expired.
func Sweep(r *Responder, now time.Time) { r.sweep(now) }
