package enroll

import (
	"math/rand/v2"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// How an Agent retries. What is left of the certificate's life bounds every delay: the last thing to do with a certificate
// that still proves something is to renew it.
const (
	retryFirst  = time.Second // before there is a certificate
	retryMost   = 5 * time.Minute
	refusedMost = time.Hour // where the Authority said no
	glance      = 30 * time.Second
	patience    = 30 * time.Second // for one call, and for one run of the reload command
)

// retry counts the tries of one task that failed in a row, and schedules the next. The zero value has none and is due.
type retry struct {
	tries  int
	failed time.Time     // when the last try failed
	wait   time.Duration // after it
}

func (r *retry) fail(err error, p *Pair, now time.Time) {
	r.tries++
	r.failed = now.Round(0)
	r.wait = delay(r.tries, err, p, r.failed)
}

func (r *retry) failure(err error) *Failure { return failureOf(err, r.tries, r.failed) }

func (r *retry) next() time.Time { return r.failed.Add(r.wait) }

// due returns the time until the next try. If the clock was set back, the time since the last one is unknown, and the
// next is due.
func (r *retry) due(now time.Time) time.Duration {
	if now.Before(r.failed) {
		return 0
	}
	return r.next().Sub(now)
}

// minRenewal bounds how soon after it arrived a certificate is renewed, however short its life is.
const minRenewal = time.Second

// renewal draws the moment at which a pair is to be renewed.
func renewal(p *Pair) time.Time {
	start, end := p.renewalWindow()
	return start.Add(time.Duration(spread() * float64(end.Sub(start))))
}

// latestRenewal returns the latest moment that renewal draws for a pair.
func latestRenewal(p *Pair) time.Time {
	_, end := p.renewalWindow()
	return end
}

// renewalWindow returns the window that the Authority named. If that was open or over when the certificate arrived, or the
// Authority named none, it returns 50 to 70 percent of this machine's part of the certificate's life: the clocks may
// differ, or the answer came late, and renewing at once would not mend either.
func (p *Pair) renewalWindow() (start, end time.Time) {
	arrival, notAfter := p.span()
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

// delay draws the time to wait after the given number of failed tries in a row. The pair is the one in use, or nil.
// It doubles, up to a tenth of the certificate's life and a quarter of an hour; a server's RetryAfter prolongs it;
// it never takes more than half of what is left of the certificate, except after a refusal, which waiting does not cure.
func delay(tries int, err error, p *Pair, now time.Time) time.Duration {
	first, most, refused := retryFirst, retryMost, refusedMost
	var left time.Duration
	if p != nil && !p.Expired(now) {
		start, end := p.span()
		life := end.Sub(start)
		first = min(max(life/100, 100*time.Millisecond), 10*time.Second)
		most = min(max(life/10, time.Second), 15*time.Minute)
		refused = min(max(life/4, 10*time.Second), refusedMost)
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
		d = after + time.Duration(spread()*float64(after)/4) // or all who were sent away come back together
	}
	if left > 0 {
		d = min(d, max(left/2, first))
	}
	return d
}

// deadline bounds one call, and one run of the reload command, so that neither costs more than a third of what is left
// of the certificate.
func deadline(p *Pair, now time.Time) time.Duration {
	if p == nil || p.Expired(now) {
		return patience
	}
	return min(max(p.Certificate.NotAfter.Sub(now)/3, time.Second), patience)
}

// jitter draws from the upper half of d.
func jitter(d time.Duration) time.Duration { return d/2 + time.Duration(spread()*float64(d/2)) }

// spread draws from [0, 1).
func spread() float64 {
	return rand.Float64() //nolint:gosec // it keeps machines apart, and secrets nothing
}
