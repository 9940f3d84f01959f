package storetest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

func testPatterns(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"create and list":                        createPattern,
		"bind registers the identity":            bindRegisters,
		"bind takes a registered identity":       bindTakesRegistered,
		"an identity that changed is refused":    bindRefusesChanged,
		"refused registrations bind nothing":     refusedRegistrationBindsNothing,
		"a lost secret is replaced":              lostPatternIsReplaced,
		"two devices race one token":             devicesRaceOneToken,
		"two tokens race one identity":           tokensRaceOneIdentity,
		"an unbound token guards no certificate": unboundTokenGuardsNothing,
		"a token for one key":                    tokenForOneKey,
	})
}

// newPattern returns a token for a pattern, which is not recorded yet.
func (w *world) newPattern(t rapid.TB, by pki.Actor) ra.Token {
	t.Helper()
	b := w.unique()
	id, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	return ra.Token{
		ID: id, Profile: "device", Pattern: "device/[0-9a-f]{16}", Kind: pki.Device, Labels: map[string]string{"batch": "7"},
		ExpiresAt: w.now.Add(time.Hour), CreatedBy: by, CreatedAt: w.now,
	}
}

// matching returns a new identity, as a token with a pattern registers it.
func (w *world) matching(t rapid.TB, token ra.Token) ra.Identity {
	t.Helper()
	id := w.newIdentity(t)
	id.Kind, id.Profile, id.Labels, id.Revision, id.State = token.Kind, token.Profile, token.Labels, 1, pki.Registered
	return id
}

// choose returns the binding of a token to an identity that is not registered.
func (w *world) choose(t rapid.TB, id ra.Identity) ra.Binding {
	t.Helper()
	return ra.Binding{Request: w.requestID(t), Key: w.key(), Identity: id, Register: &ra.Registration{Identity: id}, At: w.now}
}

// enrollmentBy returns the record of the certificate for a token that was bound with b.
func (w *world) enrollmentBy(t rapid.TB, token ra.Token, b ra.Binding) ca.Record {
	t.Helper()
	r := w.enrollment(t, b.Identity)
	r.RequestID, r.KeyHash, r.Guard.Key, r.Guard.Token = b.Request, b.Key, b.Key, token.ID
	return r
}

func createPattern(t *testing.T, w *world) {
	token := w.newPattern(t, operator)
	token.Networks = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}
	token.RequiredKey = w.key()
	w.storeToken(t, token)
	facts := w.lastEntry(t).Facts()
	for name, want := range map[string]string{
		"pattern": token.Pattern, "kind": "device", "label.batch": "7", "networks": "10.2.0.0/16 2001:db8::/32", "required_key": token.RequiredKey.String(),
	} {
		mustEqual(t, "the fact "+name, facts[name], want)
	}
	other := w.createToken(t, w.register(t).ID) // stale
	w.reopen(t)
	mustEqual(t, "the token", w.readToken(t, token.ID), token)
	list := func(f ra.TokenFilter) []ra.ListedToken {
		all, _, err := w.RA.Tokens(t.Context(), f, w.now, ra.TokenPosition{}, 10)
		must(t, err)
		return all
	}
	if all := list(ra.TokenFilter{States: []ra.TokenState{ra.TokenOpen}}); len(all) != 1 || all[0].ID != token.ID {
		t.Errorf("the list of open tokens is %+v", all)
	}
	if all := list(ra.TokenFilter{Identity: other.Identity}); len(all) != 1 || all[0].ID != other.ID {
		t.Errorf("the tokens of another identity are %+v", all)
	}
	b := w.choose(t, w.matching(t, token))
	b.Key = token.RequiredKey
	bound, err := w.RA.BindToken(t.Context(), token.ID, b)
	must(t, err)
	if all := list(ra.TokenFilter{Identity: b.Identity.ID}); len(all) != 1 || all[0].State != ra.TokenOpen {
		t.Errorf("the tokens of the identity are %+v", all)
	} else {
		mustEqual(t, "the listed token", all[0].Token, bound)
	}
	w.mustReplay(t)
}

