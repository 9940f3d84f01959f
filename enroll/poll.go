package enroll

import (
	"context"
	"math"
	"time"
)

// The agent polls the renewal window at an interval within these limits.
const (
	minPollInterval     = 10 * time.Minute
	maxPollInterval     = 24 * time.Hour
	defaultPollInterval = 6 * time.Hour
	// minPolledLife is the shortest lifetime of a certificate whose window the agent polls. A shorter one is renewed soon
	// anyway.
	minPolledLife = time.Hour
	// maxRenewalJitter is how long after the response an agent renews at the latest, if the window is in the past.
	maxRenewalJitter = time.Minute
)

// RenewalInfo is the response of an [Authority] about the renewal of a certificate.
type RenewalInfo struct {
	// Window is when the certificate should be renewed. If it is in the past, the certificate should be renewed now.
	Window RenewalWindow
	// BundleRevision identifies the newest version of the trust domain's roots, in hexadecimal. It is empty if it is
	// unknown.
	BundleRevision string
	// RetryAfter is the time after which the agent should poll again. If it is zero, the agent chooses.
	RetryAfter time.Duration
}

// polling is the state of an Agent that polls the renewal window of the pair in use.
type polling struct {
	min, max time.Duration // limits of the interval
	next     time.Time     // time of the next poll
	last     time.Time     // time of the last poll, or when the pair was put in use
	window   RenewalWindow // the newest one that is known
	planned  time.Time     // when to renew the pair if no poll succeeds
}

// startPolling schedules the first poll for a pair. After a start of the agent, it comes at a random time in the interval,
// because a whole fleet may start at once.
func (a *Agent) startPolling(p *Pair, restarted bool) {
	interval := a.pollInterval(p, 0)
	a.polling.window, a.polling.planned = p.Origin.Renewal, a.renewAt
	a.polling.last = a.now().Round(0)
	wait := jitter(interval)
	if restarted {
		wait = time.Duration(spread() * float64(interval))
	}
	a.polling.next = a.polling.last.Add(wait)
}

// pollInterval returns the time between two polls for a pair: the one that the Authority wants, or else a tenth of the
// certificate's lifetime and at most six hours.
func (a *Agent) pollInterval(p *Pair, retryAfter time.Duration) time.Duration {
	start, end := p.usableLife()
	interval := min(defaultPollInterval, end.Sub(start)/10)
	if retryAfter > 0 {
		interval = retryAfter
	}
	return min(max(interval, a.polling.min), a.polling.max)
}

// pollDue returns the time until the next poll. If now is before the last one, the clock was set back, and pollDue returns
// 0.
func (a *Agent) pollDue() time.Duration {
	now, p := a.now(), a.Pair()
	if p == nil || !p.validAt(now) {
		return math.MaxInt64
	}
	if start, end := p.usableLife(); end.Sub(start) < minPolledLife {
		return math.MaxInt64
	}
	if now.Before(a.polling.last) {
		return 0
	}
	return a.polling.next.Sub(now)
}

// poll requests the renewal window of the pair in use, and applies it. If the request fails, for instance because an older
// server lacks the RPC, the agent renews as planned.
func (a *Agent) poll(ctx context.Context) {
	p := a.Pair()
	callCtx, cancel := context.WithTimeout(ctx, timeoutFor(p, a.now()))
	defer cancel()
	info, err := a.config.Authority.RenewalInfo(callCtx, p)
	interval := a.pollInterval(p, info.RetryAfter)
	a.polling.last = a.now().Round(0)
	a.polling.next = a.polling.last.Add(jitter(interval))
	if err != nil {
		if ctx.Err() == nil {
			a.config.Log.Debug("polling the renewal window failed, renewing as planned", "error", err)
		}
		return
	}
	a.moveRenewal(info.Window, min(maxRenewalJitter, interval/10))
	if info.BundleRevision != "" {
		a.follow(ctx, info.BundleRevision)
	}
}

// moveRenewal moves the renewal of the pair in use into the rest of a window, unless the window is the one that was known.
// The renewal is never later than planned. If the window is in the past, it comes within the given time.
//
// A new certificate comes with a window of its own, and the next poll comes after an interval. So each response leads to
// one renewal at most, even if every window is in the past.
func (a *Agent) moveRenewal(w RenewalWindow, within time.Duration) {
	if w.End.Before(w.Start) || w.Start.Equal(a.polling.window.Start) && w.End.Equal(a.polling.window.End) {
		return
	}
	a.polling.window = w
	from, until := latest(w.Start, a.now().Round(0)), w.End
	if until.Before(from) {
		until = from.Add(within)
	}
	at := from.Add(time.Duration(spread() * float64(until.Sub(from))))
	if at.After(a.polling.planned) {
		at = a.polling.planned
	}
	if at.Equal(a.renewAt) {
		return
	}
	a.renewAt = at
	a.config.Log.Info("the server has changed the time of renewal", "renew_at", at.Format(time.RFC3339))
	a.report()
}
