package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// guardCase creates a record whose guard refuses it at the commit with the rule want, or accepts it if want is empty.
type guardCase struct {
	name string
	want pki.Rule
	make func(t *testing.T, w *world) ca.Record
}

func testGuards(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	for _, table := range [][]guardCase{identityGuards, tokenGuards, predecessorGuards, keyGuards, requestGuards} {
		for _, c := range table {
			t.Run(c.name, func(t *testing.T) { c.check(t, w) })
		}
	}
	t.Run("what a guard consumes", func(t *testing.T) { consumes(t, w) })
	t.Run("a refusal consumes nothing", func(t *testing.T) { refusalConsumesNothing(t, w) })
}

func (c guardCase) check(t *testing.T, w *world) {
	r := c.make(t, w)
	verdict := w.try(t, r)
	if c.want == "" {
		must(t, verdict)
		return
	}
	mustRefuse(t, verdict, c.want)
	if refusal, _ := pki.AsRefusal(verdict); refusal.Hint == "" {
		t.Errorf("the refusal %v has no hint", refusal)
	}
	if have := w.certificate(t, r.Ref); have.Delivered || have.Status.State != pki.Revoked {
		t.Errorf("the refused certificate is %+v", have)
	}
}

func (w *world) order(t *testing.T, id pki.SPIFFEID, action revocation.Action, state pki.IdentityState) {
	t.Helper()
	w.apply(t, revocation.Change{Action: action, Identity: id, State: state, Reason: map[revocation.Action]pki.Reason{
		revocation.Revoke: pki.CessationOfOperation, revocation.Hold: pki.CertificateHold}[action]})
}

// overtaken returns an enrollment that was decided before changes were made.
func overtaken(actions ...revocation.Action) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		r := w.enrollment(t, w.identity(t))
		for _, a := range actions {
			w.order(t, r.Identity, a, map[revocation.Action]pki.IdentityState{revocation.Hold: pki.Suspended, revocation.Revoke: pki.Retired}[a])
		}
		return r
	}
}

var identityGuards = []guardCase{
	{"identity as it was", "", overtaken()},
	{"identity unknown", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		return w.enrollment(t, w.newIdentity(t))
	}},
	{"identity unknown to a record without a guard", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		return w.record(t, w.newIdentity(t).ID)
	}},
	{"identity suspended", pki.RuleIdentityState, overtaken(revocation.Hold)},
	{"identity retired", pki.RuleIdentityState, overtaken(revocation.Revoke)},
	{"identity suspended and resumed", pki.RuleIdentityStale, overtaken(revocation.Hold, revocation.Unhold)},
	{"identity enrolled meanwhile", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		id := w.identity(t)
		w.issue(t, w.enrollment(t, id))
		return w.enrollment(t, id)
	}},
	{"identity updated meanwhile", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		id := w.identity(t)
		r := w.enrollment(t, id)
		id.Labels = map[string]string{"site": "north"}
		_, err := w.RA.UpdateIdentity(context.Background(), id, operator, w.now)
		must(t, err)
		return r
	}},
	{"identity enrolled again", "", func(t *testing.T, w *world) ca.Record {
		return w.enrollment(t, w.stateOf(t, w.issued(t).Identity))
	}},
	{"another identity than the guard's", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		r := w.enrollment(t, w.identity(t))
		r.Identity = w.identity(t).ID
		return r
	}},
	{"enrolling no identity", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.identity(t).ID)
		r.Guard.Enrolls = true
		return r
	}},
}

// withToken returns an enrollment with a token that is bound to it. The functions change the token before and after binding.
func withToken(change func(w *world, token *ra.Token), after func(t *testing.T, w *world, r *ca.Record)) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		id := w.identity(t)
		r := w.enrollment(t, id)
		b := w.draw()
		tokenID, err := pki.TokenIDFromBytes(b[:])
		must(t, err)
		token := ra.Token{ID: tokenID, Identity: id.ID, IdentityRevision: id.Revision, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: operator, CreatedAt: w.now}
		if change != nil {
			change(w, &token)
		}
		w.create(t, token)
		_, err = w.RA.BindToken(context.Background(), token.ID, r.RequestID, r.KeyHash, w.now)
		must(t, err)
		r.Guard.Token = token.ID
		if after != nil {
			after(t, w, &r)
		}
		return r
	}
}

