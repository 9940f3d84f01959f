package crl

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// batchDelay is how long a change waits for others to share its CRL with.
	batchDelay = 250 * time.Millisecond
	// pauseFactor times the duration of the last round is the pause before a change starts the next one.
	pauseFactor = 4
	// maxWait bounds a sleep, so that a clock that was set or a machine that slept is noticed.
	maxWait = time.Minute
	// checkInterval is how often the expiry of imported CRLs is checked.
	checkInterval = 24 * time.Hour
	// warnBefore is how long before its nextUpdate such a CRL is warned of, or a third of its lifetime if that is less: to
	// sign a new one, people have to travel to the key.
	warnBefore = 30 * 24 * time.Hour
)

// Run publishes the recorded CRLs, and then keeps all CRLs current until ctx is done. It signs all CRLs of every issuer at
// its start, since a change that was recorded just before a crash is in none yet, and each again at half of its lifetime.
// Soon after a change it signs the full CRL and those of the changed partitions. A failure is logged and retried after
// growing waits, up to 15 s. Run returns nil once its goroutines have ended, except those that a mirror's file system blocks.
func (u *Updater) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, m := range u.mirrors {
		running.Go(func() { m.run(ctx, u.log) })
	}
	if !u.publishRecorded(ctx) {
		return nil
	}
	for _, i := range u.issuers {
		running.Go(func() { u.keepCurrent(ctx, i) })
		running.Go(func() { u.keepCompacted(ctx, i) })
	}
	running.Go(func() { u.watchImported(ctx) })
	return nil
}

// Ready reports whether Run has published the full CRL of every issuer, or has failed to and retries. Before that, a relying
// party finds no CRL at the URLs that certificates name.
func (u *Updater) Ready() bool {
	for _, i := range u.issuers {
		if !i.ready.Load() {
			return false
		}
	}
	return true
}

// publishRecorded publishes what an earlier run has recorded, so that relying parties have CRLs while the HSM is unavailable.
// It returns false if ctx ends first.
func (u *Updater) publishRecorded(ctx context.Context) bool {
	wait := retry.NewBackOff()
	for {
		recorded, err := u.store.CRLs(ctx)
		if err == nil {
			u.publishAll(recorded)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		u.log.Error("reading the recorded CRLs failed, retrying", "error", err)
		if !retry.Sleep(ctx, wait.NextBackOff()) {
			return false
		}
	}
}

func (u *Updater) publishAll(recorded []CRL) {
	for _, c := range recorded {
		i := u.issuers[c.Issuer]
		if i != nil {
			i.remember(c)
		}
		there, err := u.published.recover(c)
		if err == nil && there {
			err = u.publish([]CRL{c}) // of a removed CA, too: the publisher ignores it
		}
		switch {
		case err != nil:
			u.log.Warn("publishing a recorded CRL failed", "crl", c.Scope().Path(), "number", c.Number, "error", err)
		case !there:
			u.log.Warn("the file of a recorded CRL is missing or damaged, signing a new one", "crl", c.Scope().Path(), "number", c.Number)
		case i != nil && c.Scope() == Scope{Issuer: i.id}:
			i.ready.Store(true)
		}
	}
}

// remember stores c as the newest CRL of its scope unless a newer one is known.
func (i *issuer) remember(c CRL) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if last, found := i.last[c.Scope()]; !found || last.Number.Cmp(c.Number) < 0 {
		i.last[c.Scope()] = c
	}
}

// keepCurrent signs an issuer's CRLs until ctx is done.
func (u *Updater) keepCurrent(ctx context.Context, i *issuer) {
	waits := retry.NewBackOff()
	for why := everything; ; {
		select {
		case <-i.wanted: // this round covers all requests so far
			why = max(why, change)
		default:
		}
		err := u.publishNew(ctx, i, why)
		if ctx.Err() != nil {
			return
		}
		i.ready.Store(true)
		if err != nil {
			wait := waits.NextBackOff()
			u.log.Error("signing CRLs failed, retrying", "issuer", i.Certificate.Subject, "valid_until", i.validUntil(), "wait", wait, "error", err)
			if !retry.Sleep(ctx, wait) {
				return
			}
			continue
		}
		waits.Reset()
		signal(i.compact)
		if why = schedule; !u.untilDue(ctx, i) {
			return
		}
	}
}

// untilDue waits until an issuer needs new CRLs: a change asked for some, or one is due. It returns false if ctx ends first.
func (u *Updater) untilDue(ctx context.Context, i *issuer) bool {
	ended := time.Now()
	for {
		left := i.nextDue(u.lifetime, u.clock()).Sub(u.clock())
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(min(left, maxWait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-i.wanted:
			timer.Stop()
			i.want() // the next round takes it
			return retry.Sleep(ctx, max(batchDelay, i.pause()-time.Since(ended)))
		case <-timer.C:
		}
	}
}

// pause returns the least time between two rounds of an issuer that changes ask for: a long round takes the store and the HSM
// from issuing.
func (i *issuer) pause() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return pauseFactor * i.took
}

// nextDue returns when the first of an issuer's CRLs is due.
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

// validUntil returns the nextUpdate of the full CRL.
func (i *issuer) validUntil() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last[Scope{Issuer: i.id}].NextUpdate
}

// keepCompacted compacts what CRLs are read from, after each round. A failure makes later rounds slower and nothing else, so
// the next round is soon enough to retry.
func (u *Updater) keepCompacted(ctx context.Context, i *issuer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.compact:
		}
		if err := u.store.Compact(ctx, i.id); err != nil && ctx.Err() == nil {
			u.log.Warn("compacting what CRLs are read from failed, the next ones take longer", "issuer", i.Certificate.Subject, "error", err)
		}
	}
}

// watchImported warns of imported CRLs that expire.
func (u *Updater) watchImported(ctx context.Context) {
	waits := retry.NewBackOff()
	for {
		wait := checkInterval
		if err := u.warnOfExpiry(ctx); err != nil && ctx.Err() == nil {
			wait = waits.NextBackOff()
			u.log.Error("reading the imported CRLs failed, retrying", "error", err)
		} else {
			waits.Reset()
		}
		if !retry.Sleep(ctx, wait) {
			return
		}
	}
}

func (u *Updater) warnOfExpiry(ctx context.Context) error {
	for _, c := range u.elsewhere {
		crl, found, err := u.recorded(ctx, pki.IssuerOf(c))
		if err != nil {
			return err
		}
		level, text := u.expiryWarning(crl, found)
		if text != "" {
			u.log.Log(ctx, level, text, "issuer", c.Subject, "next_update", crl.NextUpdate)
		}
	}
	return nil
}

// expiryWarning returns the log message about an imported CRL that is missing, expired or about to, or an empty one.
func (u *Updater) expiryWarning(crl CRL, found bool) (slog.Level, string) {
	const next = "sign one with the CA's key (brevet ceremony crl) and import it"
	if !found {
		return slog.LevelWarn, "a CA has no CRL here: " + next
	}
	left := crl.NextUpdate.Sub(u.clock())
	switch {
	case left <= 0:
		return slog.LevelError, "a CA's CRL is stale, and relying parties refuse what it covers: " + next
	case left < min(warnBefore, crl.NextUpdate.Sub(crl.ThisUpdate)/3):
		return slog.LevelWarn, fmt.Sprintf("a CA's CRL goes stale in %v: %s", left.Round(time.Minute), next)
	}
	return 0, ""
}
