package admission

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/pki"
)

// Quota limits how often something may happen in an hour, for each key. It is for things that are rare, such as the
// creation of accounts, and that leave records. It is safe for concurrent use.
type Quota[K comparable] struct {
	what    string // names the things in messages, in the plural
	hourly  int
	buckets buckets[K]
}

// NewQuota returns a Quota of so many things an hour, which may also happen at once. what names them in messages.
func NewQuota[K comparable](what string, hourly int) *Quota[K] {
	q := &Quota[K]{what: what, hourly: hourly}
	q.buckets.reset(rate.Limit(float64(hourly)/time.Hour.Seconds()), hourly)
	return q
}

// Allow counts one thing at time now, or refuses it.
func (q *Quota[K]) Allow(key K, now time.Time) error {
	b := q.buckets.of(key, now)
	if b.AllowN(now, 1) {
		return nil
	}
	missing := max(0, 1-b.TokensAt(now)) / float64(b.Limit())
	after := (time.Duration(missing*float64(time.Second)) + time.Second).Truncate(time.Second)
	return &retryError{
		pki.Refuse(pki.RuleRateLimited, retryHint(after), "there were too many %s: %d are allowed at once, and %d an hour", q.what, q.hourly, q.hourly),
		after,
	}
}
