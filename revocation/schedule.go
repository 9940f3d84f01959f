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
	// restShare is how many times as long as the last round took nothing but the schedule asks for the next one.
	restShare = 4
	// longestWait bounds a sleep, so that a clock that was set or a machine that slept is noticed.
	longestWait = time.Minute
	// watchEvery is how often the CRLs that are signed elsewhere are looked at.
	watchEvery = 24 * time.Hour
	// warnAhead is how long before its end such a CRL is complained about, or a third of its lifetime if that is less:
	// a new one takes people and a journey to the key.
	warnAhead = 30 * 24 * time.Hour
)

// Run publishes what is recorded, and then keeps the CRLs current until ctx is done. It signs all CRLs of every issuer at
// its start, since a change that was recorded just before a crash is in none yet; each again at half of its
// lifetime; and soon after changes the full one and those of the partitions in which something has changed. It has the
// records of sets follow, those included that an earlier run has left. What fails is logged and tried again with growing
// waits, up to 15 s. Run returns nil once nothing of it is left running, but for what a directory's file system holds.
func (a *Authority) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, d := range a.directories {
		running.Go(func() { d.keep(ctx, a.log) })
	}
	if !a.publishRecorded(ctx) {
		return nil
	}
	for _, i := range a.issuers {
		running.Go(func() { a.keepCurrent(ctx, i) })
		running.Go(func() { a.keepPacked(ctx, i) })
	}
	running.Go(func() { a.watchElsewhere(ctx) })
	running.Go(func() { a.followSets(ctx) })
	return nil
}

// Begun reports whether Run has published the full CRL of every issuer, or has failed to and tries again. Who is told of a
// server before that would find none where certificates say that one is.
func (a *Authority) Begun() bool {
	for _, i := range a.issuers {
		if !i.begun.Load() {
			return false
		}
	}
	return true
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
		i := a.issuers[c.Issuer]
		if i != nil {
			i.remember(c)
		}
		there, err := a.shelf.recover(c)
		if err == nil && there {
			err = a.publish([]CRL{c}) // a CRL of a CA that is no longer here has no publisher either
		}
		switch {
		case err != nil:
			a.log.Warn("a recorded CRL is not published", "crl", c.Scope().Path(), "number", c.Number, "error", err)
		case !there:
			a.log.Warn("the file of a recorded CRL is missing or damaged: a new one follows", "crl", c.Scope().Path(), "number", c.Number)
		case i != nil && c.Scope() == Scope{Issuer: i.id}:
			i.begun.Store(true)
		}
	}
}

// remember takes c for the newest CRL of its scope unless a newer one is known.
func (i *issuer) remember(c CRL) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if last, found := i.last[c.Scope()]; !found || last.Number.Cmp(c.Number) < 0 {
		i.last[c.Scope()] = c
	}
}

// keepCurrent signs an issuer's CRLs until ctx is done.
func (a *Authority) keepCurrent(ctx context.Context, i *issuer) {
	retry := newBackOff()
	for why := everything; ; {
		select {
		case <-i.wanted: // what was asked for so far is in the CRLs that come now
			why = max(why, change)
		default:
		}
		err := a.publishNew(ctx, i, why)
		if ctx.Err() != nil {
			return
		}
		i.begun.Store(true)
		if err != nil {
			wait := retry.NextBackOff()
			a.log.Error("no new CRL, trying again", "issuer", i.Certificate.Subject, "valid_until", i.validUntil(), "wait", wait, "error", err)
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		retry.Reset()
		request(i.packed)
		if why = schedule; !a.untilDue(ctx, i) {
			return
		}
	}
}

// untilDue waits until an issuer needs new CRLs: a change asked for some, or one is due. It reports false once ctx is done.
func (a *Authority) untilDue(ctx context.Context, i *issuer) bool {
	ended := time.Now()
	for {
		left := i.nextDue(a.lifetime, a.clock()).Sub(a.clock())
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(min(left, longestWait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-i.wanted:
			timer.Stop()
			i.want() // it is answered by what comes next
			return sleep(ctx, max(settle, i.rest()-time.Since(ended)))
		case <-timer.C:
		}
	}
}

// rest is how long an issuer's rounds lie apart at least where changes ask for them: one that takes long takes from
// issuing what it needs.
func (i *issuer) rest() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return restShare * i.took
}

// nextDue is when the first of an issuer's CRLs is due.
func (i *issuer) nextDue(lifetime time.Duration, now time.Time) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	var first time.Time
	for n, s := range i.scopes() {
		if at := i.dueAt(s, lifetime, now); n == 0 || at.Before(first) {
			first = at
		}
	}
	return first
}

// validUntil is when the full CRL ends.
func (i *issuer) validUntil() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last[Scope{Issuer: i.id}].NextUpdate
}

// keepPacked has the store pack what CRLs are read from, after rounds and beside them. Failing costs time alone, and so
// the next round is soon enough to try again.
func (a *Authority) keepPacked(ctx context.Context, i *issuer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.packed:
		}
		if err := a.records.Compact(ctx, i.id); err != nil && ctx.Err() == nil {
			a.log.Warn("what CRLs are read from is not packed: they take longer", "issuer", i.Certificate.Subject, "error", err)
		}
	}
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
