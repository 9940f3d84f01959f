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
	for _, table := range [][]guardCase{identityGuards, tokenGuards, evidenceGuards, predecessorGuards, keyGuards, requestGuards} {
		for _, c := range table {
			t.Run(c.name, func(t *testing.T) { c.check(t, w) })
		}
	}
	t.Run("a commit consumes guards", func(t *testing.T) { guardConsumes(t, w) })
	t.Run("a refusal guardConsumes nothing", func(t *testing.T) { refusalConsumesNothing(t, w) })
}

func (c guardCase) check(t *testing.T, w *world) {
	r := c.make(t, w)
	refused := w.commit(t, r)
	if c.want == "" {
		must(t, refused)
		return
	}
	mustRefuse(t, refused, c.want)
	if refusal, _ := pki.AsRefusal(refused); refusal.Hint == "" {
		t.Errorf("the refusal %v has no hint", refusal)
	}
	if have := w.readCertificate(t, r.Ref); have.Delivered || have.Status.State != pki.Revoked {
		t.Errorf("the refused certificate is %+v", have)
	}
}

// changeIdentity changes an identity with the reason that the action needs.
func (w *world) changeIdentity(t *testing.T, id pki.SPIFFEID, action revocation.Action, state pki.IdentityState) {
	t.Helper()
	w.apply(t, revocation.Change{Action: action, Identity: id, State: state, Reason: map[revocation.Action]pki.Reason{
		revocation.Revoke: pki.CessationOfOperation, revocation.Hold: pki.CertificateHold}[action]})
}

// enrollmentAfter returns an enrollment that was decided before the identity was changed.
func enrollmentAfter(actions ...revocation.Action) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		r := w.enrollment(t, w.register(t))
		for _, a := range actions {
			w.changeIdentity(t, r.Identity, a, map[revocation.Action]pki.IdentityState{revocation.Hold: pki.Suspended, revocation.Revoke: pki.Retired}[a])
		}
		return r
	}
}

var identityGuards = []guardCase{
	{"identity unchanged", "", enrollmentAfter()},
	{"identity unknown", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		return w.enrollment(t, w.newIdentity(t))
	}},
	{"identity unknown, record without a guard", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		return w.record(t, w.newIdentity(t).ID)
	}},
	{"identity suspended", pki.RuleIdentityState, enrollmentAfter(revocation.Hold)},
	{"identity retired", pki.RuleIdentityState, enrollmentAfter(revocation.Revoke)},
	{"identity suspended and resumed", pki.RuleIdentityStale, enrollmentAfter(revocation.Hold, revocation.Unhold)},
	{"identity enrolled since the decision", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		id := w.register(t)
		w.issue(t, w.enrollment(t, id))
		return w.enrollment(t, id)
	}},
	{"identity updated since the decision", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		id := w.register(t)
		r := w.enrollment(t, id)
		id.Labels = map[string]string{"site": "north"}
		_, err := w.RA.UpdateIdentity(context.Background(), id, operator, w.now)
		must(t, err)
		return r
	}},
	{"identity enrolled again", "", func(t *testing.T, w *world) ca.Record {
		return w.enrollment(t, w.readIdentity(t, w.enrollNew(t).Identity))
	}},
	{"another identity than the guard's", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		r := w.enrollment(t, w.register(t))
		r.Identity = w.register(t).ID
		return r
	}},
	{"enrollment without an identity in the guard", pki.RuleIdentity, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.register(t).ID)
		r.Guard.Enrolls = true
		return r
	}},
}

// withToken returns an enrollment with a token that is bound to it. change edits the token before it is created, and
// after edits the record after the binding.
func withToken(change func(w *world, token *ra.Token), after func(t *testing.T, w *world, r *ca.Record)) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		id := w.register(t)
		r := w.enrollment(t, id)
		b := w.unique()
		tokenID, err := pki.TokenIDFromBytes(b[:])
		must(t, err)
		token := ra.Token{ID: tokenID, Identity: id.ID, IdentityRevision: id.Revision, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: operator, CreatedAt: w.now}
		if change != nil {
			change(w, &token)
		}
		w.storeToken(t, token)
		_, err = w.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: r.RequestID, Key: r.KeyHash, At: w.now})
		must(t, err)
		r.Guard.Token = token.ID
		if after != nil {
			after(t, w, &r)
		}
		return r
	}
}