var tokenGuards = []guardCase{
	{"token alive and bound", "", withToken(nil, nil)},
	{"token expired", pki.RuleToken, withToken(func(w *world, token *ra.Token) { token.ExpiresAt = w.now }, nil)},
	{"token in its last millisecond", "", withToken(func(w *world, token *ra.Token) { token.ExpiresAt = w.now.Add(time.Millisecond) }, nil)},
	{"token unknown", pki.RuleToken, withToken(nil, func(t *testing.T, w *world, r *ca.Record) {
		b := w.draw()
		var err error
		r.Guard.Token, err = pki.TokenIDFromBytes(b[:])
		must(t, err)
	})},
	{"token spent", pki.RuleToken, withToken(nil, func(t *testing.T, w *world, r *ca.Record) {
		w.issue(t, *r)
		next := w.enrollment(t, w.stateOf(t, r.Identity))
		next.Guard.Token = r.Guard.Token
		*r = next
	})},
	{"token bound to another request", pki.RuleTokenBound, withToken(nil, func(t *testing.T, w *world, r *ca.Record) { r.RequestID = w.request(t) })},
	{"token bound to another key", pki.RuleTokenBound, withToken(nil, func(_ *testing.T, w *world, r *ca.Record) {
		r.KeyHash = w.key()
		r.Guard.Key = r.KeyHash
	})},
	{"token of another identity", pki.RuleToken, withToken(nil, func(t *testing.T, w *world, r *ca.Record) {
		id := w.identity(t)
		r.Identity, r.Guard.Identity, r.Guard.Revision = id.ID, id.ID, id.Revision
	})},
	{"token bound to nothing", pki.RuleTokenBound, func(t *testing.T, w *world) ca.Record {
		id := w.identity(t)
		r := w.enrollment(t, id)
		r.Guard.Token = w.token(t, id.ID).ID
		return r
	}},
}

// renewal returns the record of a renewal. A function changes the predecessor first.
func renewal(before func(t *testing.T, w *world, predecessor ca.Record)) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		predecessor := w.issued(t)
		if before != nil {
			before(t, w, predecessor)
		}
		r := w.record(t, predecessor.Identity)
		r.Guard.Predecessor = predecessor.Ref
		return r
	}
}

func (w *world) renew(t *testing.T, predecessor ca.Record, key pki.KeyHash) ca.Record {
	t.Helper()
	r := w.record(t, predecessor.Identity)
	r.KeyHash, r.Guard.Key, r.Guard.Predecessor = key, key, predecessor.Ref
	return w.issue(t, r)
}

