package ca_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// TestCloseEndsRenewals closes an Authority while it renews its lease. When Close has returned, the journal may be closed.
func TestCloseEndsRenewals(t *testing.T) {
	w := newWorld(t)
	renewing := make(chan struct{}, 1)
	var running atomic.Int32
	j := &faultyJournal{Journal: w.store.CA(), renew: func(ctx context.Context) bool {
		running.Add(1)
		defer running.Add(-1)
		renewing <- struct{}{}
		<-ctx.Done()
		return false
	}}
	a := w.open(t, j)
	<-renewing
	closeAuthority(t, a)
	if n := running.Load(); n != 0 {
		t.Errorf("%d renewals run after Close", n)
	}
}

// TestCloseInVainEndsRenewals closes an Authority whose store does not respond. The lease must end nevertheless.
func TestCloseInVainEndsRenewals(t *testing.T) {
	w := newWorld(t)
	writing, release := make(chan struct{}), make(chan struct{})
	var running atomic.Int32
	renewing := make(chan struct{}, 1)
	j := &faultyJournal{Journal: w.store.CA()}
	j.write = func(_, _ int) *fault {
		close(writing)
		<-release
		return nil
	}
	j.renew = func(ctx context.Context) bool {
		running.Add(1)
		defer running.Add(-1)
		renewing <- struct{}{}
		<-ctx.Done()
		return false
	}
	a := w.open(t, j)
	issued := make(chan error, 1)
	go func() {
		_, err := issue(context.Background(), a, w.request(t))
		issued <- err
	}()
	<-writing
	<-renewing // although the writer waits
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Close(ctx); err == nil {
		t.Error("Close returned no error, although a certificate is in flight")
	}
	if n := running.Load(); n != 0 {
		t.Errorf("%d renewals run after Close", n)
	}
	j.write = nil
	close(release)
	t.Logf("the certificate in flight: %v", <-issued) // issued or not
}

// leavingJournal is a journal in which another server has left intents. Its lease ends at the first renewal.
type leavingJournal struct {
	*faultyJournal
	left  []ca.Intent
	fault *fault // of TakeOver; nil for none
	again chan struct{}
}

// Begin takes the intents over, and leaves it to TakeOver to return them.
func (j *leavingJournal) Begin(ctx context.Context) (epoch ca.Epoch, _ []ca.Intent, err error) {
	epoch, j.left, err = j.Journal.Begin(ctx)
	return epoch, nil, err
}

func (j *leavingJournal) BeginAgain(ctx context.Context, process ca.Epoch) (ca.Epoch, []ca.Intent, error) {
	epoch, left, err := j.Journal.BeginAgain(ctx, process)
	j.again <- struct{}{}
	return epoch, left, err
}

func (j *leavingJournal) TakeOver(context.Context, ca.Epoch) ([]ca.Intent, error) {
	if j.fault != nil {
		return nil, j.fault.err
	}
	j.again <- struct{}{}
	return j.left, nil
}

// TestTakeOverLosesNothing has the takeover of an intent fail. Its certificate must be accounted for, whether the takeover
// was applied or not.
func TestTakeOverLosesNothing(t *testing.T) {
	for name, f := range map[string]*fault{
		"no fault": nil, "not applied": {err: errInjected}, "applied": {applied: true, err: errInjected},
		"fenced": {err: fmt.Errorf("epoch 2: %w", ca.ErrFenced)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // waits for a renewal
			w := newWorld(t)
			item := w.leaveIntent(t)
			j := &leavingJournal{faultyJournal: &faultyJournal{Journal: w.store.CA()}, fault: f, again: make(chan struct{}, 1)}
			var renewed atomic.Bool
			j.renew = func(context.Context) bool { return renewed.CompareAndSwap(false, true) }
			a := w.open(t, j)
			<-j.again
			c, err := issue(t.Context(), a, w.request(t))
			if err != nil {
				t.Errorf("a certificate after the takeover: %v", err)
			}
			closeAuthority(t, a)
			have, err := w.store.RA().Certificate(t.Context(), item)
			if err != nil || have.Delivered || have.Status.State != pki.Revoked {
				t.Errorf("the certificate of the other server is %+v, %v", have, err)
			}
			w.checkAccounted(t, j.faultyJournal, []ca.Certificate{c})
		})
	}
}

// leaveIntent writes an intent with one item, as a process that ends before it signs.
func (w *world) leaveIntent(t *testing.T) pki.CertRef {
	t.Helper()
	epoch, _, err := w.store.CA().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	item := ca.IntentItem{
		Ref: pki.CertRef{Issuer: w.issuer.ID, Serial: serial}, Digest: make([]byte, 32), IssuedAt: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	if _, err := w.store.CA().Write(t.Context(), epoch, nil, []ca.Intent{{Batch: ca.NewBatchID(), Items: []ca.IntentItem{item}}}); err != nil {
		t.Fatal(err)
	}
	return item.Ref
}
