package crl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

// LeaseTime is how long a server leads an issuer after it has said so. It is longer than a pause of the store.
const LeaseTime = 6 * time.Second

const (
	// exchangeEvery is the interval at which a server reads what the others have recorded, and extends its leases.
	// It is short enough for a server to publish a CRL within a second after it was recorded.
	exchangeEvery = 500 * time.Millisecond
	// maxRound is how long a server extends its lease during one round. An HSM that does not respond keeps a round from
	// its end, and another server may have a clone of the key.
	maxRound = 2 * time.Minute
	// maxSearch is how often a server looks for the full CRL of a CA that another server leads, before it is ready
	// without it.
	maxSearch = 10
)

// Exchange passes CRLs between servers that share a store. At each time one server signs the CRLs of a CA: its leader. The
// others publish them too. The methods are safe for concurrent use.
//
//nolint:interfacebloat // one consumer, and the steps of one round
type Exchange interface {
	// Lead makes this server the leader of an issuer for LeaseTime, by the clock of the store, unless another server is. It
	// reports whether this server is the leader. While another server leads, PutCRLs refuses the CRLs of the issuer
	// (crl.invalid).
	Lead(ctx context.Context, issuer pki.IssuerID) (bool, error)
	// Led returns the issuers that have a leader now.
	Led(ctx context.Context) ([]pki.IssuerID, error)
	// Yield ends the lease of this server, so that another one can lead at once.
	Yield(ctx context.Context, issuer pki.IssuerID) error
	// PutFile stores the bytes of a CRL in small transactions. PutCRLs then records the CRL, and removes the bytes of the one
	// that it replaces.
	PutFile(ctx context.Context, c CRL, file io.Reader) error
	// CopyFile writes the bytes of a recorded CRL, or fewer if a newer CRL has replaced it.
	CopyFile(ctx context.Context, c CRL, w io.Writer) error
	// Newest returns the same as RecordStore.CRLs, without DER.
	Newest(ctx context.Context) ([]CRL, error)
}

// shown has the number of the CRL in the published directory for each scope, as far as this process has published it.
type shown struct {
	mu      sync.Mutex
	numbers map[Scope]*big.Int
}

func (s *shown) add(c CRL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.numbers == nil {
		s.numbers = map[Scope]*big.Int{}
	}
	s.numbers[c.Scope()] = c.Number
}

// has reports whether the published CRL of a scope is c or a newer one.
func (s *shown) has(c CRL) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.numbers[c.Scope()]
	return n != nil && n.Cmp(c.Number) >= 0
}

// follow publishes the CRLs that other servers record, until ctx ends.
func (u *Updater) follow(ctx context.Context) {
	failing := false
	for {
		err := u.catchUp(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			u.log.Warn("publishing the CRLs of other servers failed, retrying", "error", err)
		}
		failing = err != nil
		if !retry.Sleep(ctx, exchangeEvery) {
			return
		}
	}
}

