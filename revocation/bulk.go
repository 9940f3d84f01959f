package revocation

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// bulkStep is the number of records that one transaction changes. A step takes some milliseconds.
	bulkStep = 128
	// After each step the authority pauses for bulkPause times the duration of the step. Meanwhile, requests for
	// certificates can write to the store. The pause is limited, because on an overloaded machine a step mostly waits.
	bulkPause = 4
	minPause  = time.Millisecond
	maxPause  = 10 * time.Millisecond
	// crlEvery is the interval at which CRLs are requested during a bulk revocation. These CRLs list every revoked
	// certificate, so signing them takes long.
	crlEvery = 10 * time.Second
	// pollEvery is the interval at which Run reads the open bulk revocations, which another server may have created.
	pollEvery = time.Second
	// followEvery is the interval at which a caller reads whether the leader has applied a bulk revocation.
	followEvery = 100 * time.Millisecond
)

// bulkQueue is the state of the bulk revocations that an Authority has not yet applied to all records.
type bulkQueue struct {
	wanted   chan struct{} // holds one element if Run must read the open bulk revocations
	applying chan struct{} // holds one element while a goroutine applies bulk revocations

	mu       sync.Mutex
	notified map[int64]bool // IDs of the bulk revocations whose certificates were sent to the responders
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

// forgetOthers forgets the bulk revocations that are not open any more.
func (s *bulkQueue) forgetOthers(open []BulkRevocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.notified, func(id int64, _ bool) bool {
		return !slices.ContainsFunc(open, func(b BulkRevocation) bool { return b.ID == id })
	})
}

// CountBulk counts the certificates that a bulk revocation would change at this time. It changes nothing.
func (a *Authority) CountBulk(ctx context.Context, o BulkRequest) (Affected, error) {
	o, err := a.normalize(o)
	if err != nil {
		return Affected{}, err
	}
	return a.store.CountBulk(ctx, o)
}

// normalize sets the action of a request to Revoke, and its grace, and truncates its times to seconds. It returns a refusal if the
// request is invalid.
func (a *Authority) normalize(o BulkRequest) (BulkRequest, error) {
	now := a.now()
	o.Action, o.Grace = Revoke, a.grace()
	if o.At.IsZero() {
		o.At = now
	}
	o.At, o.InvalidSince = o.At.UTC().Truncate(time.Second), o.InvalidSince.UTC().Truncate(time.Second)
	return o, o.check(now)
}

// RevokeBulk starts a bulk revocation. If the error is nil, the bulk revocation is durable, and every responder of this
// process knows the new status of every selected certificate. Run later changes the records, and with them the CRLs.
// After an error other than a refusal, the bulk revocation may be in effect nevertheless. A caller may repeat the
// request: the second bulk revocation changes the certificates that the first did not. It notifies the responders of
// the certificates of both.
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
	// The bulk revocation is in effect, even if the caller has stopped waiting.
	return a.notifyBulk(context.WithoutCancel(ctx), bulk.ID)
}

// notifyBulk notifies the responders of the new statuses of the certificates that a bulk revocation selects.
func (a *Authority) notifyBulk(ctx context.Context, id int64) (BulkRevocation, error) {
	bulk, err := a.store.NotifyBulk(ctx, id, a.observer)
	if err == nil {
		a.bulk.setNotified(id)
	}
	return bulk, err
}

// completeBulk notifies the responders, and returns when the bulk revocation is applied to all records, by this server or by
// the leader.
func (a *Authority) completeBulk(ctx context.Context, id int64) (BulkRevocation, error) {
	defer a.bulk.want() // wakes Run, which retries the rest if this function returns an error
	if _, err := a.notifyBulk(context.WithoutCancel(ctx), id); err != nil {
		return BulkRevocation{}, err
	}
	for {
		err := a.applyOpen(ctx)
		follows := errors.Is(err, pki.ErrNotLeader)
		if err != nil && !follows {
			return BulkRevocation{}, err
		}
		if bulk, err := a.store.BulkRevocation(ctx, id); err != nil || bulk.Done {
			return bulk, err
		}
		if follows && !retry.Sleep(ctx, followEvery) {
			return BulkRevocation{}, ctx.Err()
		}
	}
}

// BulkRevocation returns a bulk revocation and its progress.
func (a *Authority) BulkRevocation(ctx context.Context, id int64) (BulkRevocation, error) {
	return a.store.BulkRevocation(ctx, id)
}

// BulkRevocations returns a page of bulk revocations; see [BulkCreator].
func (a *Authority) BulkRevocations(ctx context.Context, states []BulkState, after int64, limit int) ([]BulkRevocation, int64, error) {
	return a.store.BulkRevocations(ctx, states, after, limit)
}

// Run applies bulk revocations to their records until ctx ends, one after the other. It also continues those that an
// earlier process or another server started. If several servers share the store, each notifies its responders, and the leader
// changes the records. If a step fails, Run logs the error and retries, with growing delays of at most 15 s. Run returns nil.
func (a *Authority) Run(ctx context.Context) error {
	waits := retry.NewBackOff()
	for ctx.Err() == nil {
		wait := pollEvery
		err := a.applyOpen(ctx)
		switch {
		case err == nil, errors.Is(err, pki.ErrNotLeader):
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

// applyOpen applies all bulk revocations that are not yet done. It first notifies the responders of all of them, so that it has
// done so if it returns [pki.ErrNotLeader]. Only one goroutine does this at a time.
func (a *Authority) applyOpen(ctx context.Context) error {
	select {
	case a.bulk.applying <- struct{}{}:
		defer func() { <-a.bulk.applying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		open, err := a.store.OpenBulk(ctx)
		if err != nil {
			return err
		}
		a.bulk.forgetOthers(open)
		if len(open) == 0 {
			return nil
		}
		for _, bulk := range open {
			if a.bulk.isNotified(bulk.ID) {
				continue
			}
			if _, err := a.notifyBulk(ctx, bulk.ID); err != nil {
				return err
			}
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
	requested := a.clock()
	for {
		started := time.Now()
		changes, bulk, err := a.store.ApplyBulk(ctx, id, bulkStep, a.clock())
		if errors.Is(err, pki.ErrNotLeader) {
			return err
		}
		if err != nil {
			a.crls.RequestAll() // the changes of the step may be durable nevertheless
			return err
		}
		a.observer.Apply(changes...)
		if bulk.Done {
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