func bindRegisters(t *testing.T, w *world) {
	ctx := context.Background()
	token := w.newPattern(t, operator)
	w.storeToken(t, token)
	b := w.choose(t, w.matching(t, token))
	b.Register.Rule = "tokens"
	bound, err := w.RA.BindToken(ctx, token.ID, b)
	must(t, err)
	want := token
	want.Identity, want.IdentityRevision, want.Request, want.Key = b.Identity.ID, 1, b.Request, b.Key
	mustEqual(t, "the bound token", bound, want)
	id := w.readIdentity(t, b.Identity.ID)
	if id.State != pki.Registered || id.Revision != 1 || id.Rule != "tokens" || !id.SameAttributes(b.Identity) {
		t.Errorf("the identity is %+v", id)
	}
	all := w.entries(t)
	registered, last := all[len(all)-2], all[len(all)-1]
	if registered.Action != translog.IdentityRegistered || registered.Actor != pki.ActorToken(token.ID) || registered.Identity != id.ID {
		t.Errorf("log entry %+v", registered)
	}
	if last.Action != translog.TokenBound || last.Identity != id.ID {
		t.Errorf("log entry %+v", last)
	}
	w.reopen(t)
	again := w.choose(t, w.matching(t, token)) // another identity
	have, err := w.RA.BindToken(ctx, token.ID, again)
	must(t, err)
	mustEqual(t, "the result of a later binding", have, want)
	_, err = w.RA.Identity(ctx, again.Identity.ID)
	mustNotFind(t, err)
	w.issue(t, w.enrollmentBy(t, token, b))
	if have := w.readToken(t, token.ID); !have.Spent {
		t.Errorf("the token is %+v", have)
	}
	w.mustReplay(t)
}

func bindTakesRegistered(t *testing.T, w *world) {
	token := w.newPattern(t, operator)
	w.storeToken(t, token)
	id := w.mustRegister(t, ra.Registration{Identity: w.matching(t, token)})
	id.Labels = map[string]string{"batch": "8"}
	id, err := w.RA.UpdateIdentity(t.Context(), id, operator, w.now)
	must(t, err)
	b := ra.Binding{Request: w.requestID(t), Key: w.key(), Identity: id, At: w.now}
	bound, err := w.RA.BindToken(t.Context(), token.ID, b)
	must(t, err)
	if bound.Identity != id.ID || bound.IdentityRevision != 2 {
		t.Errorf("the bound token is %+v", bound)
	}
	w.mustReplay(t)
	w.issue(t, w.enrollmentBy(t, token, b))
	w.mustReplay(t)
}

func bindRefusesChanged(t *testing.T, w *world) {
	token := w.newPattern(t, operator)
	w.storeToken(t, token)
	exists := w.choose(t, w.mustRegister(t, ra.Registration{Identity: w.matching(t, token)}))
	missing := w.choose(t, w.matching(t, token))
	missing.Register = nil
	old := exists
	old.Register, old.Identity.Revision = nil, exists.Identity.Revision+1
	for what, b := range map[string]ra.Binding{"registered meanwhile": exists, "not registered": missing, "another revision": old} {
		logged := len(w.entries(t))
		_, err := w.RA.BindToken(t.Context(), token.ID, b)
		if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != pki.RuleIdentityStale {
			t.Errorf("%s: %v", what, err)
		}
		if n := len(w.entries(t)); n != logged {
			t.Errorf("%s: the refusal wrote %d log entries", what, n-logged)
		}
	}
	mustEqual(t, "the token", w.readToken(t, token.ID), token)
}

func refusedRegistrationBindsNothing(t *testing.T, w *world) {
	token := w.newPattern(t, operator)
	w.storeToken(t, token)
	w.mustRegister(t, w.registrationBy(t, "tokens", 0))
	b := w.choose(t, w.matching(t, token))
	b.Register.Rule, b.Register.Total = "tokens", 1
	_, err := w.RA.BindToken(t.Context(), token.ID, b)
	mustRefuse(t, err, pki.RulePolicyLimit)
	tied := w.newIdentity(t)
	tied.Subject = w.subject()
	w.mustRegister(t, ra.Registration{Identity: tied})
	b = w.choose(t, w.matching(t, token))
	b.Register.Subject = tied.Subject
	_, err = w.RA.BindToken(t.Context(), token.ID, b)
	mustRefuse(t, err, pki.RuleEvidenceConflict)
	_, err = w.RA.Identity(t.Context(), b.Identity.ID)
	mustNotFind(t, err)
	mustEqual(t, "the token", w.readToken(t, token.ID), token)
}

