package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
)

// The faults that a server can be given. Clients notice none of the first three while nothing is killed.
const (
	signBeforeIntent    = "sign before the intent is durable"
	releaseBeforeRecord = "release before the record is durable"
	forgetIntents       = "forget what was left"
	answerBeforeOrder   = "answer an order before it is durable"
	deafResponder       = "tell the responder nothing of orders"
	keepPredecessors    = "let a renewal revoke nothing"
	deafToSets          = "tell the responder nothing of sets"
	forgetSets          = "start without the sets that are open"
	forgetRequests      = "issue again what was asked for before"
	diskTearsCRLs       = "flush no CRL"
	diskLies            = "flush nothing" // of the disk, and not of the server
)

// plant puts a fault into a server's stores.
func plant(name string, s server.Stores) (server.Stores, error) {
	switch name {
	case "", diskLies, diskTearsCRLs:
	case signBeforeIntent:
		s.CA = &hastyJournal{Journal: s.CA}
	case releaseBeforeRecord:
		s.CA = &lateJournal{Journal: s.CA}
	case forgetIntents:
		s.CA = forgetfulJournal{s.CA}
	case keepPredecessors:
		s.CA = keepingJournal{s.CA}
	case deafToSets:
		s.Revocation = quietSets{s.Revocation}
	case forgetSets:
		s.Feed, s.Revocation = &forgetfulFeed{s.Feed, s.Revocation}, quietSets{s.Revocation}
	case forgetRequests:
		s.RA = forgetfulRecords{s.RA}
	case answerBeforeOrder:
		s.Revocation = &lateOrders{Store: s.Revocation}
	case deafResponder:
		s.Revocation = quietOrders{s.Revocation}
	default:
		return s, fmt.Errorf("no such fault: %s", name)
	}
	return s, nil
}

// hastyJournal writes an intent only together with its settlement.
type hastyJournal struct {
	ca.Journal
	mu      sync.Mutex
	waiting []ca.Intent
}

func (j *hastyJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var due []ca.Intent
	j.waiting = slices.DeleteFunc(append(j.waiting, announce...), func(i ca.Intent) bool {
		settled := slices.ContainsFunc(settle, func(s ca.BatchCommit) bool { return s.Intent.Batch == i.Batch })
		if settled {
			due = append(due, i)
		}
		return settled
	})
	if len(due) > 0 {
		if _, err := j.Journal.Write(ctx, e, nil, due); err != nil {
			return nil, err
		}
	}
	if len(settle) == 0 {
		return nil, nil
	}
	return j.Journal.Write(ctx, e, settle, nil)
}

// lateJournal writes settlements with the next call, and says at once that it has.
type lateJournal struct {
	ca.Journal
	mu      sync.Mutex
	waiting []ca.BatchCommit
}

func (j *lateJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	due := j.waiting
	j.waiting = settle
	if _, err := j.Journal.Write(ctx, e, due, announce); err != nil {
		return nil, err
	}
	verdicts := make([]ca.Results, len(settle))
	for i, s := range settle {
		verdicts[i] = make(ca.Results, len(s.Records))
	}
	return verdicts, nil
}

// forgetfulJournal keeps to itself what an earlier process left.
type forgetfulJournal struct{ ca.Journal }

func (j forgetfulJournal) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	epoch, _, err := j.Journal.Begin(ctx)
	return epoch, nil, err
}

// lateOrders carries out revocations with the next call, and says at once that it has.
type lateOrders struct {
	revocation.Store
	mu      sync.Mutex
	waiting []revocation.Change
}

func (r *lateOrders) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, due := range r.waiting {
		if _, err := r.Store.Apply(ctx, due); err != nil {
			return revocation.ChangeResult{}, err
		}
	}
	r.waiting = []revocation.Change{o}
	return revocation.ChangeResult{}, nil
}

// quietOrders carries out orders, and lets the responder find out from the log.
type quietOrders struct{ revocation.Store }

