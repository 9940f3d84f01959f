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
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/server"
)

// The faults that a server can be given. Clients notice none of the first three while nothing is killed.
const (
	signBeforeIntent    = "sign before the intent is durable"
	releaseBeforeRecord = "release before the record is durable"
	forgetIntents       = "forget what was left"
	answerBeforeOrder   = "answer an order before it is durable"
	deafResponder       = "tell the responder nothing of orders"
	diskLies            = "flush nothing" // of the disk, and not of the server
)

// plant puts a fault into a server's stores.
func plant(name string, s server.Stores) (server.Stores, error) {
	switch name {
	case "", diskLies:
	case signBeforeIntent:
		s.CA = &hastyJournal{Journal: s.CA}
	case releaseBeforeRecord:
		s.CA = &lateJournal{Journal: s.CA}
	case forgetIntents:
		s.CA = forgetfulJournal{s.CA}
	case answerBeforeOrder:
		s.Revocation = &lateOrders{Records: s.Revocation}
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

func (j *hastyJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.Settlement, announce []ca.Intent) ([]ca.Verdicts, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var due []ca.Intent
	j.waiting = slices.DeleteFunc(append(j.waiting, announce...), func(i ca.Intent) bool {
		settled := slices.ContainsFunc(settle, func(s ca.Settlement) bool { return s.Intent.Batch == i.Batch })
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
	waiting []ca.Settlement
}

func (j *lateJournal) Write(ctx context.Context, e ca.Epoch, settle []ca.Settlement, announce []ca.Intent) ([]ca.Verdicts, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	due := j.waiting
	j.waiting = settle
	if _, err := j.Journal.Write(ctx, e, due, announce); err != nil {
		return nil, err
	}
	verdicts := make([]ca.Verdicts, len(settle))
	for i, s := range settle {
		verdicts[i] = make(ca.Verdicts, len(s.Records))
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
	revocation.Records
	mu      sync.Mutex
	waiting []revocation.Order
}

func (r *lateOrders) Apply(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, due := range r.waiting {
		if _, err := r.Records.Apply(ctx, due); err != nil {
			return nil, err
		}
	}
	r.waiting = []revocation.Order{o}
	return nil, nil
}

// quietOrders carries out orders, and lets the responder find out from the log.
type quietOrders struct{ revocation.Records }

func (r quietOrders) Apply(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	_, err := r.Records.Apply(ctx, o)
	return nil, err
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
		{diskLies, kill{after(stepAnswer), 150}, "is not on record|the server does not start"},
	} {
		t.Run(c.plant, func(t *testing.T) {
			var r *recorder
			if c.plant == diskLies {
				r = &recorder{}
			}
			tt := newTorture(t, g, child(random), c.plant, r)
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