var predecessorGuards = []guardCase{
	{"predecessor good", "", renewal(nil)},
	{"predecessor on hold", pki.RuleRevoked, renewal(func(t *testing.T, w *world, p ca.Record) {
		w.apply(t, revocation.Change{Action: revocation.Hold, Reason: pki.CertificateHold, Certificate: p.Ref})
	})},
	{"predecessor revoked", pki.RuleRevoked, renewal(func(t *testing.T, w *world, p ca.Record) {
		w.apply(t, revocation.Change{Action: revocation.Revoke, Certificate: p.Ref})
	})},
	{"predecessor held and released", "", renewal(func(t *testing.T, w *world, p ca.Record) {
		w.apply(t, revocation.Change{Action: revocation.Hold, Reason: pki.CertificateHold, Certificate: p.Ref})
		w.apply(t, revocation.Change{Action: revocation.Unhold, Certificate: p.Ref})
	})},
	{"predecessor renewed with another key", pki.RuleRenewalKeyConflict, renewal(func(t *testing.T, w *world, p ca.Record) {
		w.renew(t, p, w.key())
	})},
	{"predecessor renewed with this key", "", func(t *testing.T, w *world) ca.Record {
		predecessor := w.issued(t)
		first := w.renew(t, predecessor, w.key())
		r := w.record(t, predecessor.Identity)
		r.KeyHash, r.Guard.Key, r.Guard.Predecessor, r.Guard.Renewed = first.KeyHash, first.KeyHash, predecessor.Ref, true
		return r
	}},
	{"predecessor renewed with this key meanwhile", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		predecessor := w.issued(t)
		first := w.renew(t, predecessor, w.key())
		r := w.record(t, predecessor.Identity)
		r.KeyHash, r.Guard.Key, r.Guard.Predecessor = first.KeyHash, first.KeyHash, predecessor.Ref
		return r
	}},
	{"fewer unexpired certificates than there may be", "", func(t *testing.T, w *world) ca.Record { return w.amongUnexpired(t, 3) }},
	{"as many unexpired certificates as there may be", pki.RuleMaxUnexpired, func(t *testing.T, w *world) ca.Record { return w.amongUnexpired(t, 2) }},
	{"predecessor unknown", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.identity(t).ID)
		r.Guard.Predecessor = pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}
		return r
	}},
	{"predecessor of another issuer", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		predecessor := w.issued(t)
		r := w.record(t, predecessor.Identity)
		r.Guard.Predecessor = pki.CertRef{Issuer: issuerB, Serial: predecessor.Ref.Serial}
		return r
	}},
	{"predecessor never released", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.identity(t).ID)
		r.Guard.Predecessor = w.abandon(t).Ref
		return r
	}},
}

// ofKey returns a record for an identity and a key.
func ofKey(t *testing.T, w *world, id pki.SPIFFEID, key pki.KeyHash) ca.Record {
	t.Helper()
	r := w.record(t, id)
	r.KeyHash, r.Guard.Key = key, key
	return r
}

// keyGuards are cases that IssuanceState must also report before the commit, as KeyRefusal.
var keyGuards = []guardCase{
	{"key of its own", "", func(t *testing.T, w *world) ca.Record {
		r := w.issued(t)
		return ofKey(t, w, r.Identity, r.KeyHash)
	}},
	{"key of another identity", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		return ofKey(t, w, w.identity(t).ID, w.issued(t).KeyHash)
	}},
	{"key of another identity whose certificate is revoked", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		other := w.issued(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: other.Ref})
		return ofKey(t, w, w.identity(t).ID, other.KeyHash)
	}},
	{"key of a certificate that was never released", "", func(t *testing.T, w *world) ca.Record {
		return ofKey(t, w, w.identity(t).ID, w.abandon(t).KeyHash)
	}},
	{"key that was compromised", pki.RuleKeyCompromised, func(t *testing.T, w *world) ca.Record {
		own := w.issued(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: own.Ref})
		return ofKey(t, w, own.Identity, own.KeyHash)
	}},
	{"key that was compromised later than revoked", pki.RuleKeyCompromised, func(t *testing.T, w *world) ca.Record {
		own := w.issued(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: own.Ref})
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: own.Ref})
		return ofKey(t, w, own.Identity, own.KeyHash)
	}},
	{"key of an identity that was compromised", pki.RuleKeyCompromised, func(t *testing.T, w *world) ca.Record {
		own := w.issued(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Identity: own.Identity})
		return ofKey(t, w, own.Identity, own.KeyHash)
	}},
	{"key of a CA", pki.RuleKeyReserved, func(t *testing.T, w *world) ca.Record {
		need(t, w.Installations != nil, "installed CAs")
		der, key := authority(t, "Reserved CA")
		must(t, w.Installations.Install(context.Background(), ca.InstalledCA{Certificate: der, Key: "issuing", At: w.now}, operator))
		return ofKey(t, w, w.identity(t).ID, key)
	}},
	{"key of the other record in the batch", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		first := w.record(t, w.identity(t).ID)
		second := ofKey(t, w, w.identity(t).ID, first.KeyHash)
		verdicts := w.commitBatch(t, w.writeIntent(t, first, second), first, second)
		must(t, verdicts[0])
		mustRefuse(t, verdicts[1], pki.RuleKeyInUse)
		return ofKey(t, w, second.Identity, first.KeyHash)
	}},
}

