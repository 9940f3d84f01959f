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

// Internals is the error text of the faults. No caller may see it.
const Internals = "the disk at /var/lib/brevet burns"

// RetryAfter is the retry delay of the faults.
const RetryAfter = 1500 * time.Millisecond

// Faulty is a real store that can be made to fail. The zero value does not fail.
type Faulty struct {
	writes   atomic.Int64                  // number of writes of the journal that will fail
	reads    atomic.Bool                   // reads of identities fail
	panics   atomic.Bool                   // listing identities and reading the issuance state panic
	refusals atomic.Bool                   // logging refusals fails
	held     atomic.Pointer[chan struct{}] // set by Hold
	writing  atomic.Pointer[chan struct{}] // set by HoldRecords
	decided  atomic.Int64                  // reads of the issuance state, and registrations, since HoldRecords
}

// FailWrites makes the next n writes of the journal fail temporarily and without effect, as on a full disk.
func (f *Faulty) FailWrites(n int64) { f.writes.Store(n) }

// HoldRecords makes the journal wait before it records signed certificates, until release is called. It sends a value
// on arrived when it starts to wait.
func (f *Faulty) HoldRecords() (arrived <-chan struct{}, release func()) {
	gate := make(chan struct{}) // used like that of Hold
	f.decided.Store(0)
	f.writing.Store(&gate)
	return gate, func() { f.writing.Store(nil); close(gate) }
}

// AwaitDecided waits until the server has n times read the issuance state, or registered an identity, since
// HoldRecords. To decide about a request, the server reads this state once. Then it registers the identity, if an issue
// request does.
func (f *Faulty) AwaitDecided(n int64) {
	for f.decided.Load() < n {
		time.Sleep(time.Millisecond)
	}
}

// FailReads makes reading identities fail, or work again.
func (f *Faulty) FailReads(fail bool) { f.reads.Store(fail) }

// Panic makes listing identities and reading the issuance state panic, or work again.
func (f *Faulty) Panic(panics bool) { f.panics.Store(panics) }

// FailRefusals makes logging refusals fail, or work again.
func (f *Faulty) FailRefusals(fail bool) { f.refusals.Store(fail) }

// Hold makes listing identities wait until release is called. It sends a value on arrived when an RPC starts to wait.
func (f *Faulty) Hold() (arrived <-chan struct{}, release func()) {
	gate := make(chan struct{}) // the waiting RPC sends a value and then receives; release closes the channel
	f.held.Store(&gate)
	return gate, func() { f.held.Store(nil); close(gate) }
}

// Wrap wraps stores so that they fail as f says. It is a value for Options.Wrap.
func (f *Faulty) Wrap(s server.Stores) server.Stores {
	s.CA, s.RA, s.Audit = faultyJournal{s.CA, f}, faultyRecords{s.RA, f}, faultyAudit{s.Audit, f}
	return s
}

// fault is the temporary error of a faulty store.
type fault struct{}

func (fault) Error() string             { return Internals }
func (fault) Temporary() bool           { return true }
func (fault) RetryAfter() time.Duration { return RetryAfter }

type faultyJournal struct {
	ca.Journal
	*Faulty
}

func (j faultyJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	if gate := j.writing.Load(); gate != nil && len(commits) > 0 {
		*gate <- struct{}{}
		<-*gate
	}
	if j.writes.Add(-1) >= 0 {
		return nil, fault{}
	}
	return j.Journal.Write(ctx, e, commits, intents)
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

func (r faultyRecords) CreateIdentity(ctx context.Context, n ra.Registration, by pki.Actor) (ra.Identity, error) {
	defer r.decided.Add(1)
	return r.Store.CreateIdentity(ctx, n, by)
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

func (r faultyAudit) Refused(ctx context.Context, refused audit.Refusal) error {
	if r.refusals.Load() {
		return fault{}
	}
	return r.Store.Refused(ctx, refused)
}
