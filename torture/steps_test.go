package torture

import (
	"context"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/translog"
)

// A killPoint is a step at which a process kills itself, when it reaches the step for the N-th time since the point was
// armed. With the zero value it does not kill itself. If Stops is set, the process stands still there until SIGCONT.
type killPoint struct {
	Step  string
	N     int
	Stops bool
}

// The steps of the pipeline. A process can be killed before(step) and after(step).
const (
	stepBegin        = "beginning an epoch"
	stepTakeOver     = "taking over from another server"
	stepBeginAgain   = "beginning another epoch"
	stepIntent       = "writing an intent"
	stepSign         = "signing a certificate"
	stepCommit       = "committing a batch"
	stepBind         = "binding a token"
	stepToken        = "creating a token"
	stepChange       = "applying a status change"
	stepCreateBulk   = "creating a bulk revocation"
	stepNotifyBulk   = "notifying the responder of a bulk revocation"
	stepApplyBulk    = "applying a bulk revocation"
	stepCompleteBulk = "completing a bulk revocation"
	stepNumber       = "taking a CRL number"
	stepSignCRL      = "signing a CRL"
	stepPutCRL       = "recording a CRL"
	stepPutFile      = "storing the bytes of a CRL"
	stepCopyFile     = "copying a CRL of another server"
	stepSequence     = "sequencing the log"
	stepEntries      = "reading entries for the archive"
	stepRespond      = "writing to a client"

	stepExternalKey   = "recording an external key"
	stepAccount       = "recording an account"
	stepChangeAccount = "changing an account"
	stepOrder         = "recording an order"
	stepMove          = "changing an authorization"
	stepRespondHTTPS  = "writing to an ACME client"

	stepStartRotation = "starting a rotation"
	stepEndRotation   = "ending a rotation"
)

func before(step string) string { return "before " + step }
func after(step string) string  { return "after " + step }

// stepCounter counts the steps of its process and kills it at a kill point.
type stepCounter struct {
	mu   sync.Mutex
	kill killPoint
	seen int
}

func (s *stepCounter) arm(k killPoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill, s.seen = k, 0
}

// at is called at every step. At the kill point it does not return.
func (s *stepCounter) at(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if step != s.kill.Step {
		return
	}
	s.seen++
	switch {
	case s.seen != s.kill.N:
	case s.kill.Stops:
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	default:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// around calls a function, and counts the steps before and after it.
func around[T any](s *stepCounter, step string, call func() (T, error)) (T, error) {
	s.at(before(step))
	v, err := call()
	s.at(after(step))
	return v, err
}

// wrap counts the steps before and after the calls from the server's parts to the store.
func (s *stepCounter) wrap(st server.Stores) server.Stores {
	st.CA = &steppingJournal{st.CA, s}
	st.RA = &steppingStore{st.RA, s}
	st.Revocation = &steppingRevocations{st.Revocation, s}
	st.CRLs = &steppingCRLs{st.CRLs, s}
	if st.Exchange != nil {
		st.Exchange = &steppingExchange{st.Exchange, s}
	}
	st.Log = &steppingLog{st.Log, s}
	st.ACME = &steppingACME{st.ACME, s}
	st.Rotations = &steppingRotations{st.Rotations, s}
	return st
}

type steppingJournal struct {
	ca.Journal
	steps *stepCounter
}

func (j *steppingJournal) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	j.steps.at(before(stepBegin))
	epoch, left, err := j.Journal.Begin(ctx)
	j.steps.at(after(stepBegin))
	return epoch, left, err
}

func (j *steppingJournal) TakeOver(ctx context.Context, e ca.Epoch) ([]ca.Intent, error) {
	return around(j.steps, stepTakeOver, func() ([]ca.Intent, error) { return j.Journal.TakeOver(ctx, e) })
}

func (j *steppingJournal) BeginAgain(ctx context.Context, process ca.Epoch) (ca.Epoch, []ca.Intent, error) {
	j.steps.at(before(stepBeginAgain))
	epoch, left, err := j.Journal.BeginAgain(ctx, process)
	j.steps.at(after(stepBeginAgain))
	return epoch, left, err
}

func (j *steppingJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	at := func(when func(string) string) {
		if len(commits) > 0 {
			j.steps.at(when(stepCommit))
		}
		if len(intents) > 0 {
			j.steps.at(when(stepIntent))
		}
	}
	at(before)
	results, err := j.Journal.Write(ctx, e, commits, intents)
	at(after)
	return results, err
}

type steppingStore struct {
	ra.Store
	steps *stepCounter
}

func (r *steppingStore) BindToken(ctx context.Context, id pki.TokenID, b ra.Binding) (ra.Token, error) {
	return around(r.steps, stepBind, func() (ra.Token, error) { return r.Store.BindToken(ctx, id, b) })
}

func (r *steppingStore) CreateToken(ctx context.Context, t ra.Token) (ra.Token, error) {
	return around(r.steps, stepToken, func() (ra.Token, error) { return r.Store.CreateToken(ctx, t) })
}

type steppingRevocations struct {
	revocation.Store
	steps *stepCounter
}

func (r *steppingRevocations) Apply(ctx context.Context, change revocation.Change) (revocation.ChangeResult, error) {
	return around(r.steps, stepChange, func() (revocation.ChangeResult, error) { return r.Store.Apply(ctx, change) })
}

func (r *steppingRevocations) CreateBulk(ctx context.Context, req revocation.BulkRequest) (bulk revocation.BulkRevocation, changes []pki.StatusChange, err error) {
	_, err = around(r.steps, stepCreateBulk, func() (_ struct{}, err error) {
		bulk, changes, err = r.Store.CreateBulk(ctx, req)
		return struct{}{}, err
	})
	return bulk, changes, err
}

func (r *steppingRevocations) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	return around(r.steps, stepNotifyBulk, func() (revocation.BulkRevocation, error) { return r.Store.NotifyBulk(ctx, id, observer) })
}

