package admission

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/pki"
)

// maxBuckets bounds how many sources' buckets are kept in each of two generations.
const maxBuckets = 1 << 15

// Rate is how often a source may call.
type Rate struct {
	PerSecond float64 // in the long run
	Burst     int     // at once, after it has been quiet
}

// Bounds of a Rate.
const (
	minPerSecond, maxPerSecond = 0.01, 1e6
	maxBurst                   = 1_000_000
)

// CheckPerSecond and CheckBurst refuse what is no Rate: none is without an end, and none lets nobody through.
func (r Rate) CheckPerSecond() error {
	if !(r.PerSecond >= minPerSecond && r.PerSecond <= maxPerSecond) { // NaN is neither
		return fmt.Errorf("%v is out of range: use %v to %d", r.PerSecond, minPerSecond, int(maxPerSecond))
	}
	return nil
}

// CheckBurst is above.
func (r Rate) CheckBurst() error {
	if r.Burst < 1 || r.Burst > maxBurst {
		return fmt.Errorf("%d is out of range: use 1 to %d", r.Burst, maxBurst)
	}
	return nil
}

// Rates holds each source to a Rate, with a token bucket. It is safe for concurrent use.
//
// A bucket that nobody has drawn from for as long as it takes to fill is like a new one. So buckets live in two
// generations: one that is drawn from moves to the younger, and the older is forgotten when the younger is as old as
// that. Where a generation is full before, it is forgotten early, which gives sources that flood from more addresses
// than there are buckets nothing that they do not have already: a full bucket for each address.
type Rates struct {
	key string // of the configuration

	mu         sync.Mutex
	rate       Rate
	fill       time.Duration // how long a bucket takes to fill
	young, old map[Source]*rate.Limiter
	born       time.Time // the young ones
}

// NewRates returns a Rates whose Rate stands in the configuration under a key.
func NewRates(key string, r Rate) *Rates {
	rates := &Rates{key: key}
	rates.Set(r)
	return rates
}

// Set changes the Rate. All sources begin with full buckets.
func (r *Rates) Set(to Rate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate, r.fill = to, time.Duration(float64(to.Burst)/to.PerSecond*float64(time.Second))
	r.young, r.old = map[Source]*rate.Limiter{}, nil
}

// Take counts a call of a source at the time now, or refuses it.
func (r *Rates) Take(from Source, now time.Time) error {
	b := r.bucket(from, now)
	if b.AllowN(now, 1) {
		return nil
	}
	perSecond := float64(b.Limit())
	missing := max(0, 1-b.TokensAt(now)) / perSecond
	after := away(time.Duration(missing*float64(time.Second)) * 4 / 3) // no sooner than there is a token
	return &later{
		pki.Refuse(pki.RuleRateLimited, again(after)+", or have "+r.key+" raised", "%s calls more than %g times a second", from, perSecond),
		after,
	}
}

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

// size is how many buckets there are.
func (r *Rates) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.young) + len(r.old)
}
