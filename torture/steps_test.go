package torture

import (
	"context"
	"fmt"
	"math/big"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/translog"
)

// kill says where a process dies: when it comes to a step for the n-th time since that was armed. The zero value is nowhere.
type kill struct {
	Step string
	N    int
}

// The steps of the pipeline: before and after each of these, as before(step) and after(step) name them.
const (
	stepBegin    = "a journal's epoch and what was left"
	stepAnnounce = "an intent"
	stepSign     = "a certificate's signature"
	stepSettle   = "a record"
	stepBind     = "a token's binding"
	stepToken    = "a token's making"
	stepOrder    = "a revocation order"
	stepSet      = "a set's row"
	stepTellSet  = "telling of a set"
	stepFollow   = "a set's records"
	stepEndSet   = "a set's last records"
	stepNumber   = "a CRL's number"
	stepSignCRL  = "a CRL's signature"
	stepPutCRL   = "a CRL's record"
	stepSequence = "the chain's writing"
	stepEntries  = "reading what is to be archived"
	stepAnswer   = "an answer on the wire"
)

func before(step string) string { return "before " + step }
func after(step string) string  { return "after " + step }

// steps kills its process at a step.
type steps struct {
	mu   sync.Mutex
	kill kill
	seen int
}

func (s *steps) arm(k kill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill, s.seen = k, 0
}

// at is called at every step. Whoever comes to the last one does not return.
func (s *steps) at(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if step != s.kill.Step {
		return
	}
	if s.seen++; s.seen == s.kill.N {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// around makes two steps of a call.
func around[T any](s *steps, step string, call func() (T, error)) (T, error) {
	s.at(before(step))
	v, err := call()
	s.at(after(step))
	return v, err
}

// wrap puts the steps around what the server's parts ask of the store.
func (s *steps) wrap(st server.Stores) server.Stores {
	st.CA = &steppingJournal{st.CA, s}
	st.RA = &steppingRecords{st.RA, s}
	st.Revocation = &steppingRevocations{st.Revocation, s}
	st.CRLs = &steppingCRLs{st.CRLs, s}
	st.Log = &steppingLog{st.Log, s}
	return st
}

type steppingJournal struct {
	ca.Journal
	steps *steps
}

func (j *steppingJournal) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	j.steps.at(before(stepBegin))
	epoch, left, err := j.Journal.Begin(ctx)
	j.steps.at(after(stepBegin))
	return epoch, left, err
}

func (j *steppingJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	at := func(when func(string) string) {
		if len(settle) > 0 {
			j.steps.at(when(stepSettle))
		}
		if len(announce) > 0 {
			j.steps.at(when(stepAnnounce))
		}
	}
	at(before)
	verdicts, err := j.Journal.Write(ctx, e, settle, announce)
	at(after)
	return verdicts, err
}

type steppingRecords struct {
	ra.Store
	steps *steps
}

func (r *steppingRecords) BindToken(ctx context.Context, id pki.TokenID, request pki.RequestID, key pki.KeyHash, at time.Time) (ra.Token, error) {
	return around(r.steps, stepBind, func() (ra.Token, error) { return r.Store.BindToken(ctx, id, request, key, at) })
}

func (r *steppingRecords) CreateToken(ctx context.Context, t ra.Token) error {
	_, err := around(r.steps, stepToken, func() (struct{}, error) { return struct{}{}, r.Store.CreateToken(ctx, t) })
	return err
}

type steppingRevocations struct {
	revocation.Store
	steps *steps
}

func (r *steppingRevocations) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	return around(r.steps, stepOrder, func() (revocation.ChangeResult, error) { return r.Store.Apply(ctx, o) })
}

func (r *steppingRevocations) CreateBulk(ctx context.Context, o revocation.BulkRequest) (set revocation.BulkRevocation, changes []pki.StatusChange, err error) {
	_, err = around(r.steps, stepSet, func() (_ struct{}, err error) {
		set, changes, err = r.Store.CreateBulk(ctx, o)
		return struct{}{}, err
	})
	return set, changes, err
}

func (r *steppingRevocations) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	return around(r.steps, stepTellSet, func() (revocation.BulkRevocation, error) { return r.Store.NotifyBulk(ctx, id, observer) })
}

// followedAtOnce is so few that a set of the torture's size takes many steps.
const followedAtOnce = 2

func (r *steppingRevocations) ApplyBulk(ctx context.Context, id int64, _ int, at time.Time) (changes []pki.StatusChange, set revocation.BulkRevocation, err error) {
	r.steps.at(before(stepFollow))
	changes, set, err = r.Store.ApplyBulk(ctx, id, followedAtOnce, at)
	if set.Done {
		r.steps.at(after(stepEndSet))
	} else {
		r.steps.at(after(stepFollow))
	}
	return changes, set, err
}

type steppingCRLs struct {
	crl.Store
	steps *steps
}

func (r *steppingCRLs) TakeNumber(ctx context.Context, issuer pki.IssuerID) (*big.Int, error) {
	return around(r.steps, stepNumber, func() (*big.Int, error) { return r.Store.TakeNumber(ctx, issuer) })
}

func (r *steppingCRLs) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, at time.Time) error {
	_, err := around(r.steps, stepPutCRL, func() (struct{}, error) { return struct{}{}, r.Store.PutCRLs(ctx, crls, by, at) })
	return err
}

type steppingLog struct {
	translog.Store
	steps *steps
}

// Sequence counts as a step only where it wrote something, or it would be one ten times a second.
func (l *steppingLog) Sequence(ctx context.Context, limit int) ([]translog.Sequenced, error) {
	l.steps.at(before(stepSequence))
	batch, err := l.Store.Sequence(ctx, limit)
	if len(batch) > 0 {
		l.steps.at(after(stepSequence))
	}
	return batch, err
}

func (l *steppingLog) Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	return around(l.steps, stepEntries, func() ([]translog.Sequenced, error) { return l.Store.Entries(ctx, from, limit) })
}

type steppingListener struct {
	net.Listener
	steps *steps
}

func (l *steppingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &steppingConn{conn, l.steps}, nil
}

type steppingConn struct {
	net.Conn
	steps *steps
}

func (c *steppingConn) Write(b []byte) (int, error) {
	return around(c.steps, stepAnswer, func() (int, error) { return c.Conn.Write(b) })
}

// String says where a process is killed.
func (k kill) String() string { return fmt.Sprintf("%s, time %d", k.Step, k.N) }
