package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/pki"
)

// Limits of a rate.
const (
	maxRateCount    = 1_000_000
	minRateDuration = time.Second
	maxRateDuration = 31 * 24 * time.Hour
)

// limits are the limits of a rule.
type limits struct {
	rate *rate.Limiter // of certificates; nil if there is none
	// total is the maximum number of identities that the rule registers, which the store counts. Zero means no limit.
	total int
}

// parseRate parses a rate such as 100/1h: 100 certificates at once, and 100 an hour on average.
func parseRate(text string) (*rate.Limiter, error) {
	refuse := fmt.Errorf("%.40q is not a rate: write a number and a duration, such as 100/1h, "+
		"from 1 to %d requests in 1s to 31d", text, maxRateCount)
	number, duration, ok := strings.Cut(text, "/")
	count, err := strconv.Atoi(number)
	if !ok || err != nil || count < 1 || count > maxRateCount {
		return nil, refuse
	}
	d, err := pki.ParseDuration(duration)
	if err != nil || d < minRateDuration || d > maxRateDuration {
		return nil, refuse
	}
	return rate.NewLimiter(rate.Limit(float64(count)/d.Seconds()), count), nil
}

// take counts a certificate, or refuses it with the delay after which the request may be repeated. A call of undo takes
// the count back.
func (l limits) take(rule string, at time.Time) (undo func(), err error) {
	taken := l.rate.ReserveN(at, 1)
	undo = func() { taken.CancelAt(at) }
	if taken.DelayFrom(at) == 0 {
		return undo, nil
	}
	undo()
	missing := max(0, 1-l.rate.TokensAt(at)) / float64(l.rate.Limit())
	after := max(time.Second, time.Duration(missing*float64(time.Second)))
	return nil, &limitError{
		pki.Refuse(pki.RulePolicyLimit,
			"retry after "+after.Round(time.Second).String()+", or have the operator raise limits.rate of the rule",
			"rule %s has reached its rate", rule),
		after,
	}
}

// limitError is the refusal of a request that may succeed later.
type limitError struct {
	refusal *pki.Refusal
	after   time.Duration
}

func (e *limitError) Error() string { return e.refusal.Error() }
func (e *limitError) Unwrap() error { return e.refusal }

// Temporary reports that the same request may succeed later.
func (e *limitError) Temporary() bool { return true }

// RetryAfter returns how long to wait before a retry.
func (e *limitError) RetryAfter() time.Duration { return e.after }