func (r quietOrders) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	_, err := r.Store.Apply(ctx, o)
	return revocation.ChangeResult{}, err
}

// keepingJournal records renewals as if no profile had renewal_revokes.
type keepingJournal struct{ ca.Journal }

func (j keepingJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	settle = slices.Clone(settle)
	for i, s := range settle {
		settle[i].Records = slices.Clone(s.Records)
		for n := range s.Records {
			settle[i].Records[n].Guard.Supersedes = false
		}
	}
	return j.Journal.Write(ctx, e, settle, announce)
}

// forgetfulRecords know of no request that was answered.
type forgetfulRecords struct{ ra.Store }

func (r forgetfulRecords) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	s, err := r.Store.IssuanceState(ctx, q)
	s.Prior = nil
	return s, err
}

// quietSets lets the responder find out of a set's members as their records follow.
type quietSets struct{ revocation.Store }

func (r quietSets) NotifyBulk(ctx context.Context, id int64, _ pki.StatusObserver) (revocation.BulkRevocation, error) {
	return r.Store.NotifyBulk(ctx, id, pki.StatusObservers(nil))
}

// forgetfulFeed has a starting responder take the members of open sets for what their own records say.
type forgetfulFeed struct {
	responder.Feed
	sets revocation.Store
}

func (f *forgetfulFeed) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	open, err := f.sets.OpenBulk(ctx)
	if err != nil {
		return 0, err
	}
	ahead := map[pki.CertRef]bool{}
	for _, s := range open {
		_, err := f.sets.NotifyBulk(ctx, s.ID, pki.StatusObserverFunc(func(changes []pki.StatusChange) {
			for _, c := range changes {
				ahead[c.Ref] = c.Status.Version == 2 // it was good before
			}
		}))
		if err != nil {
			return 0, err
		}
	}
	return f.Feed.Snapshot(ctx, at, func(c pki.StatusChange) error {
		if ahead[c.Ref] {
			c.Status = pki.Status{State: pki.Good, Version: 1}
		}
		return visit(c)
	})
}

// A torture that cannot find a fault proves nothing.
func plantedFaultsAreFound(t *testing.T, g *ground, random *rand.Rand) {
	for _, c := range []struct {
		plant string
		kill  kill
		finds string // or two, with a bar between
	}{
		{signBeforeIntent, kill{after(stepSign), 3}, "neither a certificate nor a revoked record"},
		{releaseBeforeRecord, kill{after(stepAnswer), 150}, "which is not on record"},
		{forgetIntents, kill{after(stepSign), 3}, "neither a certificate nor a revoked record"},
		{answerBeforeOrder, kill{after(stepAnswer), 300}, "is in state"},
		{keepPredecessors, kill{after(stepAnswer), 150}, "was revoked, and is in state"},
		{deafToSets, kill{after(stepFollow), 30}, "right after the order"},
		{forgetSets, kill{after(stepFollow), 2}, "right after the start"},
		{forgetRequests, kill{after(stepAnswer), 150}, "is refused in bulk"},
		{diskTearsCRLs, kill{after(stepPutCRL), 2}, "is torn after the server's end"},
		{diskLies, kill{after(stepAnswer), 150}, "is not on record|the server does not start"},
	} {
		random := child(random)
		t.Run(c.plant, func(t *testing.T) {
			t.Parallel()
			var r *recorder
			if c.plant == diskLies || c.plant == diskTearsCRLs {
				r = &recorder{}
			}
			tt := newTorture(t, g, random, c.plant, r)
			tt.patience = 300 * time.Millisecond // what is forgotten never comes to rest
			for n := range 20 {
				faults := tt.round(t, round{kill: c.kill, wait: time.Second})
				one, other, _ := strings.Cut(c.finds, "|")
				if slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, one) || other != "" && strings.Contains(f, other) }) {
					t.Logf("round %d: %s", n, report(faults))
					return
				}
				if len(faults) > 0 {
					t.Logf("round %d finds something else: %s", n, report(faults))
				}
			}
			t.Error("nothing was found")
		})
	}
}
