package revocation

import (
	"context"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// bulkStep is the number of records that one transaction changes. A step takes some milliseconds.
	bulkStep = 128
	// After each step the authority pauses for bulkPause times the duration of the step, so that issuing gets the store's
	// writer. The pause is bounded, because on an overloaded machine most of a step's duration is waiting.
	bulkPause = 4
	minPause  = time.Millisecond
	maxPause  = 10 * time.Millisecond
	// crlEvery is the interval at which CRLs are requested during a bulk revocation: each lists every revoked certificate,
	// and is therefore long.
	crlEvery = 10 * time.Second
	// maxWait bounds the time between two looks at the store, so that a suspended machine catches up.
	maxWait = time.Minute
)

// bulkQueue is an Authority's state of the bulk revocations that are not yet applied to all records.
type bulkQueue struct {
	wanted   chan struct{} // holds one element if Run should look for bulk revocations
	applying chan struct{} // held by the one goroutine that applies them

	mu       sync.Mutex
	notified map[int64]bool // those whose certificates the responders know
}

func newBulkQueue() bulkQueue {
	return bulkQueue{wanted: make(chan struct{}, 1), applying: make(chan struct{}, 1), notified: map[int64]bool{}}
}

func (s *bulkQueue) want() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

func (s *bulkQueue) isNotified(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notified[id]
}

func (s *bulkQueue) setNotified(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notified[id] = true
}

func (s *bulkQueue) forget(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.notified, id)
}

// CountBulk counts the certificates that a bulk revocation would change now. It changes nothing.
func (a *Authority) CountBulk(ctx context.Context, o BulkRequest) (Affected, error) {
	o, err := a.normalize(o)
	if err != nil {
		return Affected{}, err
	}
	return a.store.CountBulk(ctx, o)
}

// normalize returns the request with action Revoke and with times truncated to seconds, and a refusal if the request is
// invalid.
func (a *Authority) normalize(o BulkRequest) (BulkRequest, error) {
	now := a.now()
	o.Action = Revoke
	if o.At.IsZero() {
		o.At = now
	}
	o.At, o.InvalidSince = o.At.UTC().Truncate(time.Second), o.InvalidSince.UTC().Truncate(time.Second)
	return o, o.check(now)
}

// RevokeBulk starts a bulk revocation. When it returns without an error, the bulk revocation is durable, and every
// responder of this process has been notified of every selected certificate. Run then applies it to the records, and so
// to the CRLs. After an error other than a refusal, the bulk revocation may be in effect nevertheless. A caller may
// repeat the request: the second bulk revocation changes what the first one did not, and notifies the responders of
// both.
func (a *Authority) RevokeBulk(ctx context.Context, o BulkRequest) (BulkRevocation, error) {
	o, err := a.normalize(o)
	if err != nil {
		return BulkRevocation{}, err
	}
	bulk, changes, err := a.store.CreateBulk(ctx, o)
	if err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			// The bulk revocation may be durable nevertheless.
			a.bulk.want()
			a.crls.RequestAll()
		}
		return BulkRevocation{}, err
	}
	if bulk.Done {
		a.observer.Apply(changes...)
		a.crls.Request(changes)
		return bulk, nil
	}
	defer a.bulk.want()
	return a.notifyBulk(context.WithoutCancel(ctx), bulk.ID) // it is in effect, even if the caller no longer waits
}

// notifyBulk notifies the responders of the certificates that a bulk revocation selects.
func (a *Authority) notifyBulk(ctx context.Context, id int64) (BulkRevocation, error) {
	bulk, err := a.store.NotifyBulk(ctx, id, a.observer)
	if err == nil {
		a.bulk.setNotified(id)
	}
	return bulk, err
}

// completeBulk notifies the responders, and returns when the bulk revocation is applied to all records.
func (a *Authority) completeBulk(ctx context.Context, id int64) (BulkRevocation, error) {
	defer a.bulk.want() // if this fails, Run continues
	if _, err := a.notifyBulk(context.WithoutCancel(ctx), id); err != nil {
		return BulkRevocation{}, err
	}
	for {
		if err := a.applyOpen(ctx); err != nil {
			return BulkRevocation{}, err
		}
		if bulk, err := a.store.BulkRevocation(ctx, id); err != nil || bulk.Done {
			return bulk, err
		}
	}
}

// BulkRevocation returns a bulk revocation and its progress.
func (a *Authority) BulkRevocation(ctx context.Context, id int64) (BulkRevocation, error) {
	return a.store.BulkRevocation(ctx, id)
}

// BulkRevocations returns a page of bulk revocations, as [BulkCreator] does.
func (a *Authority) BulkRevocations(ctx context.Context, states []BulkState, after int64, limit int) ([]BulkRevocation, int64, error) {
	return a.store.BulkRevocations(ctx, states, after, limit)
}

// Run applies bulk revocations to their records until ctx ends, one after the other, including those that an earlier
// process left. If a step fails, Run logs the error and retries, with growing waits of at most 15 s. Run returns nil.
func (a *Authority) Run(ctx context.Context) error {
	waits := retry.NewBackOff()
	for ctx.Err() == nil {
		wait := maxWait
		err := a.applyOpen(ctx)
		switch {
		case err == nil:
			waits.Reset()
		case ctx.Err() == nil:
			wait = waits.NextBackOff()
			a.log.Error("applying bulk revocations failed, retrying", "wait", wait, "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-a.bulk.wanted:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// applyOpen applies all bulk revocations that are not yet done. Only one goroutine does so at a time.
func (a *Authority) applyOpen(ctx context.Context) error {
	select {
	case a.bulk.applying <- struct{}{}:
		defer func() { <-a.bulk.applying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		open, err := a.store.OpenBulk(ctx)
		if err != nil || len(open) == 0 {
			return err
		}
		for _, bulk := range open {
			if err := a.applyBulk(ctx, bulk.ID); err != nil {
				return err
			}
		}
	}
}

// applyBulk applies one bulk revocation, in steps.
func (a *Authority) applyBulk(ctx context.Context, id int64) error {
	if !a.bulk.isNotified(id) {
		if _, err := a.notifyBulk(ctx, id); err != nil {
			return err
		}
	}
	requested := a.clock()
	for {
		started := time.Now()
		changes, bulk, err := a.store.ApplyBulk(ctx, id, bulkStep, a.clock())
		if err != nil {
			a.crls.RequestAll() // the step may be durable nevertheless
			return err
		}
		a.observer.Apply(changes...)
		if bulk.Done {
			a.bulk.forget(id)
			a.crls.RequestAll()
			a.log.Info("bulk revocation applied to all records", "id", id, "action", bulk.Action.String(), "certificates", bulk.Total, "reason", bulk.Reason.String())
			return nil
		}
		if since := a.clock().Sub(requested); since >= crlEvery || since < 0 {
			requested = a.clock()
			a.crls.Request(changes)
		}
		if !retry.Sleep(ctx, min(max(bulkPause*time.Since(started), minPause), maxPause)) {
			return ctx.Err()
		}
	}
}
