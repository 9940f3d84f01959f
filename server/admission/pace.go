package admission

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Limits of the retry delay, and parameters of pace.
const (
	minRetryAfter   = time.Second
	maxRetryAfter   = 5 * time.Minute
	averagedCalls   = 64               // number of calls in the moving average
	rankedCalls     = 256              // number of refused calls with which the next one is compared
	initialInterval = time.Millisecond // interval before the first sample
)

// pace measures how fast a Queue works while calls wait, and gives refused calls time slots for their retry.
type pace struct {
	interval      time.Duration // mean time between the ends of two calls; initialInterval without samples
	samples       int
	last          time.Time          // when the last call ended
	hadWaiting    bool               // whether calls were waiting when the last call ended
	reservedUntil time.Time          // the latest of the retry times that refused calls got
	refused       [rankedCalls]int64 // times by which the last refused calls were useful, in Unix milliseconds
	refusals      int                // number of refused calls with such a time
}

// ended records that a call has ended, and whether others wait. The time between two ends is a sample if calls waited
// at both.
func (p *pace) ended(now time.Time, othersWait bool) {
	if p.hadWaiting && othersWait {
		p.samples = min(p.samples+1, averagedCalls)
		p.interval += (now.Sub(p.last) - p.interval) / time.Duration(p.samples)
	}
	p.last, p.hadWaiting = now, othersWait
}

// perCall returns the estimated time between the ends of two calls: the mean, or more if no call has ended for a while.
func (p *pace) perCall(now time.Time, slots int) time.Duration {
	if p.last.IsZero() {
		return p.interval
	}
	return max(p.interval, now.Sub(p.last)/time.Duration(slots))
}

// callsIn returns how many calls end within a time, at the mean rate. A pause that lasts does not count.
func (p *pace) callsIn(d time.Duration) int { return int(d / max(p.interval, 1)) }

// queueTime returns the estimated time until the calls that wait now have started.
func (p *pace) queueTime(now time.Time, waiting, slots int) time.Duration {
	return min(time.Duration(waiting)*p.perCall(now, slots), maxWait)
}

// reserve returns the retry delay of a refused call, which is useless after a time. Each refused call gets a time slot,
// after the waiting calls. A call without such a time gets a slot after those of earlier refused calls, so that clients
// retry at the rate at which the queue runs calls. Another one gets a slot between theirs, by its rank among the last
// refused calls. In a burst, the first ones cannot know how many follow, and get too early slots. Its root makes up for
// that in part: a fifth of the calls retries in the first tenth of the time that all need, where the rank itself lets a
// third retry.
func (p *pace) reserve(now, until time.Time, waiting, slots int) time.Duration {
	begin := now.Add(p.queueTime(now, waiting, slots))
	if p.reservedUntil.Before(begin) {
		p.reservedUntil = begin
	}
	p.reservedUntil = p.reservedUntil.Add(p.perCall(now, slots))
	if latest := now.Add(maxRetryAfter); p.reservedUntil.After(latest) {
		p.reservedUntil = latest
	}
	if until.IsZero() {
		return p.reservedUntil.Sub(now)
	}
	return begin.Add(time.Duration(math.Sqrt(p.rank(until.UnixMilli())) * float64(p.reservedUntil.Sub(begin)))).Sub(now)
}

// rank returns the share of the last refused calls that had an earlier time than this one, which joins them. Those with
// the same time, and the call itself, count by a random part.
func (p *pace) rank(until int64) float64 {
	earlier, same := 0.0, 0.0
	p.refused[p.refusals%rankedCalls] = until
	p.refusals++
	n := min(p.refusals, rankedCalls)
	for _, other := range p.refused[:n] {
		switch {
		case other < until:
			earlier++
		case other == until:
			same++
		}
	}
	return (earlier + rand.Float64()*same) / float64(n) //nolint:gosec // jitter is not a secret
}

// retryError is a refusal of a call that may succeed later.
type retryError struct {
	refusal *pki.Refusal
	after   time.Duration
}

// Error implements error.
func (l *retryError) Error() string { return l.refusal.Error() }

// Unwrap returns the refusal.
func (l *retryError) Unwrap() error { return l.refusal }

// Temporary reports that the call may be retried.
func (l *retryError) Temporary() bool { return true }

// RetryAfter returns the delay of the retry.
func (l *retryError) RetryAfter() time.Duration { return l.after }

// overloaded returns a refusal because too many things are waiting or open. what names the things, and waiting is their
// number.
func overloaded(what string, waiting int, after time.Duration) error {
	after = withJitter(after)
	return &retryError{pki.Refuse(pki.RuleOverloaded, retryHint(after), "too many %s: %d are waiting or open", what, waiting), after}
}

// retryHint returns the hint of a refusal, which names the retry delay.
func retryHint(after time.Duration) string {
	return "try again in " + max(after.Round(time.Second), time.Second).String()
}

// withJitter limits a retry delay to minRetryAfter and maxRetryAfter, and shortens it by a random part of up to a
// quarter. Clients that are refused together then do not retry together. Agents add jitter too (package enroll, delay).
func withJitter(d time.Duration) time.Duration {
	d = min(max(d, minRetryAfter), maxRetryAfter)
	return d - time.Duration(rand.Float64()*float64(d)/4) //nolint:gosec // jitter is not a secret
}
