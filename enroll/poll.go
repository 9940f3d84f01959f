package enroll

import (
	"context"
	"math"
	"time"
)

// The agent asks the Authority from time to time when it should renew. Default and jitter are parts of these limits.
const (
	minPollInterval     = 10 * time.Minute
	maxPollInterval     = 24 * time.Hour
	defaultPollInterval = 6 * time.Hour
	// minPolledLife is the shortest lifetime of a certificate about which the agent asks. A shorter one is renewed soon
	// anyway.
	minPolledLife = time.Hour
	// maxRenewalJitter is how long after the response an agent renews at the latest, if the window is in the past.
	maxRenewalJitter = time.Minute
)

// RenewalInfo is what an [Authority] says about the renewal of a certificate.
type RenewalInfo struct {
	// Window is when the certificate should be renewed. If it is in the past, the certificate should be renewed now.
	Window RenewalWindow
	// BundleRevision identifies the newest version of the trust domain's roots, in hexadecimal. It is empty if it is
	// unknown.
	BundleRevision string
	// RetryAfter is after how long the agent should ask again. If it is zero, the agent chooses.
	RetryAfter time.Duration
}

// polling is when an Agent asks for the renewal window of the pair in use, and what it has heard.
type polling struct {
	min, max time.Duration // limits of the interval
	at       time.Time     // when to ask next
	asked    time.Time     // when the agent last asked, or put the pair in use
	window   RenewalWindow // the newest one that is known
	planned  time.Time     // when to renew the pair without any answer
}

// startPolling schedules the first question about a pair. After a start of the agent, the question comes at a random time
// in the interval, because a whole fleet may start at once.
func (a *Agent) startPolling(p *Pair, restarted bool) {
	interval := a.pollInterval(p, 0)
	a.polling.window, a.polling.planned = p.Origin.Renewal, a.renewAt
	a.polling.asked = a.now().Round(0)
	wait := jitter(interval)
	if restarted {
		wait = time.Duration(spread() * float64(interval))
	}
	a.polling.at = a.polling.asked.Add(wait)
}

// pollInterval returns the time between two questions about a pair: the one that the Authority wants, or else a tenth of
// the certificate's lifetime and at most six hours.
func (a *Agent) pollInterval(p *Pair, retryAfter time.Duration) time.Duration {
	start, end := p.usableLife()
	interval := min(defaultPollInterval, end.Sub(start)/10)
	if retryAfter > 0 {
		interval = retryAfter
	}
	return min(max(interval, a.polling.min), a.polling.max)
}

// pollDue returns the time until the next question. If now is before the last one, the clock was set back, and pollDue
// returns 0.
func (a *Agent) pollDue() time.Duration {
	now, p := a.now(), a.Pair()
	if p == nil || !p.validAt(now) {
		return math.MaxInt64
	}
	if start, end := p.usableLife(); end.Sub(start) < minPolledLife {
		return math.MaxInt64
	}
	if now.Before(a.polling.asked) {
		return 0
	}
	return a.polling.at.Sub(now)
}

// poll asks the Authority when to renew the pair in use, and follows the response. If the question fails, the agent renews
// as planned: an older server does not know the question.
func (a *Agent) poll(ctx context.Context) {
	p := a.Pair()
	callCtx, cancel := context.WithTimeout(ctx, timeoutFor(p, a.now()))
	defer cancel()
	info, err := a.config.Authority.RenewalInfo(callCtx, p)
	interval := a.pollInterval(p, info.RetryAfter)
	a.polling.asked = a.now().Round(0)
	a.polling.at = a.polling.asked.Add(jitter(interval))
	if err != nil {
		if ctx.Err() == nil {
			a.config.Log.Debug("asking for the renewal window failed, renewing as planned", "error", err)
		}
		return
	}
	a.follow(info.Window, min(maxRenewalJitter, interval/10))
}

// follow moves the renewal of the pair in use into a window that differs from the one that was known. It is never later
// than planned. If the window is in the past, the renewal comes within the given time.
//
// A new certificate comes with a window of its own, and the next question comes after an interval. So each response leads
// to one renewal at most, also if every response is about the past.
func (a *Agent) follow(w RenewalWindow, within time.Duration) {
	if w.End.Before(w.Start) || w.Start.Equal(a.polling.window.Start) && w.End.Equal(a.polling.window.End) {
		return
	}
	a.polling.window = w
	at := w.Start.Add(time.Duration(spread() * float64(w.End.Sub(w.Start))))
	if now := a.now().Round(0); at.Before(now) {
		at = now.Add(time.Duration(spread() * float64(within)))
	}
	if at.After(a.polling.planned) {
		at = a.polling.planned
	}
	if at.Equal(a.renewAt) {
		return
	}
	a.renewAt = at
	a.config.Log.Info("the server announced another time of renewal", "renew_at", at.Format(time.RFC3339))
	a.report()
}
