package revocation

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/cenkalti/backoff/v5"
)

const (
	// settle is how long a change waits for others to share its CRL with.
	settle = 250 * time.Millisecond
	// longestWait bounds a sleep, so that a clock that was set or a machine that slept is noticed.
	longestWait = time.Minute
	// watchEvery is how often the CRLs that are signed elsewhere are looked at.
	watchEvery = 24 * time.Hour
	// warnAhead is how long before its end such a CRL is complained about, or a third of its lifetime if that is less:
	// a new one takes people and a journey to the key.
	warnAhead = 30 * 24 * time.Hour
)

// Run publishes what is recorded, and then keeps the CRLs current until ctx is done. It signs a CRL of every issuer at
// its start, since a change that was recorded just before a crash is in none yet; another one at half of its
// lifetime; and one soon after changes. It has the records of sets follow, those included that an earlier run has left. What fails is logged and tried again with growing waits, up to 15 s.
// Run returns nil once nothing of it is left running.
func (a *Authority) Run(ctx context.Context) error {
	if !a.publishRecorded(ctx) {
		return nil
	}
	var running sync.WaitGroup
	for _, i := range a.issuers {
		running.Go(func() { a.keepCurrent(ctx, i) })
	}
	running.Go(func() { a.watchElsewhere(ctx) })
	running.Go(func() { a.followSets(ctx) })
	running.Wait()
	return nil
}

// publishRecorded puts out what an earlier run has recorded, so that relying parties have it while the token is
// still away. It reports whether ctx let it succeed.
func (a *Authority) publishRecorded(ctx context.Context) bool {
	wait := newBackOff()
	for {
		recorded, err := a.records.CRLs(ctx)
		if err == nil {
			a.publishAll(recorded)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		a.log.Error("the recorded CRLs cannot be read, and are not published", "error", err)
		if !sleep(ctx, wait.NextBackOff()) {
			return false
		}
	}
}

func (a *Authority) publishAll(recorded []CRL) {
	for _, c := range recorded {
		if i := a.issuers[c.Issuer]; i != nil {
			i.remember(c)
		}
		// A CRL of a CA that is no longer here has no publisher either.
		if err := a.publisher.PublishCRL(c); err != nil {
			a.log.Warn("a recorded CRL is not published", "issuer", c.Issuer.Short(), "number", c.Number, "error", err)
		}
	}
}

// remember takes c for the newest CRL unless a newer one is known.
func (i *issuer) remember(c CRL) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last.Number == nil || i.last.Number.Cmp(c.Number) < 0 {
		i.last = c
	}
}

// keepCurrent signs an issuer's CRLs until ctx is done.
func (a *Authority) keepCurrent(ctx context.Context, i *issuer) {
	retry := newBackOff()
	for {
		select {
		case <-i.wanted: // what was asked for so far is in the CRL that comes now
		default:
		}
		err := a.publishNew(ctx, i)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			wait := retry.NextBackOff()
			a.log.Error("no new CRL, trying again", "issuer", i.Certificate.Subject, "valid_until", i.validUntil(), "wait", wait, "error", err)
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		retry.Reset()
		if !a.untilDue(ctx, i) {
			return
		}
	}
}

// untilDue waits until an issuer needs a new CRL: a change asked for one, the last has lived half of its life, or it is
// from a time yet to come, which a clock that was set back leaves behind and relying parties refuse. It reports false
// once ctx is done.
func (a *Authority) untilDue(ctx context.Context, i *issuer) bool {
	for {
		left := i.validUntil().Add(-a.lifetime / 2).Sub(a.clock())
		if left <= 0 || i.fromTheFuture(a.clock()) {
			return true
		}
		timer := time.NewTimer(min(left, longestWait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-i.wanted:
			timer.Stop()
			return sleep(ctx, settle)
		case <-timer.C:
		}
	}
}

func (i *issuer) validUntil() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last.NextUpdate
}

// fromTheFuture reports whether the last CRL says that it was issued after the given time.
func (i *issuer) fromTheFuture(now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last.ThisUpdate.After(now)
}

// watchElsewhere looks after the CRLs that nobody here can sign.
func (a *Authority) watchElsewhere(ctx context.Context) {
	retry := newBackOff()
	for {
		wait := watchEvery
		if err := a.warnOfStale(ctx); err != nil && ctx.Err() == nil {
			wait = retry.NextBackOff()
			a.log.Error("the CRLs that are signed elsewhere cannot be looked at", "error", err)
		} else {
			retry.Reset()
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (a *Authority) warnOfStale(ctx context.Context) error {
	for _, c := range a.elsewhere {
		crl, found, err := a.recorded(ctx, pki.IssuerOf(c))
		if err != nil {
			return err
		}
		level, text := a.concern(crl, found)
		if text != "" {
			a.log.Log(ctx, level, text, "issuer", c.Subject, "next_update", crl.NextUpdate)
		}
	}
	return nil
}

// concern says what is wrong with a CRL that was signed elsewhere, and how badly; nothing, when all is well.
func (a *Authority) concern(crl CRL, found bool) (slog.Level, string) {
	const next = "sign one with the CA's key (brevet ceremony crl) and import it"
	if !found {
		return slog.LevelWarn, "a CA has no CRL here: " + next
	}
	left := crl.NextUpdate.Sub(a.clock())
	switch {
	case left <= 0:
		return slog.LevelError, "a CA's CRL is stale, and relying parties refuse what it covers: " + next
	case left < min(warnAhead, crl.NextUpdate.Sub(crl.ThisUpdate)/3):
		return slog.LevelWarn, fmt.Sprintf("a CA's CRL goes stale in %v: %s", left.Round(time.Minute), next)
	}
	return 0, ""
}

// sleep waits for d, and reports false when ctx is done first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// newBackOff waits a quarter of a second after the first failure and about 15 s after many.
func newBackOff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: 250 * time.Millisecond, RandomizationFactor: 0.25, Multiplier: 2, MaxInterval: 15 * time.Second,
	}
}
