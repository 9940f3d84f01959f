package revocation

import (
	"context"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// setStep is how many records a transaction changes, which takes some milliseconds.
	setStep = 128
	// A step is followed by a pause of some times as long as the step took: the store's writer belongs to issuing. What a
	// step takes on a machine with too much to do is waiting, most of it, and no reason to take long.
	setPause   = 4
	leastPause = time.Millisecond
	mostPause  = 10 * time.Millisecond
	// crlEvery is how often new CRLs are asked for while records follow: each is as long as all that is revoked.
	crlEvery = 10 * time.Second
	// maxWait bounds a sleep, so that a machine that slept is noticed.
	maxWait = time.Minute
)

// bulkQueue is what an Authority knows of the sets that are not done.
type bulkQueue struct {
	wanted    chan struct{} // holds one wish to look for them
	following chan struct{} // held by whoever has records follow

	mu   sync.Mutex
	told map[int64]bool // those whose members the responders know of
}

func newSets() bulkQueue {
	return bulkQueue{wanted: make(chan struct{}, 1), following: make(chan struct{}, 1), told: map[int64]bool{}}
}

func (s *bulkQueue) want() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

func (s *bulkQueue) isTold(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told[id]
}

func (s *bulkQueue) setTold(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[id] = true
}

func (s *bulkQueue) forget(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.told, id)
}

// CountBulk counts the certificates that an order would change if it were given now, and changes nothing.
func (a *Authority) CountBulk(ctx context.Context, o BulkRequest) (Affected, error) {
	o, err := a.orderly(o)
	if err != nil {
		return Affected{}, err
	}
	return a.records.CountBulk(ctx, o)
}

// orderly makes an order one to revoke, cuts its times as certificates and statuses have them, and refuses what makes no
// sense.
func (a *Authority) orderly(o BulkRequest) (BulkRequest, error) {
	now := a.now()
	o.Action = Revoke
	if o.At.IsZero() {
		o.At = now
	}
	o.At, o.InvalidSince = o.At.UTC().Truncate(time.Second), o.InvalidSince.UTC().Truncate(time.Second)
	return o, o.check(now)
}

// RevokeBulk gives an order about a set. When it returns without error the order is durable and every responder of this
// process has been told of every member; the members' records, and so the CRLs, follow while Run runs. An error that is
// no Refusal does not say that nothing happened: whoever repeats the order gives another one, which changes what the
// first one has not, and tells the responders of both.
func (a *Authority) RevokeBulk(ctx context.Context, o BulkRequest) (BulkRevocation, error) {
	o, err := a.orderly(o)
	if err != nil {
		return BulkRevocation{}, err
	}
	set, changes, err := a.records.CreateBulk(ctx, o)
	if err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			// The order may have become durable all the same.
			a.sets.want()
			a.crls.RequestAll()
		}
		return BulkRevocation{}, err
	}
	if set.Done {
		a.observer.Apply(changes...)
		a.crls.Request(changes)
		return set, nil
	}
	defer a.sets.want()
	return a.tellSet(context.WithoutCancel(ctx), set.ID) // the order is given, whoever still waits for it
}

// tellSet has the responders know of a set's members.
func (a *Authority) tellSet(ctx context.Context, id int64) (BulkRevocation, error) {
	set, err := a.records.NotifyBulk(ctx, id, a.observer)
	if err == nil {
		a.sets.setTold(id)
	}
	return set, err
}

// completeSet tells the responders of a set's members, and returns when all their records have followed.
func (a *Authority) completeSet(ctx context.Context, id int64) (BulkRevocation, error) {
	defer a.sets.want() // for Run, if this fails
	if _, err := a.tellSet(context.WithoutCancel(ctx), id); err != nil {
		return BulkRevocation{}, err
	}
	for {
		if err := a.followOpen(ctx); err != nil {
			return BulkRevocation{}, err
		}
		if set, err := a.records.BulkRevocation(ctx, id); err != nil || set.Done {
			return set, err
		}
	}
}

// BulkRevocation returns how far a set has come.
func (a *Authority) BulkRevocation(ctx context.Context, id int64) (BulkRevocation, error) {
	return a.records.BulkRevocation(ctx, id)
}

// BulkRevocations returns a page of bulk revocations, as BulkCreator does.
func (a *Authority) BulkRevocations(ctx context.Context, states []BulkState, after int64, limit int) ([]BulkRevocation, int64, error) {
	return a.records.BulkRevocations(ctx, states, after, limit)
}

// Run has the records of bulk revocations follow until ctx is done, one after the other, those included that an earlier run
// has left. A failure is logged and retried after growing waits, up to 15 s. Run returns nil.
func (a *Authority) Run(ctx context.Context) error {
	waits := retry.NewBackOff()
	for ctx.Err() == nil {
		wait := maxWait
		err := a.followOpen(ctx)
		switch {
		case err == nil:
			waits.Reset()
		case ctx.Err() == nil:
			wait = waits.NextBackOff()
			a.log.Error("records of a revocation do not follow, trying again", "wait", wait, "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-a.sets.wanted:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// followOpen has the records of all sets follow that are not done. One goroutine at a time does.
func (a *Authority) followOpen(ctx context.Context) error {
	select {
	case a.sets.following <- struct{}{}:
		defer func() { <-a.sets.following }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		open, err := a.records.OpenBulk(ctx)
		if err != nil || len(open) == 0 {
			return err
		}
		for _, set := range open {
			if err := a.followSet(ctx, set.ID); err != nil {
				return err
			}
		}
	}
}

// followSet takes the steps of one set.
func (a *Authority) followSet(ctx context.Context, id int64) error {
	if !a.sets.isTold(id) {
		if _, err := a.tellSet(ctx, id); err != nil {
			return err
		}
	}
	asked := a.clock()
	for {
		begun := time.Now()
		changes, set, err := a.records.ApplyBulk(ctx, id, setStep, a.clock())
		if err != nil {
			a.crls.RequestAll() // a step may have become durable all the same
			return err
		}
		a.observer.Apply(changes...)
		if set.Done {
			a.sets.forget(id)
			a.crls.RequestAll()
			a.log.Info("the records of an order have followed", "set", id, "action", set.Action.String(), "certificates", set.Total, "reason", set.Reason.String())
			return nil
		}
		if since := a.clock().Sub(asked); since >= crlEvery || since < 0 {
			asked = a.clock()
			a.crls.Request(changes)
		}
		if !retry.Sleep(ctx, min(max(setPause*time.Since(begun), leastPause), mostPause)) {
			return ctx.Err()
		}
	}
}