var tokenGuards = []guardCase{
	{"token valid and bound", "", withToken(nil, nil)},
	{"token expired", pki.RuleToken, withToken(func(w *world, token *ra.Token) { token.ExpiresAt = w.now }, nil)},
	{"token in its last millisecond", "", withToken(func(w *world, token *ra.Token) { token.ExpiresAt = w.now.Add(time.Millisecond) }, nil)},
	{"token unknown", pki.RuleToken, withToken(nil, func(t *testing.T, w *world, r *ca.Record) {
		b := w.unique()
		var err error
		r.Guard.Token, err = pki.TokenIDFromBytes(b[:])
		must(t, err)
	})},
	{"token spent", pki.RuleToken, withToken(nil, func(t *testing.T, w *world, r *ca.Record) {
		w.issue(t, *r)
		next := w.enrollment(t, w.readIdentity(t, r.Identity))
		next.Guard.Token = r.Guard.Token
		*r = next
	})},
	{"token bound to another request", pki.RuleTokenBound, withToken(nil, func(t *testing.T, w *world, r *ca.Record) { r.RequestID = w.requestID(t) })},
	{"token bound to another key", pki.RuleTokenBound, withToken(nil, func(_ *testing.T, w *world, r *ca.Record) {
		r.KeyHash = w.key()
		r.Guard.Key = r.KeyHash
	})},
	{"token of another identity", pki.RuleToken, withToken(nil, func(t *testing.T, w *world, r *ca.Record) {
		id := w.register(t)
		r.Identity, r.Guard.Identity, r.Guard.Revision = id.ID, id.ID, id.Revision
	})},
	{"token not bound", pki.RuleTokenBound, func(t *testing.T, w *world) ca.Record {
		id := w.register(t)
		r := w.enrollment(t, id)
		r.Guard.Token = w.createToken(t, id.ID).ID
		return r
	}},
}

// renewal returns the record of a renewal. before changes the predecessor first.
func renewal(before func(t *testing.T, w *world, predecessor ca.Record)) func(t *testing.T, w *world) ca.Record {
	return func(t *testing.T, w *world) ca.Record {
		predecessor := w.enrollNew(t)
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
	{"predecessor held and unheld", "", renewal(func(t *testing.T, w *world, p ca.Record) {
		w.apply(t, revocation.Change{Action: revocation.Hold, Reason: pki.CertificateHold, Certificate: p.Ref})
		w.apply(t, revocation.Change{Action: revocation.Unhold, Certificate: p.Ref})
	})},
	{"predecessor renewed with another key", pki.RuleRenewalKeyConflict, renewal(func(t *testing.T, w *world, p ca.Record) {
		w.renew(t, p, w.key())
	})},
	{"predecessor renewed with this key before the decision", "", func(t *testing.T, w *world) ca.Record {
		predecessor := w.enrollNew(t)
		first := w.renew(t, predecessor, w.key())
		r := w.record(t, predecessor.Identity)
		r.KeyHash, r.Guard.Key, r.Guard.Predecessor, r.Guard.Renewed = first.KeyHash, first.KeyHash, predecessor.Ref, true
		return r
	}},
	{"predecessor renewed with this key since the decision", pki.RuleIdentityStale, func(t *testing.T, w *world) ca.Record {
		predecessor := w.enrollNew(t)
		first := w.renew(t, predecessor, w.key())
		r := w.record(t, predecessor.Identity)
		r.KeyHash, r.Guard.Key, r.Guard.Predecessor = first.KeyHash, first.KeyHash, predecessor.Ref
		return r
	}},
	{"fewer unexpired certificates than the maximum", "", func(t *testing.T, w *world) ca.Record { return w.renewalWithUnexpired(t, 3) }},
	{"the maximum of unexpired certificates", pki.RuleMaxUnexpired, func(t *testing.T, w *world) ca.Record { return w.renewalWithUnexpired(t, 2) }},
	{"predecessor unknown", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.register(t).ID)
		r.Guard.Predecessor = pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}
		return r
	}},
	{"predecessor of another issuer", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		predecessor := w.enrollNew(t)
		r := w.record(t, predecessor.Identity)
		r.Guard.Predecessor = pki.CertRef{Issuer: issuerB, Serial: predecessor.Ref.Serial}
		return r
	}},
	{"predecessor undelivered", pki.RuleRenewalUnknown, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.register(t).ID)
		r.Guard.Predecessor = w.abandon(t).Ref
		return r
	}},
}

// recordWithKey returns a record of an identity with a key.
func recordWithKey(t *testing.T, w *world, id pki.SPIFFEID, key pki.KeyHash) ca.Record {
	t.Helper()
	r := w.record(t, id)
	r.KeyHash, r.Guard.Key = key, key
	return r
}