var requestGuards = []guardCase{
	{"request ID answered before", pki.RuleRequestIDReused, func(t *testing.T, w *world) ca.Record {
		first := w.issued(t)
		r := w.record(t, first.Identity)
		r.RequestID = first.RequestID
		return r
	}},
	{"request ID answered before, of an identity that has changed since", pki.RuleRequestIDReused, func(t *testing.T, w *world) ca.Record {
		first := w.issued(t)
		again := ofKey(t, w, first.Identity, first.KeyHash)
		again.RequestID, again.Guard = first.RequestID, first.Guard
		return again
	}},
	{"request ID of another identity", "", func(t *testing.T, w *world) ca.Record {
		first := w.issued(t)
		r := w.record(t, w.identity(t).ID)
		r.RequestID = first.RequestID
		return r
	}},
	{"no request ID", pki.RuleRequest, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.identity(t).ID)
		r.RequestID = pki.RequestID{}
		return r
	}},
	{"another key than the guard's", pki.RuleRequest, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.identity(t).ID)
		r.Guard.Key = w.key()
		return r
	}},
}

func consumes(t *testing.T, w *world) {
	r := withToken(nil, nil)(t, w)
	w.issue(t, r)
	id := w.stateOf(t, r.Identity)
	if id.State != pki.Enrolled || id.Revision != 2 {
		t.Errorf("after its enrollment the identity is %v in revision %d", id.State, id.Revision)
	}
	token, err := w.RA.Token(context.Background(), r.Guard.Token)
	must(t, err)
	if !token.Spent {
		t.Error("the token is not spent")
	}
	key := w.key()
	w.renew(t, r, key)
	if c := w.certificate(t, r.Ref); c.Successor != key || c.Status.State != pki.Good {
		t.Errorf("after its renewal the predecessor is %+v", c)
	}
	if id := w.stateOf(t, r.Identity); id.Revision != 2 {
		t.Errorf("a renewal moved the identity to revision %d", id.Revision)
	}
}

func refusalConsumesNothing(t *testing.T, w *world) {
	r := withToken(nil, nil)(t, w)
	r.Guard.Predecessor = pki.CertRef{Issuer: issuerA, Serial: w.serial(t)} // the only guard that fails
	mustRefuse(t, w.try(t, r), pki.RuleRenewalUnknown)
	if id := w.stateOf(t, r.Identity); id.State != pki.Registered || id.Revision != 1 {
		t.Errorf("after a refused enrollment the identity is %v in revision %d", id.State, id.Revision)
	}
	token, err := w.RA.Token(context.Background(), r.Guard.Token)
	must(t, err)
	if token.Spent {
		t.Error("a refused enrollment spent the token")
	}
	retry := ofKey(t, w, r.Identity, r.KeyHash)
	retry.RequestID, retry.Guard = r.RequestID, r.Guard
	retry.Guard.Predecessor = pki.CertRef{}
	w.issue(t, retry)
}

// amongUnexpired returns a record of an identity with one good, one revoked and one expired certificate. Its guard has the
// given MaxUnexpired.
func (w *world) amongUnexpired(t *testing.T, most int) ca.Record {
	t.Helper()
	good := w.issued(t)
	ended, revoked := w.record(t, good.Identity), w.record(t, good.Identity)
	ended.NotAfter = w.now
	w.issue(t, ended)
	w.issue(t, revoked)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revoked.Ref})
	r := w.record(t, good.Identity)
	r.Guard.MaxUnexpired = most
	return r
}
