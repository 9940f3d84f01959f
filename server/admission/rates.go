package admission

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/pki"
)

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
type Rates struct {
	key     string // configuration key of the rate, for messages
	buckets buckets[Source]
}

// NewRates returns Rates that limit each source to r. key is the configuration key of r, for messages.
func NewRates(key string, r Rate) *Rates {
	rates := &Rates{key: key}
	rates.Set(r)
	return rates
}

// Set changes the Rate and resets all buckets to full.
func (r *Rates) Set(to Rate) { r.buckets.reset(rate.Limit(to.PerSecond), to.Burst) }

// Allow counts a call of a source at time now, or refuses it.
func (r *Rates) Allow(from Source, now time.Time) error {
	b := r.buckets.of(from, now)
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