// keyGuards are cases that IssuanceState must also report before the commit, as KeyRefusal.
var keyGuards = []guardCase{
	{"key of the same identity", "", func(t *testing.T, w *world) ca.Record {
		r := w.enrollNew(t)
		return recordWithKey(t, w, r.Identity, r.KeyHash)
	}},
	{"key of another identity", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		return recordWithKey(t, w, w.register(t).ID, w.enrollNew(t).KeyHash)
	}},
	{"key of another identity whose certificate is revoked", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		other := w.enrollNew(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: other.Ref})
		return recordWithKey(t, w, w.register(t).ID, other.KeyHash)
	}},
	{"key of an undelivered certificate", "", func(t *testing.T, w *world) ca.Record {
		return recordWithKey(t, w, w.register(t).ID, w.abandon(t).KeyHash)
	}},
	{"key that was compromised", pki.RuleKeyCompromised, func(t *testing.T, w *world) ca.Record {
		own := w.enrollNew(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: own.Ref})
		return recordWithKey(t, w, own.Identity, own.KeyHash)
	}},
	{"key that was compromised after its revocation", pki.RuleKeyCompromised, func(t *testing.T, w *world) ca.Record {
		own := w.enrollNew(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: own.Ref})
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: own.Ref})
		return recordWithKey(t, w, own.Identity, own.KeyHash)
	}},
	{"key of a compromised identity", pki.RuleKeyCompromised, func(t *testing.T, w *world) ca.Record {
		own := w.enrollNew(t)
		w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Identity: own.Identity})
		return recordWithKey(t, w, own.Identity, own.KeyHash)
	}},
	{"key of a CA", pki.RuleKeyReserved, func(t *testing.T, w *world) ca.Record {
		need(t, w.Installations != nil, "installed CAs")
		der, key := newCA(t, "Reserved CA")
		must(t, w.Installations.Install(context.Background(), ca.InstalledCA{Certificate: der, Key: "issuing", At: w.now}, operator))
		return recordWithKey(t, w, w.register(t).ID, key)
	}},
	{"key of the other record in the batch", pki.RuleKeyInUse, func(t *testing.T, w *world) ca.Record {
		first := w.record(t, w.register(t).ID)
		second := recordWithKey(t, w, w.register(t).ID, first.KeyHash)
		refusals := w.commitBatch(t, w.writeIntent(t, first, second), first, second)
		must(t, refusals[0])
		mustRefuse(t, refusals[1], pki.RuleKeyInUse)
		return recordWithKey(t, w, second.Identity, first.KeyHash)
	}},
}

var requestGuards = []guardCase{
	{"request ID used before", pki.RuleRequestIDReused, func(t *testing.T, w *world) ca.Record {
		first := w.enrollNew(t)
		r := w.record(t, first.Identity)
		r.RequestID = first.RequestID
		return r
	}},
	{"request ID used before, identity changed since", pki.RuleRequestIDReused, func(t *testing.T, w *world) ca.Record {
		first := w.enrollNew(t)
		again := recordWithKey(t, w, first.Identity, first.KeyHash)
		again.RequestID, again.Guard = first.RequestID, first.Guard
		return again
	}},
	{"request ID of another identity", "", func(t *testing.T, w *world) ca.Record {
		first := w.enrollNew(t)
		r := w.record(t, w.register(t).ID)
		r.RequestID = first.RequestID
		return r
	}},
	{"no request ID", pki.RuleRequest, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.register(t).ID)
		r.RequestID = pki.RequestID{}
		return r
	}},
	{"another key than the guard's", pki.RuleRequest, func(t *testing.T, w *world) ca.Record {
		r := w.record(t, w.register(t).ID)
		r.Guard.Key = w.key()
		return r
	}},
}

func guardConsumes(t *testing.T, w *world) {
	r := withToken(nil, nil)(t, w)
	w.issue(t, r)
	id := w.readIdentity(t, r.Identity)
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
	if c := w.readCertificate(t, r.Ref); c.Successor != key || c.Status.State != pki.Good {
		t.Errorf("after its renewal the predecessor is %+v", c)
	}
	if id := w.readIdentity(t, r.Identity); id.Revision != 2 {
		t.Errorf("after a renewal the identity has revision %d", id.Revision)
	}
}

func refusalConsumesNothing(t *testing.T, w *world) {
	r := withToken(nil, nil)(t, w)
	r.Guard.Predecessor = pki.CertRef{Issuer: issuerA, Serial: w.serial(t)} // the only guard that fails
	mustRefuse(t, w.commit(t, r), pki.RuleRenewalUnknown)
	if id := w.readIdentity(t, r.Identity); id.State != pki.Registered || id.Revision != 1 {
		t.Errorf("after a refused enrollment the identity is %v in revision %d", id.State, id.Revision)
	}
	token, err := w.RA.Token(context.Background(), r.Guard.Token)
	must(t, err)
	if token.Spent {
		t.Error("a refused enrollment spent the token")
	}
	retry := recordWithKey(t, w, r.Identity, r.KeyHash)
	retry.RequestID, retry.Guard = r.RequestID, r.Guard
	retry.Guard.Predecessor = pki.CertRef{}
	w.issue(t, retry)
}

// renewalWithUnexpired returns a record of an identity with one good, one revoked and one expired certificate. maximum
// is the MaxUnexpired of its guard.
func (w *world) renewalWithUnexpired(t *testing.T, maximum int) ca.Record {
	t.Helper()
	good := w.enrollNew(t)
	expired, revoked := w.record(t, good.Identity), w.record(t, good.Identity)
	expired.NotAfter = w.now
	w.issue(t, expired)
	w.issue(t, revoked)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revoked.Ref})
	r := w.record(t, good.Identity)
	r.Guard.MaxUnexpired = maximum
	return r
}
