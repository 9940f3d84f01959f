package responder

import (
	"context"
	"fmt"
)

// MaxWaiting is maxWaiting, for tests that fill it.
const MaxWaiting = maxWaiting

// Signing is how many answers of a kind are signed at a time, and Waiting how many wait now that are not to be kept.
func Signing(*Responder) int         { return places() }
func Waiting(r *Responder) int       { return r.once.length() }
func WaitingToKeep(r *Responder) int { return r.lasting.length() }

func (b *budget) length() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Waiting()
}

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
func Kept(r *Responder) (n int) {
	for i := range r.answers.shards {
		s := &r.answers.shards[i]
		s.mu.RLock()
		counted := 0
		for _, at := range s.bySerial {
			for ; at != nowhere; at = s.all[at].next {
				counted++
			}
		}
		count, rooms := len(s.all), len(s.octets)
		if s.mu.RUnlock(); counted != count || rooms != count*s.room || len(s.signing) > 0 {
			panic(fmt.Sprintf("%d answers are counted as %d, %d are being signed", counted, count, len(s.signing)))
		}
		n += counted
	}
	return n
}

// Shards is shardCount.
const Shards = shardCount

// Keep bounds the answers that are kept, in each shard.
func Keep(r *Responder, limit int) { r.answers.limit = limit }

// RenewOnce looks once through all answers that are kept, and returns how many it renewed.
func RenewOnce(r *Responder) (n int) {
	for i := range r.answers.shards {
		n += r.renewShard(context.Background(), &r.answers.shards[i])
	}
	return n
}
