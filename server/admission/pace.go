package admission

import (
	"math/rand/v2"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// How long those who are turned away are asked to stay away.
const (
	awayLeast = time.Second
	awayMost  = 5 * time.Minute
	paceOver  = 64               // calls: how many the pace is the mean of, more or less
	paceGuess = time.Millisecond // before anything is known of it
)

// pace is how fast a lane works while somebody waits, and from when on it has time for those who were turned away.
type pace struct {
	interval time.Duration // from the end of one call to that of the next; a guess without samples
	samples  int
	last     time.Time // when the last call ended
	crowded  bool      // somebody has been waiting since
	booked   time.Time
}

// left notes that a call has ended, and whether others wait.
func (p *pace) left(now time.Time, crowded bool) {
	if p.crowded && crowded {
		p.samples = min(p.samples+1, paceOver)
		p.interval += (now.Sub(p.last) - p.interval) / time.Duration(p.samples)
	}
	p.last, p.crowded = now, crowded
}

// each is how long one call takes the lane. Where none has ended for long, so does it take long.
func (p *pace) each(now time.Time, slots int) time.Duration {
	if p.last.IsZero() {
		return p.interval
	}
	return max(p.interval, now.Sub(p.last)/time.Duration(slots))
}

// queue is how long it takes until nothing waits of what waits now.
func (p *pace) queue(now time.Time, waiting, slots int) time.Duration {
	return min(time.Duration(waiting)*p.each(now, slots), waitMost)
}

// appointment gives each who is turned away a time of its own, behind the queue and one call apart: a crowd that comes
// back so comes back at the pace at which it is served.
func (p *pace) appointment(now time.Time, waiting, slots int) time.Duration {
	if behind := now.Add(p.queue(now, waiting, slots)); p.booked.Before(behind) {
		p.booked = behind
	}
	p.booked = p.booked.Add(p.each(now, slots))
	if latest := now.Add(awayMost); p.booked.After(latest) {
		p.booked = latest
	}
	return p.booked.Sub(now)
}

// later is a refusal of what would pass at another time.
type later struct {
	refusal *pki.Refusal
	after   time.Duration
}

// Error implements error.
func (l *later) Error() string { return l.refusal.Error() }

// Unwrap returns the refusal.
func (l *later) Unwrap() error { return l.refusal }

// Temporary reports that the same call is worth repeating.
func (l *later) Temporary() bool { return true }

// RetryAfter returns when.
func (l *later) RetryAfter() time.Duration { return l.after }

func busy(what string, waiting int, after time.Duration) error {
	after = away(after)
	return &later{pki.Refuse(pki.RuleOverloaded, again(after), "there is no room for more %s: %d wait already", what, waiting), after}
}

// again is the next step, for a person.
func again(after time.Duration) string {
	return "try again in " + max(after.Round(time.Second), time.Second).String()
}

// away bounds a delay, and draws from its last quarter, so that those who were turned away together come back apart.
// Agents add as much again (package enroll, delay).
func away(d time.Duration) time.Duration {
	d = min(max(d, awayLeast), awayMost)
	return d - time.Duration(rand.Float64()*float64(d)/4) //nolint:gosec // it keeps callers apart, and secrets nothing
}