// catchUp reads the points and CRLs on record, and publishes those that this server has not published.
func (u *Updater) catchUp(ctx context.Context) error {
	newest, err := u.refresh(ctx, nil)
	if err != nil {
		return err
	}
	var failed []error
	for _, c := range newest {
		if i := u.issuers[c.Issuer]; i != nil && i.leads.Load() {
			continue // its rounds publish it
		}
		if err := u.publishOther(ctx, c); err != nil {
			failed = append(failed, fmt.Errorf("CRL %v of %s: %w", c.Number, c.Scope().Path(), err))
		}
	}
	if err := u.observeLeaders(ctx, newest); err != nil {
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// refresh reads the points and CRLs on record, and remembers the CRLs of one issuer and of those that other servers lead. It
// returns all CRLs. It does not wait for the rounds of other issuers.
func (u *Updater) refresh(ctx context.Context, of *issuer) ([]CRL, error) {
	if err := u.refreshPoints(ctx); err != nil {
		return nil, err
	}
	newest, err := u.exchange.Newest(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range newest {
		if i := u.issuers[c.Issuer]; i != nil && (i == of || !i.leads.Load()) {
			i.remember(c)
		}
	}
	return newest, nil
}

// refreshPoints adds the distribution points that other servers have recorded, and requests their CRLs.
func (u *Updater) refreshPoints(ctx context.Context) error {
	recorded, err := u.store.Points(ctx)
	if err != nil {
		return fmt.Errorf("read the distribution points of CRLs: %w", err)
	}
	u.adding.Lock()
	defer u.adding.Unlock()
	var added []Point
	for _, p := range recorded {
		if i := u.issuers[p.Issuer]; i != nil && !i.has(p) {
			added = append(added, p)
		}
	}
	next := u.with(added)
	for id := range next {
		u.issuers[id].want()
	}
	return u.use(next)
}

// publishOther publishes a recorded CRL, unless this server has published it or a newer one.
func (u *Updater) publishOther(ctx context.Context, c CRL) error {
	if u.shown.has(c) {
		return nil
	}
	guard := &u.importing
	if i := u.issuers[c.Issuer]; i != nil {
		guard = &i.mu
	}
	guard.Lock()
	defer guard.Unlock()
	if u.shown.has(c) {
		return nil
	}
	there, err := u.published.recover(c)
	if err == nil && !there {
		err = u.fetch(ctx, c)
	}
	if err != nil {
		return err
	}
	return u.publish([]CRL{c})
}

// fetch copies a CRL from the store to the published directory.
func (u *Updater) fetch(ctx context.Context, c CRL) error {
	if err := u.published.makeParent(c.Scope()); err != nil {
		return err
	}
	err := createFile(u.published.temporaryPath(c.Scope()), func(w io.Writer) error { return u.exchange.CopyFile(ctx, c, w) })
	if err != nil {
		return err
	}
	if there, err := u.published.recover(c); err != nil || there {
		return err
	}
	return errors.New("the store does not have its bytes: a newer CRL may have replaced it")
}

// passOn stores the bytes of signed CRLs for the other servers.
func (u *Updater) passOn(ctx context.Context, crls []CRL) error {
	if u.exchange == nil {
		return nil
	}
	for _, c := range crls {
		if err := u.passFile(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (u *Updater) passFile(ctx context.Context, c CRL) (err error) {
	file, err := files.OpenFile(u.published.temporaryPath(c.Scope()), os.O_RDONLY|files.NoFollow, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return u.exchange.PutFile(ctx, c, file)
}

// awaitLead waits until this server leads an issuer. It reports whether another server may have led meanwhile, and returns
// false if ctx ends first.
func (u *Updater) awaitLead(ctx context.Context, i *issuer) (isNew, ok bool) {
	if u.exchange == nil {
		return false, true
	}
	waits := retry.NewBackOff()
	for searches := 1; ; searches++ {
		wait := exchangeEvery
		leads, err := u.exchange.Lead(ctx, i.id)
		if err == nil && leads {
			err = u.prepareToLead(ctx, i)
		}
		switch {
		case err == nil && leads:
			i.confirmed = time.Now()
			if isNew = i.leads.CompareAndSwap(false, true); isNew {
				u.log.Info("signing the CRLs of a CA for all servers", "issuer", i.Certificate.Subject)
			}
			return isNew, true
		case err != nil && ctx.Err() == nil:
			wait = waits.NextBackOff()
			u.log.Error("reading which server signs the CRLs of a CA failed, retrying", "issuer", i.Certificate.Subject, "wait", wait, "error", err)
		default:
			waits.Reset()
		}
		if !i.mayLead(err) {
			i.leads.Store(false)
		}
		if err != nil || searches >= maxSearch || u.shown.has(CRL{Issuer: i.id, Number: new(big.Int)}) {
			i.ready.Store(true)
		}
		if !retry.Sleep(ctx, wait) {
			return false, false
		}
	}
}

// prepareToLead reads what another server may have recorded since the last round.
func (u *Updater) prepareToLead(ctx context.Context, i *issuer) error {
	if _, err := u.refresh(ctx, i); err != nil || i.leads.Load() {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return u.findRenamed(i)
}

// keepLease extends the lease of an issuer during a round, until the returned function is called.
func (u *Updater) keepLease(ctx context.Context, i *issuer) (end func()) {
	if u.exchange == nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, maxRound)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for retry.Sleep(ctx, exchangeEvery) {
			_, _ = u.exchange.Lead(ctx, i.id) // PutCRLs refuses the CRLs if the lease is lost
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// yield gives up the lease of an issuer whose round has failed. Another server with a clone of the key may be able to sign.
func (u *Updater) yield(ctx context.Context, i *issuer) {
	if u.exchange == nil {
		return
	}
	i.leads.Store(false)
	_ = u.exchange.Yield(ctx, i.id) // otherwise the lease ends by itself
}

// stillLeads extends the lease of an issuer, and reports whether this server may lead. If it does not, follow publishes the
// CRLs from then on.
func (u *Updater) stillLeads(ctx context.Context, i *issuer) bool {
	leads, err := u.exchange.Lead(ctx, i.id)
	if err == nil && leads {
		i.confirmed = time.Now()
		return true
	}
	if i.mayLead(err) {
		return true
	}
	i.leads.Store(false)
	return false
}

// mayLead reports whether this server has the lease although extending it has failed. A store that is overloaded must not
// have a leader sign all CRLs again after each failure. The transaction that records a CRL checks the lease.
func (i *issuer) mayLead(err error) bool { return err != nil && time.Since(i.confirmed) < LeaseTime/2 }

// rest waits before the next round. It extends the lease of the issuer, and ends early if another server leads. It returns
// false if ctx ends first.
func (u *Updater) rest(ctx context.Context, i *issuer, d time.Duration) bool {
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if u.exchange == nil || left <= exchangeEvery {
			return retry.Sleep(ctx, left)
		}
		if !retry.Sleep(ctx, exchangeEvery) {
			return false
		}
		if !u.stillLeads(ctx, i) {
			return true
		}
	}
}

// hasNews reports whether this server must sign CRLs of an issuer although no call here has requested them: another server
// has changed the status of a certificate. It also reports true if it cannot know.
func (u *Updater) hasNews(ctx context.Context, i *issuer) bool {
	i.mu.Lock()
	covered := i.covered
	i.mu.Unlock()
	var changed []uint16
	err := u.store.View(ctx, i.id, func(view View) (err error) {
		changed, err = view.Changed(covered)
		return err
	})
	return err != nil || len(changed) > 0
}
