package responder

import (
	"context"
	"fmt"
)

// MaxWaiting is the maximum number of requests that wait in one signQueue.
const MaxWaiting = maxWaiting

// SigningSlots returns the number of slots of a signQueue.
func SigningSlots(*Responder) int { return maxSigning() }

// WaitingUncached returns the number of requests that wait for a response that is not cached.
func WaitingUncached(r *Responder) int { return r.uncachedQueue.length() }

// WaitingCached returns the number of requests that wait for a response that will be cached.
func WaitingCached(r *Responder) int { return r.cachedQueue.length() }

func (b *signQueue) length() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Waiting()
}

// FollowOnce reads a feed once, up to its end.
func FollowOnce(r *Responder, feed Feed) error {
	f := &follower{responder: r, feed: feed}
	for {
		if atEnd, err := f.read(context.Background(), r.clock()); err != nil || atEnd {
			return err
		}
	}
}

// CachedCount returns the number of cached responses. It panics if the cache is inconsistent.
func CachedCount(r *Responder) (n int) {
	for i := range r.cache.shards {
		s := &r.cache.shards[i]
		s.mu.RLock()
		counted := 0
		for _, at := range s.bySerial {
			for ; at != noEntry; at = s.all[at].next {
				counted++
			}
		}
		count, rooms := len(s.all), len(s.der)
		if s.mu.RUnlock(); counted != count || rooms != count*s.entrySize || len(s.signing) > 0 {
			panic(fmt.Sprintf("the index has %d entries, the shard %d, and %d are being signed", counted, count, len(s.signing)))
		}
		n += counted
	}
	return n
}

// Shards is shardCount.
const Shards = shardCount

// LimitCache sets the maximum number of cached responses in each shard.
func LimitCache(r *Responder, limit int) { r.cache.limit = limit }

// RenewOnce runs renewShard once for each shard. It returns the number of responses that it tried to renew.
func RenewOnce(r *Responder) (n int) {
	for i := range r.cache.shards {
		n += r.renewShard(context.Background(), &r.cache.shards[i])
	}
	return n
}
