package admission

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/pki"
)

// maxBuckets is the maximum number of buckets in each of the two generations of Rates.
const maxBuckets = 1 << 15

// Rate limits how often a source may call.
type Rate struct {
	PerSecond float64 // maximum average number of calls per second
	Burst     int     // maximum number of calls at once, after a pause
}

// The limits of a Rate.
const (
	minPerSecond, maxPerSecond = 0.01, 1e6
	maxBurst                   = 1_000_000
)

// CheckPerSecond returns an error if PerSecond is out of range. Zero and infinity are out of range.
func (r Rate) CheckPerSecond() error {
	if !(r.PerSecond >= minPerSecond && r.PerSecond <= maxPerSecond) { // also true for NaN
		return fmt.Errorf("%v is out of range: use %v to %d", r.PerSecond, minPerSecond, int(maxPerSecond))
	}
	return nil
}

// CheckBurst returns an error if Burst is out of range.
func (r Rate) CheckBurst() error {
	if r.Burst < 1 || r.Burst > maxBurst {
		return fmt.Errorf("%d is out of range: use 1 to %d", r.Burst, maxBurst)
	}
	return nil
}

// Rates limits each source to a Rate, with one token bucket for each source. It is safe for concurrent use.
//
// If a bucket is unused for as long as an empty bucket takes to fill, it is full, like a new one, and Rates drops it.
// Buckets are in two generations, and a bucket that is used moves to the young one. When the young generation has
// existed for the fill time, or has maxBuckets buckets, it becomes the old one, and Rates drops the previous old one. A
// flood from more addresses than there are buckets gains nothing by an early drop: each new address has a full bucket
// anyway.
type Rates struct {
	key string // configuration key of the rate, for messages

	mu         sync.Mutex
	rate       Rate
	fill       time.Duration // how long a bucket takes to fill
	young, old map[Source]*rate.Limiter
	born       time.Time // when young was created
}

// NewRates returns Rates that limit each source to r. key is the configuration key of r, for messages.
func NewRates(key string, r Rate) *Rates {
	rates := &Rates{key: key}
	rates.Set(r)
	return rates
}

// Set changes the Rate and resets all buckets to full.
func (r *Rates) Set(to Rate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate, r.fill = to, time.Duration(float64(to.Burst)/to.PerSecond*float64(time.Second))
	r.young, r.old = map[Source]*rate.Limiter{}, nil
}

// Allow counts a call of a source at time now, or refuses it.
func (r *Rates) Allow(from Source, now time.Time) error {
	b := r.bucket(from, now)
	if b.AllowN(now, 1) {
		return nil
	}
	perSecond := float64(b.Limit())
	missing := max(0, 1-b.TokensAt(now)) / perSecond
	// withJitter subtracts up to a quarter. The bucket must have a token even after the shortest delay.
	after := withJitter(time.Duration(missing*float64(time.Second)) * 4 / 3)
	return &retryError{
		pki.Refuse(pki.RuleRateLimited, retryHint(after)+", or have "+r.key+" raised", "%s made more than %g calls per second", from, perSecond),
		after,
	}
}

// bucket returns the bucket of a source. If the source has none, it gets a full one.
func (r *Rates) bucket(from Source, now time.Time) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.young[from]; b != nil && now.Sub(r.born) < r.fill {
		return b
	}
	if now.Sub(r.born) >= r.fill || len(r.young) >= maxBuckets {
		r.old, r.young, r.born = r.young, map[Source]*rate.Limiter{}, now
	}
	b := r.old[from]
	if b == nil {
		b = rate.NewLimiter(rate.Limit(r.rate.PerSecond), r.rate.Burst)
	}
	delete(r.old, from)
	r.young[from] = b
	return b
}

// size returns the number of buckets.
func (r *Rates) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.young) + len(r.old)
}
