package servertest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server"
)

// Internals is what the faults say of themselves. No caller may see it.
const Internals = "the disk at /var/lib/brevet burns"

// RetryAfter is what the faults ask their callers to wait.
const RetryAfter = 1500 * time.Millisecond

// Faulty is a real store that can be made to fail. Its zero value does not.
type Faulty struct {
	writes   atomic.Int64 // of the journal, that still fail
	reads    atomic.Bool  // of identities, fail
	panics   atomic.Bool  // where identities are listed, or it is read how requests stand
	refusals atomic.Bool  // cannot be logged
	held     atomic.Pointer[chan struct{}]
	writing  atomic.Pointer[chan struct{}]
	decided  atomic.Int64
}

// FailWrites makes the next writes of the journal fail as a full disk does: for now, and without effect.
func (f *Faulty) FailWrites(n int64) { f.writes.Store(n) }

// HoldRecords makes the journal wait with certificates that are signed, until release is called: they are not on record
// before that. The first one to wait is announced on arrived.
func (f *Faulty) HoldRecords() (arrived <-chan struct{}, release func()) {
	gate := make(chan struct{}) // as in Hold
	f.decided.Store(0)
	f.writing.Store(&gate)
	return gate, func() { f.writing.Store(nil); close(gate) }
}

// AwaitDecided returns when so many requests since HoldRecords have been decided, and are about to be signed.
func (f *Faulty) AwaitDecided(n int64) {
	for f.decided.Load() < n {
		time.Sleep(time.Millisecond)
	}
}

// FailReads makes reading identities fail, or work again.
func (f *Faulty) FailReads(fail bool) { f.reads.Store(fail) }

// Panic makes listing identities, and reading how requests stand, panic or work again.
func (f *Faulty) Panic(panics bool) { f.panics.Store(panics) }

// FailRefusals makes logging refusals fail, or work again.
func (f *Faulty) FailRefusals(fail bool) { f.refusals.Store(fail) }

// Hold makes listing identities wait until release is called. Whoever waits is announced on arrived.
func (f *Faulty) Hold() (arrived <-chan struct{}, release func()) {
	gate := make(chan struct{}) // one value to announce the caller, and closed to let it go
	f.held.Store(&gate)
	return gate, func() { f.held.Store(nil); close(gate) }
}

// Wrap is an Options.Wrap.
func (f *Faulty) Wrap(s server.Stores) server.Stores {
	s.CA, s.RA, s.Audit = faultyJournal{s.CA, f}, faultyRecords{s.RA, f}, faultyAudit{s.Audit, f}
	return s
}

type fault struct{}

func (fault) Error() string             { return Internals }
func (fault) Temporary() bool           { return true }
func (fault) RetryAfter() time.Duration { return RetryAfter }

type faultyJournal struct {
	ca.Journal
	*Faulty
}

func (j faultyJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	if gate := j.writing.Load(); gate != nil && len(settle) > 0 {
		*gate <- struct{}{}
		<-*gate
	}
	if j.writes.Add(-1) >= 0 {
		return nil, fault{}
	}
	return j.Journal.Write(ctx, e, settle, announce)
}

type faultyRecords struct {
	ra.Store
	*Faulty
}

func (r faultyRecords) Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error) {
	if r.reads.Load() {
		return ra.Identity{}, fault{}
	}
	return r.Store.Identity(ctx, id)
}

func (r faultyRecords) Identities(ctx context.Context, f ra.IdentityFilter, at time.Time, after pki.SPIFFEID, limit int) ([]ra.Identity, pki.SPIFFEID, error) {
	if r.panics.Load() {
		panic(errors.New(Internals))
	}
	if gate := r.held.Load(); gate != nil {
		*gate <- struct{}{}
		<-*gate
	}
	return r.Store.Identities(ctx, f, at, after, limit)
}

func (r faultyRecords) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	if r.reads.Load() {
		return ra.IssuanceState{}, fault{}
	}
	if r.panics.Load() {
		panic(errors.New(Internals))
	}
	defer r.decided.Add(1)
	return r.Store.IssuanceState(ctx, q)
}

type faultyAudit struct {
	audit.Store
	*Faulty
}

func (r faultyAudit) Refused(ctx context.Context, by pki.Actor, id pki.SPIFFEID, why *pki.Refusal, at time.Time) error {
	if r.refusals.Load() {
		return fault{}
	}
	return r.Store.Refused(ctx, by, id, why, at)
}
