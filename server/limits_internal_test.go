package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
)

func TestEveryOperationHasAQueue(t *testing.T) {
	for _, op := range authz.Operations() {
		w, waits := works[op]
		needsNone := op == authz.CheckHealth || op == authz.ListHealth || op == authz.ACMEDirectory || op == authz.ACMERenewalInfo || op == authz.GetRenewalInfo
		if waits == needsNone || (op == authz.WatchHealth) != (w == watches) || op == authz.ReflectServices && w != logs {
			t.Errorf("%s has a queue: %v, %s", op, waits, w)
		}
	}
	for op, w := range works {
		access := authz.AccessOf(op).Callers
		if access == authz.Nobody || sizes(1)[w].Slots == 0 {
			t.Errorf("%s is not served, or the queue %s does not exist", op, w)
		}
		if (w == enrollments || w == compromises || w == watches || w == acmeReports || w == acmeRequests) != (access == authz.Anybody) || w == revocations && access != authz.Operators {
			t.Errorf("%s: any caller can fill the queue %s", op, w)
		}
	}
}

// All admitted certificates fit into the issuing pipeline. If they did not, the pipeline would reject some without
// regard to fairness between sources.
func TestQueuesFitThePipeline(t *testing.T) {
	const pipeline, mostSessions = 1024, 256 // ca.maxInFlight and hsm.MaxSessions
	for sessions := range mostSessions {
		s := sizes(sessions + 1)
		if issuing := s[enrollments].Slots + s[renewals].Slots; issuing > pipeline || s[enrollments].Slots*2 > s[renewals].Slots {
			t.Errorf("with %d sessions, there are slots for %d enrollments and %d renewals", sessions+1, s[enrollments].Slots, s[renewals].Slots)
		}
	}
}

// All keys of an identity together have one share of the slots for log streams. Of other kinds of work, each key has a
// share of its own.
func TestStreamsOfTheLogCountForAllKeys(t *testing.T) {
	id, err := pki.ParseSPIFFEID("spiffe://fleet.example/operator/bob")
	if err != nil {
		t.Fatal(err)
	}
	first, second := admission.Identity(id, pki.HashSPKI([]byte("first"))), admission.Identity(id, pki.HashSPKI([]byte("second")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a call that would wait returns at once
	for op, shared := range map[authz.Operation]bool{authz.ListEntries: true, authz.GetHead: true, authz.ReflectServices: true, authz.ListTokens: false} {
		a := newAdmissions(Config{Limits: DefaultLimits()})
		for range sizes(1)[works[op]].Each {
			if _, err := a.Enter(ctx, op, first, time.Time{}); err != nil {
				t.Fatalf("%s: %v", op, err)
			}
		}
		if _, err := a.Enter(ctx, op, first, time.Time{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: one call too many of a key: %v", op, err)
		}
		if _, err := a.Enter(ctx, op, second, time.Time{}); errors.Is(err, context.Canceled) != shared {
			t.Errorf("%s: a call of another key: %v", op, err)
		}
	}
}

// A server whose statuses become stale shares its store. It must also share its CRLs and nonces.
func TestSharedStoreNeedsItsParts(t *testing.T) {
	all := Stores{Exchange: struct{ crl.Exchange }{}, ACMENonces: struct{ acme.UsedNonces }{}}
	withoutExchange, withoutNonces := all, all
	withoutExchange.Exchange, withoutNonces.ACMENonces = nil, nil
	for _, c := range []struct {
		stores    Stores
		staleness time.Duration
		passes    bool
	}{
		{all, time.Second, true}, {withoutExchange, time.Second, false}, {withoutNonces, time.Second, false}, {Stores{}, 0, true},
	} {
		if err := (Config{MaxStaleness: c.staleness, Stores: c.stores}).checkShared(); (err == nil) != c.passes {
			t.Errorf("%+v with a maximum staleness of %v: %v", c.stores, c.staleness, err)
		}
	}
}
