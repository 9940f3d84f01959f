package crl

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// batchDelay is how long the updater waits after a change, so that one CRL can list several changes.
	batchDelay = 250 * time.Millisecond
	// pauseFactor times the duration of the last round is the pause before a change starts the next round.
	pauseFactor = 4
	// maxWait is the maximum time until the updater checks the schedule again, because the clock may be set or the
	// machine suspended.
	maxWait = time.Minute
	// checkInterval is the interval at which the expiry of imported CRLs is checked.
	checkInterval = 24 * time.Hour
	// warnBefore is how long before an imported CRL's nextUpdate the log starts to warn, but not before two thirds of
	// the CRL's lifetime. It is long, because people may have to travel to the key to sign a new CRL.
	warnBefore = 30 * 24 * time.Hour
)

// Run publishes the recorded CRLs, and then keeps all CRLs current until ctx ends. First it signs all CRLs of every
// issuer, because a change that was recorded just before a crash may not be in a CRL. It signs each CRL again after
// half of its lifetime. Soon after a change, it signs the full CRL and the CRLs of the changed partitions. If this
// fails, Run logs the error and retries, with growing delays of at most 15 s. If servers share the store, only the leader
// of an issuer does this, and Run publishes the CRLs that the leader signs. Run returns nil when its goroutines have
// ended, except those that a mirror's file system blocks.
func (u *Updater) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, m := range u.mirrors {
		running.Go(func() { m.run(ctx, u.log) })
	}
	if !u.publishRecorded(ctx) {
		return nil
	}
	if u.exchange != nil {
		running.Go(func() { u.follow(ctx) })
	}
	for _, i := range u.issuers {
		running.Go(func() { u.keepCurrent(ctx, i) })
		running.Go(func() { u.keepCompacted(ctx, i) })
	}
	running.Go(func() { u.watchImported(ctx) })
	return nil
}

// Ready reports whether Run has published the full CRL of every issuer, or has tried and failed. Before that, relying
// parties find no CRL at the URLs in certificates.
func (u *Updater) Ready() bool {
	for _, i := range u.issuers {
		if !i.ready.Load() {
			return false
		}
	}
	return true
}

// publishRecorded publishes the CRLs that an earlier process recorded. Relying parties then have CRLs, even if the HSM
// is unavailable. It returns false if ctx ends first.
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
		if u.exchange != nil && !there {
			continue // follow gets the file from the store
		}
		if err == nil && there {
			err = u.publish([]CRL{c}) // the publisher ignores the CRLs of a removed CA
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

// remember stores c as the newest CRL of its scope, unless a newer one is already stored.
func (i *issuer) remember(c CRL) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if last, found := i.last[c.Scope()]; !found || last.Number.Cmp(c.Number) < 0 {
		i.last[c.Scope()] = c
	}
}

// keepCurrent signs an issuer's CRLs until ctx ends.
func (u *Updater) keepCurrent(ctx context.Context, i *issuer) {
	waits := retry.NewBackOff()
	for reason := everything; ; {
		isNew, ok := u.awaitLead(ctx, i)
		if !ok {
			return
		}
		if isNew {
			reason = everything
		}
		select {
		case <-i.wanted: // this round includes all changes requested so far
			reason = max(reason, change)
		default:
		}
		err := u.publishNew(ctx, i, reason)
		if ctx.Err() != nil {
			return
		}
		i.ready.Store(true)
		if err != nil {
			u.yield(ctx, i)
			wait := waits.NextBackOff()
			u.log.Error("signing CRLs failed, retrying", "issuer", i.Certificate.Subject, "valid_until", i.validUntil(), "wait", wait, "error", err)
			if !retry.Sleep(ctx, wait) {
				return
			}
			continue
		}
		waits.Reset()
		signal(i.compact)
		if reason = schedule; !u.untilDue(ctx, i) {
			return
		}
	}
}

// untilDue waits until a CRL of an issuer is due, until a change was requested, or until another server has changed a status
// or leads. It returns false if ctx ends first.
func (u *Updater) untilDue(ctx context.Context, i *issuer) bool {
	ended := time.Now()
	longest := maxWait
	if u.exchange != nil {
		longest = exchangeEvery
	}
	for {
		left := i.nextDue(u.lifetime, u.clock()).Sub(u.clock())
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(min(left, longest))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-i.wanted:
			timer.Stop()
			i.want() // keep the request, which the next iteration of keepCurrent receives
			return u.rest(ctx, i, max(batchDelay, i.pause()-time.Since(ended)))
		case <-timer.C:
			switch {
			case u.exchange == nil:
			case !u.stillLeads(ctx, i):
				return true
			case u.hasNews(ctx, i):
				return u.rest(ctx, i, i.pause()-time.Since(ended))
			}
		}
	}
}

// pause returns the minimum time between two rounds after changes. It is proportional to the duration of the last
// round, because rounds and requests for certificates use the same store and HSM.
func (i *issuer) pause() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return pauseFactor * i.took
}

// nextDue returns when the next CRL of an issuer is due.
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

// validUntil returns the nextUpdate of the last full CRL.
func (i *issuer) validUntil() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last[Scope{Issuer: i.id}].NextUpdate
}

// keepCompacted compacts the store's index of revoked certificates after each round. A failure only makes later rounds
// slower, so keepCompacted does not retry before the next round.
func (u *Updater) keepCompacted(ctx context.Context, i *issuer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.compact:
		}
		if err := u.store.Compact(ctx, i.id); err != nil && ctx.Err() == nil {
			u.log.Warn("compacting the index of revoked certificates failed, the next CRLs take longer", "issuer", i.Certificate.Subject, "error", err)
		}
	}
}

// watchImported logs warnings about imported CRLs before they expire.
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
		if u.exchange != nil && crl.Position > 0 {
			continue // another server signs it; see warnOfSilence
		}
		level, text := u.expiryWarning(crl, found)
		if text != "" {
			u.log.Log(ctx, level, text, "issuer", c.Subject, "next_update", crl.NextUpdate, "hint", "sign one with the CA's key (brevet ceremony crl) and import it")
		}
	}
	return nil
}

// expiryWarning returns the log message for an imported CRL that is missing, expired or about to expire. It returns ""
// if there is nothing to warn about.
func (u *Updater) expiryWarning(crl CRL, found bool) (slog.Level, string) {
	if !found {
		return slog.LevelWarn, "a CA has no CRL, import one"
	}
	left := crl.NextUpdate.Sub(u.clock())
	switch {
	case left <= 0:
		return slog.LevelError, "a CA's CRL has expired and relying parties refuse its certificates, import a new one"
	case left < min(warnBefore, crl.NextUpdate.Sub(crl.ThisUpdate)/3):
		return slog.LevelWarn, "a CA's CRL expires soon, import a new one"
	}
	return 0, ""
}
