package admission

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets is the maximum number of buckets in each of the two generations.
const maxBuckets = 1 << 15

// buckets is a set of token buckets, one for each key. It is safe for concurrent use.
//
// If a bucket is unused for as long as an empty bucket takes to fill, it is full, like a new one, and the set drops it.
// Buckets are in two generations, and a bucket that is used moves to the young one. When the young generation has
// existed for the fill time, or has maxBuckets buckets, it becomes the old one, and the set drops the previous old one. A
// flood from more addresses than there are buckets gains nothing by an early drop: each new address has a full bucket
// anyway.
type buckets[K comparable] struct {
	mu         sync.Mutex
	rate       rate.Limit
	burst      int
	fill       time.Duration // how long a bucket takes to fill
	young, old map[K]*rate.Limiter
	born       time.Time // when young was created
}

// reset changes the rate, and makes all buckets full.
func (s *buckets[K]) reset(to rate.Limit, burst int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate, s.burst, s.fill = to, burst, time.Duration(float64(burst)/float64(to)*float64(time.Second))
	s.young, s.old = map[K]*rate.Limiter{}, nil
}

// of returns the bucket of a key. If the key has none, it gets a full one.
func (s *buckets[K]) of(key K, now time.Time) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.young[key]; b != nil && now.Sub(s.born) < s.fill {
		return b
	}
	if now.Sub(s.born) >= s.fill || len(s.young) >= maxBuckets {
		s.old, s.young, s.born = s.young, map[K]*rate.Limiter{}, now
	}
	b := s.old[key]
	if b == nil {
		b = rate.NewLimiter(s.rate, s.burst)
	}
	delete(s.old, key)
	s.young[key] = b
	return b
}

// size returns the number of buckets.
func (s *buckets[K]) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.young) + len(s.old)
}