// bulkChunk is the number of records that one step of a bulk revocation updates. It is small, so that kills occur
// between steps.
const bulkChunk = 2

func (r *steppingRevocations) ApplyBulk(ctx context.Context, id int64, _ int, at time.Time) (changes []pki.StatusChange, bulk revocation.BulkRevocation, err error) {
	r.steps.at(before(stepApplyBulk))
	changes, bulk, err = r.Store.ApplyBulk(ctx, id, bulkChunk, at)
	if bulk.Done {
		r.steps.at(after(stepCompleteBulk))
	} else {
		r.steps.at(after(stepApplyBulk))
	}
	return changes, bulk, err
}

type steppingCRLs struct {
	crl.Store
	steps *stepCounter
}

func (r *steppingCRLs) TakeNumber(ctx context.Context, issuer pki.IssuerID, at time.Time) (*big.Int, error) {
	return around(r.steps, stepNumber, func() (*big.Int, error) { return r.Store.TakeNumber(ctx, issuer, at) })
}

func (r *steppingCRLs) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, at time.Time) error {
	_, err := around(r.steps, stepPutCRL, func() (struct{}, error) { return struct{}{}, r.Store.PutCRLs(ctx, crls, by, at) })
	return err
}

type steppingExchange struct {
	crl.Exchange
	steps *stepCounter
}

func (x *steppingExchange) PutFile(ctx context.Context, c crl.CRL, file io.Reader) error {
	_, err := around(x.steps, stepPutFile, func() (struct{}, error) { return struct{}{}, x.Exchange.PutFile(ctx, c, file) })
	return err
}

func (x *steppingExchange) CopyFile(ctx context.Context, c crl.CRL, w io.Writer) error {
	_, err := around(x.steps, stepCopyFile, func() (struct{}, error) { return struct{}{}, x.Exchange.CopyFile(ctx, c, w) })
	return err
}

type steppingLog struct {
	translog.Store
	steps *stepCounter
}

// Sequence counts the step after it only if it has sequenced entries, because it is called ten times a second.
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

type steppingACME struct {
	acme.Store
	steps *stepCounter
}

func (a *steppingACME) CreateExternalKey(ctx context.Context, k acme.ExternalKey, sealed []byte) (acme.ExternalKey, error) {
	return around(a.steps, stepExternalKey, func() (acme.ExternalKey, error) { return a.Store.CreateExternalKey(ctx, k, sealed) })
}

func (a *steppingACME) RevokeExternalKey(ctx context.Context, r acme.ExternalKeyRevocation) (acme.ExternalKey, error) {
	return around(a.steps, stepChangeAccount, func() (acme.ExternalKey, error) { return a.Store.RevokeExternalKey(ctx, r) })
}

func (a *steppingACME) CreateAccount(ctx context.Context, in acme.Account) (out acme.Account, created bool, err error) {
	out, err = around(a.steps, stepAccount, func() (_ acme.Account, err error) {
		out, created, err = a.Store.CreateAccount(ctx, in)
		return out, err
	})
	return out, created, err
}

func (a *steppingACME) ChangeAccount(ctx context.Context, c acme.AccountChange) (acme.Account, error) {
	return around(a.steps, stepChangeAccount, func() (acme.Account, error) { return a.Store.ChangeAccount(ctx, c) })
}

func (a *steppingACME) CreateOrder(ctx context.Context, o acme.Order, all []acme.Authorization) error {
	_, err := around(a.steps, stepOrder, func() (struct{}, error) { return struct{}{}, a.Store.CreateOrder(ctx, o, all) })
	return err
}

func (a *steppingACME) MoveAuthorization(ctx context.Context, m acme.Move) (out acme.Authorization, moved bool, err error) {
	out, err = around(a.steps, stepMove, func() (_ acme.Authorization, err error) {
		out, moved, err = a.Store.MoveAuthorization(ctx, m)
		return out, err
	})
	return out, moved, err
}

type steppingRotations struct {
	rotation.Store
	steps *stepCounter
}

func (r *steppingRotations) StartRotation(ctx context.Context, req rotation.Request) (rotation.Rotation, error) {
	return around(r.steps, stepStartRotation, func() (rotation.Rotation, error) { return r.Store.StartRotation(ctx, req) })
}

func (r *steppingRotations) EndRotation(ctx context.Context, e rotation.End) (rotation.Rotation, error) {
	return around(r.steps, stepEndRotation, func() (rotation.Rotation, error) { return r.Store.EndRotation(ctx, e) })
}

// steppingListener counts each write to a client as a step.
type steppingListener struct {
	net.Listener
	steps *stepCounter
	step  string
}

func (l *steppingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &steppingConn{conn, l.steps, l.step}, nil
}

type steppingConn struct {
	net.Conn
	steps *stepCounter
	step  string
}

func (c *steppingConn) Write(b []byte) (int, error) {
	return around(c.steps, c.step, func() (int, error) { return c.Conn.Write(b) })
}

// String returns the step and the count.
func (k killPoint) String() string { return fmt.Sprintf("%s, time %d", k.Step, k.N) }
