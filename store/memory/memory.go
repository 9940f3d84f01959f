// Package memory keeps records in memory, for tests that need neither SQL nor a key in hardware. A [Store] is a
// ca.Journal, an ra.Records, a translog.Records and a responder.Feed, and carries out a revocation.Order. It applies
// the rules of store/rules, and passes the part of store/storetest that these interfaces have.
//
// It has no bulk revocations, CRLs, installed CAs or retention: an order about an identity changes all of its
// certificates in its own transaction, however many there are.
package memory

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Store is an empty store in its zero value. It is safe for concurrent use.
type Store struct {
	mu sync.Mutex
	s  state
}

// state is all records. A transaction works on a clone, which replaces the state if it succeeds.
type state struct {
	epoch   ca.Epoch
	pending []ca.Intent // the oldest first
	settled map[ca.BatchID]bool

	identities map[pki.SPIFFEID]identity
	tokens     []ra.Token           // in the order of their recording
	distrusted map[pki.SPIFFEID]int // how many tokens there were when those of a maker were last revoked
	keys       map[pki.KeyHash]key  // that were certified
	certs      []cert               // in the order of their recording
	serials    map[pki.Serial]int   // places in certs

	requests map[requestID]rules.RecordedRequest // of operators' calls

	logEpoch  translog.Epoch // zero until it is drawn
	log       [][]byte
	sequenced []translog.Hash // of the entries that have their places
}

// requestID names a call of an operator.
type requestID struct {
	caller pki.SPIFFEID
	id     pki.RequestID
}

// identity is an identity with the state that it resumes after a suspension.
type identity struct {
	ra.Identity
	resumes pki.IdentityState
}

// key is the public key of an identity.
type key struct {
	identity    pki.SPIFFEID
	compromised bool
}

// cert is a certificate, and the place of the one whose recording revoked it; -1 for none.
type cert struct {
	ra.Certificate
	supersededBy int
	partition    uint16 // of the CRL
}

func (s *state) clone() *state {
	c := *s
	c.pending, c.tokens, c.certs = slices.Clone(s.pending), slices.Clone(s.tokens), slices.Clone(s.certs)
	c.settled, c.identities, c.distrusted = cloned(s.settled), cloned(s.identities), cloned(s.distrusted)
	c.keys, c.serials, c.requests = cloned(s.keys), cloned(s.serials), cloned(s.requests)
	return &c // the log only grows
}

// cloned returns a map that can be written to.
func cloned[K comparable, V any](m map[K]V) map[K]V {
	c := make(map[K]V, len(m))
	maps.Copy(c, m)
	return c
}

// write runs do in a transaction.
func (st *Store) write(ctx context.Context, do func(s *state) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.s.clone()
	if err := do(s); err != nil {
		return err
	}
	st.s = *s
	return nil
}

// writeBy is write for what an actor causes, whom it authorizes first.
func (st *Store) writeBy(ctx context.Context, by pki.Actor, at time.Time, do func(s *state) error) error {
	return st.write(ctx, func(s *state) error {
		if err := s.authorize(by, at); err != nil {
			return err
		}
		return do(s)
	})
}

// writeOnce is writeBy for a call that may have a request ID. For a repeat, again runs instead of do.
func (st *Store) writeOnce(
	ctx context.Context, by pki.Actor, at time.Time, do func(s *state) (rules.Outcome, error), again func(s *state, have *rules.RecordedRequest) error,
) error {
	return st.writeBy(ctx, by, at, func(s *state) error {
		r, name := by.Request(), requestID{by.Caller().Identity, by.Request().ID}
		have, found := s.requests[name]
		if found && !r.IsZero() {
			if err := have.CheckRepeat(r); err != nil {
				return err
			}
			err := again(s, &have)
			s.requests[name] = have
			return err
		}
		out, err := do(s)
		if err == nil && !r.IsZero() {
			s.requests[name] = rules.RecordedRequest{Content: r.Content, Outcome: out}
		}
		return err
	})
}

// read runs do, which changes nothing.
func (st *Store) read(ctx context.Context, do func(s *state) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return do(&st.s)
}

// authorize refuses an actor that may change nothing at a time.
func (s *state) authorize(by pki.Actor, at time.Time) error {
	if !by.NeedsAuthorization() {
		return nil
	}
	caller := by.Caller()
	if caller.IsZero() {
		return pki.NoCertificate()
	}
	c := s.certificateOf(caller.Identity, caller.Certificate)
	if c == nil {
		return caller.Certificate.NotOnRecord()
	}
	return caller.Authorize(pki.CallerState{
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, Status: c.Status, Identity: s.identities[caller.Identity].State,
	}, at)
}

// certificate returns a certificate, or nil if it is not on record.
func (s *state) certificate(ref pki.CertRef) *cert {
	place, ok := s.serials[ref.Serial]
	if !ok || s.certs[place].Ref != ref {
		return nil
	}
	return &s.certs[place]
}

// certificateOf returns a certificate of an identity, or nil.
func (s *state) certificateOf(id pki.SPIFFEID, ref pki.CertRef) *cert {
	if c := s.certificate(ref); c != nil && c.Delivered && c.Identity == id {
		return c
	}
	return nil
}

// keyState returns what is on record of a key that an identity wants to have certified.
func (s *state) keyState(hash pki.KeyHash, id pki.SPIFFEID) rules.Key {
	k, ok := s.keys[hash]
	return rules.Key{Compromised: k.compromised, Foreign: ok && k.identity != id}
}

// append writes a log entry.
func (s *state) append(e translog.Entry) error {
	parts := []translog.Entry{e}
	if len(e.Changes) > rules.MaxChanges {
		parts = rules.SplitEntry(e)
	}
	for _, part := range parts {
		encoded, err := part.Marshal()
		if err != nil {
			return err
		}
		s.log = append(slices.Clip(s.log), encoded)
	}
	return nil
}

// stored returns a time as a store keeps it: in milliseconds, UTC.
func stored(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()).UTC() }
