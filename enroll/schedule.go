package enroll

import (
	"math/rand/v2"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Delays of an Agent. The remaining lifetime of the certificate further limits every delay, so that the agent renews in
// time.
const (
	firstRetryDelay = time.Second     // initial delay without a certificate
	maxRetryDelay   = 5 * time.Minute // a fleet must return within minutes of an outage
	maxRefusedDelay = time.Hour       // maximum delay after a refusal
	wakeInterval    = 30 * time.Second
	requestTimeout  = 30 * time.Second // timeout of one RPC, and of one run of the reload command

	// The first try of an overdue renewal after a start comes within this share of the certificate's remaining
	// lifetime, and within maxStartDelay. Some devices run for minutes only.
	startShare    = 1.0 / 20
	maxStartDelay = time.Minute
)

// retry counts the consecutive failures of a task and schedules the next try. In the zero value there are none, and the
// task is due.
type retry struct {
	tries  int
	failed time.Time     // when the last try failed
	wait   time.Duration // time from failed to the next try
}

func (r *retry) fail(err error, p *Pair, now time.Time) {
	r.tries++
	r.failed = now.Round(0)
	r.wait = delay(r.tries, err, p, r.failed)
}

func (r *retry) failure(err error) *Failure { return failureOf(err, r.tries, r.failed) }

func (r *retry) next() time.Time { return r.failed.Add(r.wait) }

// due returns the time until the next try. If now is before the last try, the clock was set back, and due returns 0.
func (r *retry) due(now time.Time) time.Duration {
	if now.Before(r.failed) {
		return 0
	}
	return r.next().Sub(now)
}

// minRenewal is the minimum time between the arrival of a certificate and its renewal.
const minRenewal = time.Second

// renewal returns a random time in the renewal window of a pair.
func renewal(p *Pair) time.Time {
	start, end := p.renewalWindow()
	return start.Add(time.Duration(spread() * float64(end.Sub(start))))
}

// latestRenewal returns the latest time that renewal returns for a pair.
func latestRenewal(p *Pair) time.Time {
	_, end := p.renewalWindow()
	return end
}

// renewalWindow returns the window that the Authority sent. Without one, it returns the part of the usable lifetime
// from 50 to 70 percent. It also ignores a window that began before the certificate arrived or ends after it expires:
// the clocks may differ, or the response may be late.
func (p *Pair) renewalWindow() (start, end time.Time) {
	arrival, notAfter := p.usableLife()
	left := notAfter.Sub(arrival)
	start, end = arrival.Add(left/2), arrival.Add(left/10*7)
	if w := p.Origin.Renewal; w.Start.After(arrival) && !w.End.Before(w.Start) && w.End.Before(notAfter) {
		start, end = w.Start, w.End
	}
	soonest := arrival.Add(minRenewal)
	return latest(start, soonest), latest(end, soonest)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// delay returns the time to wait after a number of consecutive failures. p is the pair in use, or nil. The delay is
// random. It doubles with each failure, up to a tenth of the certificate's lifetime and at most maxRetryDelay. A
// RetryAfter of the server extends it. It never exceeds half of the certificate's remaining lifetime, except after a
// final refusal.
func delay(tries int, err error, p *Pair, now time.Time) time.Duration {
	first, most, refused := firstRetryDelay, maxRetryDelay, maxRefusedDelay
	var left time.Duration
	if p != nil && !p.Expired(now) {
		start, end := p.usableLife()
		life := end.Sub(start)
		first = min(max(life/100, 100*time.Millisecond), 10*time.Second)
		most = min(max(life/10, time.Second), maxRetryDelay)
		refused = min(max(life/4, 10*time.Second), maxRefusedDelay)
		left = end.Sub(now)
	}
	if final(err) {
		return jitter(refused)
	}
	d := first
	for i := 1; i < tries && d < most; i++ {
		d *= 2
	}
	d = jitter(min(d, most))
	if after := pki.RetryAfter(err); after > d {
		d = after + time.Duration(spread()*float64(after)/4) // random, so that refused clients do not return together
	}
	if left > 0 {
		d = min(d, max(left/2, first))
	}
	return d
}

// startDelay returns how long after a start the agent tries an overdue renewal. After a power cut a whole fleet may
// start at once. Half of the delay grows with the remaining share of the lifetime, so that certificates of a fleet that expire
// sooner are usually renewed first. The other half is random, because those of a fleet may expire together.
func startDelay(p *Pair, now time.Time) time.Duration {
	start, end := p.usableLife()
	left, life := float64(end.Sub(now)), float64(end.Sub(start))
	most := min(startShare*left, float64(maxStartDelay))
	return time.Duration(most / 2 * (min(2*left/life, 1) + spread()))
}

// timeoutFor returns the timeout of one RPC, or of one run of the reload command. It is at most a third of the
// certificate's remaining lifetime.
func timeoutFor(p *Pair, now time.Time) time.Duration {
	if p == nil || p.Expired(now) {
		return requestTimeout
	}
	return min(max(p.Certificate.NotAfter.Sub(now)/3, time.Second), requestTimeout)
}

// jitter returns a random duration between d/2 and d.
func jitter(d time.Duration) time.Duration { return d/2 + time.Duration(spread()*float64(d/2)) }

// spread returns a random number in [0, 1).
func spread() float64 {
	return rand.Float64() //nolint:gosec // the random number spreads load, and protects no secret
}
