// Package memory implements a store engine in memory, for tests that need neither SQL nor an HSM. A [Store] implements
// ca.Journal, ra.Store, ra.PolicyStore, rotation.Store, translog.Store and responder.Feed, and applies a
// revocation.Change. It uses the rules of store/rules, and passes the tests in store/storetest for these interfaces.
//
// It has no bulk revocations, CRLs, installed CAs or retention. A change of an identity changes all of its certificates
// in one transaction.
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
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Store is a store in memory. The zero value is an empty store. It is safe for concurrent use.
type Store struct {
	mu sync.Mutex
	s  state
}

// state holds all records. A transaction changes a clone, which replaces the state if the transaction succeeds.
type state struct {
	epoch     ca.Epoch
	process   ca.Epoch   // the first epoch of the newest process
	lastBatch ca.BatchID // of the last intent that the newest Write recorded
	pending   []ca.Intent

	identities map[pki.SPIFFEID]identity
	tokens     []ra.Token           // in the order in which they were recorded
	distrusted map[pki.SPIFFEID]int // by creator: the number of tokens when those of the creator were last revoked
	keys       map[pki.KeyHash]key  // certified keys
	certs      []cert               // in the order in which they were recorded
	serials    map[pki.Serial]int   // indexes in certs

	requests map[requestID]rules.RecordedRequest // of operators' RPCs
	nonces   map[nonce]bool                      // that were consumed
	policies []ra.PolicyRevision                 // revision n has the index n-1

	acme      acmeRecords
	rotations []rules.RecordedRotation // rotation n has the index n-1

	sealingKey [32]byte // zero until SealingKey generates it

	logEpoch  translog.Epoch // zero until Epoch generates it
	log       [][]byte
	sequenced []translog.Hash // chain values of the sequenced entries
	removed   uint64          // the index of the last entry that has left
	archived  uint64          // the index up to which the archive has the entries
}

// requestID identifies an RPC of an operator.
type requestID struct {
	caller pki.SPIFFEID
	id     pki.RequestID
}

// nonce is a nonce with its expiry in milliseconds since 1970.
type nonce struct {
	id        [16]byte
	expiresAt int64
}

func nonceOf(n pki.Nonce) nonce { return nonce{n.ID, n.ExpiresAt.UnixMilli()} }

// identity is the record of an identity, with the state that ends its suspension.
type identity struct {
	ra.Identity
	resumes pki.IdentityState
}

// key is the record of a certified public key.
type key struct {
	identity    pki.SPIFFEID
	compromised bool
}

// cert is the record of a certificate. If its renewal revoked it, supersededBy is the index of the renewal in certs, and
// otherwise -1.
type cert struct {
	ra.Certificate
	supersededBy int
	partition    uint16  // of the CRL
	account      acme.ID // that has ordered it; zero for none
}

func (s *state) clone() *state {
	c := *s
	c.pending, c.tokens, c.certs = slices.Clone(s.pending), slices.Clone(s.tokens), slices.Clone(s.certs)
	c.identities, c.distrusted = cloned(s.identities), cloned(s.distrusted)
	c.keys, c.serials, c.requests = cloned(s.keys), cloned(s.serials), cloned(s.requests)
	c.acme = s.acme.clone()
	c.nonces, c.policies, c.rotations = cloned(s.nonces), slices.Clone(s.policies), slices.Clone(s.rotations)
	return &c // the log is append-only, so the clone shares it
}

// cloned returns a copy of m, which is not nil.
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

// writeBy is like write, but first authorizes the actor, who needs a permission.
func (st *Store) writeBy(ctx context.Context, by pki.Actor, need pki.Permission, at time.Time, do func(s *state) error) error {
	return st.write(ctx, func(s *state) error {
		if err := s.authorize(by, need, at); err != nil {
			return err
		}
		return do(s)
	})
}

// writeOnce is like writeBy, for an RPC that may have a request ID. It calls the function
// do for a new request, and the function again for a repeated one.
func (st *Store) writeOnce(
	ctx context.Context, by pki.Actor, need pki.Permission, at time.Time, do func(s *state) (rules.Outcome, error), again func(s *state, have *rules.RecordedRequest) error,
) error {
	return st.writeBy(ctx, by, need, at, func(s *state) error {
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

// read runs do, which must not change the state.
func (st *Store) read(ctx context.Context, do func(s *state) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return do(&st.s)
}

// authorize refuses an actor that is not allowed to make a change at the given time, or lacks the permission.
func (s *state) authorize(by pki.Actor, need pki.Permission, at time.Time) error {
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
	id := s.callerIdentity(caller.Identity)
	err := caller.Authorize(pki.CallerState{NotBefore: c.NotBefore, NotAfter: c.NotAfter, Status: c.Status, Identity: id}, at)
	if err != nil {
		return err
	}
	if refusal := caller.Identity.CheckPermission(id.Roles, need); refusal != nil {
		return refusal
	}
	return nil
}

// callerIdentity returns the state, roles and labels of an identity. They are zero if it is not registered.
func (s *state) callerIdentity(id pki.SPIFFEID) pki.CallerIdentity {
	on := s.identities[id]
	return pki.CallerIdentity{State: on.State, Roles: on.Roles, Labels: on.Labels}
}

// checkLabels refuses a registrar that may not act on an identity with the given labels.
func (s *state) checkLabels(by pki.Actor, labels map[string]string) error {
	id := by.Caller().Identity
	if refusal := id.CheckLabels(s.callerIdentity(id), labels); refusal != nil {
		return refusal
	}
	return nil
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

// keyState returns the state of a key that is to be certified for an identity.
func (s *state) keyState(hash pki.KeyHash, id pki.SPIFFEID) rules.Key {
	k, ok := s.keys[hash]
	return rules.Key{Compromised: k.compromised, Foreign: ok && k.identity != id}
}

// append appends an entry to the log.
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

// stored returns t as the store records it: in whole milliseconds, UTC.
func stored(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()).UTC() }