func lostPatternIsReplaced(t *testing.T, w *world) {
	by := callerOf(w.enrollOperator(t, pki.RoleRegistrar)).WithRequest(w.newRequest(t, "create"))
	first, next := w.newPattern(t, by), w.newPattern(t, by)
	w.storeToken(t, first)
	w.now = w.now.Add(time.Minute)
	made, err := w.RA.CreateToken(t.Context(), next)
	must(t, err)
	if !made.ExpiresAt.Equal(first.ExpiresAt) || made.ID != next.ID {
		t.Errorf("the token is %+v", made)
	}
	_, err = w.RA.BindToken(t.Context(), first.ID, w.choose(t, w.matching(t, first)))
	mustRefuse(t, err, pki.RuleTokenRevoked)
	_, err = w.RA.BindToken(t.Context(), next.ID, w.choose(t, w.matching(t, next)))
	must(t, err)
	_, err = w.RA.CreateToken(t.Context(), w.newPattern(t, by))
	mustRefuse(t, err, pki.RuleRequestIDReused)
}

func devicesRaceOneToken(t *testing.T, w *world) {
	token := w.newPattern(t, operator)
	w.storeToken(t, token)
	const devices = 8
	bindings, results, errs := make([]ra.Binding, devices), make([]ra.Token, devices), make([]error, devices)
	var run []func()
	for i := range bindings {
		bindings[i] = w.choose(t, w.matching(t, token))
		run = append(run, func() { results[i], errs[i] = w.RA.BindToken(context.Background(), token.ID, bindings[i]) })
	}
	together(run...)
	registered := 0
	for i, b := range bindings {
		must(t, errs[i])
		won := results[0].Identity == b.Identity.ID
		_, err := w.RA.Identity(t.Context(), b.Identity.ID)
		if won != (err == nil) {
			t.Errorf("device %d, with the token bound to it: %v, is registered: %v", i, won, err)
		}
		if err == nil {
			registered++
		}
		if results[i].Identity != results[0].Identity || results[i].Request != results[0].Request {
			t.Errorf("device %d got the token of %s, device 0 that of %s", i, results[i].Identity, results[0].Identity)
		}
	}
	if registered != 1 {
		t.Errorf("%d identities are registered", registered)
	}
	w.mustReplay(t)
}

func tokensRaceOneIdentity(t *testing.T, w *world) {
	a, b := w.newPattern(t, operator), w.newPattern(t, operator)
	w.storeToken(t, a)
	w.storeToken(t, b)
	id := w.matching(t, a)
	bindings := []ra.Binding{w.choose(t, id), w.choose(t, id)}
	var errs [2]error
	together(
		func() { _, errs[0] = w.RA.BindToken(context.Background(), a.ID, bindings[0]) },
		func() { _, errs[1] = w.RA.BindToken(context.Background(), b.ID, bindings[1]) },
	)
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Fatalf("binding two tokens to a new identity returned %v", errs)
	}
	loser, other := 0, a
	if errs[0] == nil {
		loser, other = 1, b
	}
	mustRefuse(t, errs[loser], pki.RuleIdentityStale)
	mustEqual(t, "the token of the second device", w.readToken(t, other.ID), other)
	// The second device decides again, on the record. Both tokens are bound then, and one certificate is issued.
	again := bindings[loser]
	again.Register = nil
	_, err := w.RA.BindToken(t.Context(), other.ID, again)
	must(t, err)
	r, s := w.enrollmentBy(t, a, bindings[0]), w.enrollmentBy(t, b, bindings[1])
	refusals := w.commitBatch(t, w.writeIntent(t, r, s), r, s)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleIdentityStale)
}

func unboundTokenGuardsNothing(t *testing.T, w *world) {
	token := w.newPattern(t, operator)
	w.storeToken(t, token)
	id := w.mustRegister(t, ra.Registration{Identity: w.matching(t, token)})
	r := w.enrollment(t, id)
	r.Guard.Token = token.ID
	mustRefuse(t, w.commit(t, r), pki.RuleToken)
}

func tokenForOneKey(t *testing.T, w *world) {
	id := w.register(t)
	token := w.newToken(t, id.ID, operator)
	token.IdentityRevision, token.RequiredKey = id.Revision, w.key()
	w.storeToken(t, token)
	b := ra.Binding{Request: w.requestID(t), Key: w.key(), Identity: id, At: w.now}
	_, err := w.RA.BindToken(t.Context(), token.ID, b)
	mustRefuse(t, err, pki.RuleTokenKey)
	mustRefuse(t, w.commit(t, w.enrollmentBy(t, token, b)), pki.RuleTokenKey)
	b.Key = token.RequiredKey
	_, err = w.RA.BindToken(t.Context(), token.ID, b)
	must(t, err)
	w.issue(t, w.enrollmentBy(t, token, b))
}
