package token_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/store/memory"
)

func identity(t *testing.T, path string) pki.SPIFFEID {
	t.Helper()
	id, err := pki.SPIFFEIDIn("fleet.example", path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// newPattern makes a token for sensors.
func (w *world) newPattern(t *testing.T, edits ...func(*ra.NewToken)) (pki.TokenSecret, ra.Token) {
	t.Helper()
	n := ra.NewToken{
		Pattern: "sensor/S[0-9]{6}", Spec: ra.NewIdentity{Kind: pki.Device, Labels: map[string]string{"line": "7"}}, Lifetime: time.Minute,
	}
	for _, edit := range edits {
		edit(&n)
	}
	secret, made, err := w.CreateToken(t.Context(), n, operator)
	if err != nil {
		t.Fatal(err)
	}
	return secret, made
}

// choose returns the binding of a token with a pattern to an identity that is not registered.
func choose(t *testing.T, w *world, path string) ra.Binding {
	t.Helper()
	id := ra.Identity{
		ID: identity(t, path), Kind: pki.Device, Profile: "device", Labels: map[string]string{"line": "7"}, State: pki.Registered, Revision: 1, CreatedAt: w.now,
	}
	return ra.Binding{Request: requestID(t), Key: pki.HashSPKI([]byte("key")), Identity: id, Register: &ra.Registration{Identity: id}, At: w.now}
}

// TestPatternClaims checks what a token with a pattern proves: the identity that the request names, with the attributes
// of the token.
func TestPatternClaims(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newPattern(t)
	authenticator := token.New(w.store)
	p := ra.Presented{Evidence: secret.Bytes(), Request: requestID(t), Key: pki.HashSPKI([]byte("key")), Identity: identity(t, "sensor/S000017"), At: w.now}
	claim, err := authenticator.Identify(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if claim.Identity != p.Identity || claim.Token != made.ID || claim.Replace || claim.Register == nil ||
		claim.Register.Kind != pki.Device || claim.Register.Profile != "device" || claim.Register.Labels["line"] != "7" {
		t.Errorf("the claim is %+v", claim)
	}
	if claim.Facts["token.identity"] != "sensor/S000017" || claim.Facts["token.pattern"] != "sensor/S[0-9]{6}" {
		t.Errorf("the facts are %v", claim.Facts)
	}
	for what, id := range map[string]pki.SPIFFEID{
		"no identity": {}, "another segment": identity(t, "pump/S000017"), "a reserved identity": identity(t, "brevet/operator/alice"),
	} {
		p.Identity = id
		claim, err := authenticator.Identify(t.Context(), p)
		mustRefuse(t, what, err, pki.RuleTokenIdentity)
		if !claim.Identity.IsZero() {
			t.Errorf("%s: the log attributes the refusal to %s", what, claim.Identity)
		}
	}
}

// TestPatternBinding checks that a token with a pattern is bound to one identity, even with the same request and key.
func TestPatternBinding(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newPattern(t)
	authenticator := token.New(w.store)
	first := choose(t, w, "sensor/S000017")
	for what, c := range map[string]struct {
		edit func(*ra.Identity)
		rule pki.Rule
	}{
		"enrolled":        {func(id *ra.Identity) { id.State = pki.Enrolled }, pki.RuleAlreadyEnrolled},
		"another kind":    {func(id *ra.Identity) { id.Kind = pki.Workload }, pki.RuleIdentityExists},
		"another profile": {func(id *ra.Identity) { id.Profile = "server" }, pki.RuleIdentityExists},
		"other labels":    {func(id *ra.Identity) { id.Labels = nil }, pki.RuleIdentityExists},
		"a name":          {func(id *ra.Identity) { id.DNSNames = []string{"s.fleet.example"} }, pki.RuleIdentityExists},
		"an address":      {func(id *ra.Identity) { id.IPAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, pki.RuleIdentityExists},
	} {
		b := first
		c.edit(&b.Identity)
		mustRefuse(t, what, authenticator.Bind(t.Context(), secret.Bytes(), b), c.rule)
	}
	outside := first
	outside.Identity.ID = identity(t, "pump/S000017")
	outside.Register = &ra.Registration{Identity: outside.Identity}
	mustRefuse(t, "an identity that does not match", authenticator.Bind(t.Context(), secret.Bytes(), outside), pki.RuleTokenIdentity)
	if have, err := w.store.Token(t.Context(), made.ID); err != nil || !have.Request.IsZero() {
		t.Fatalf("the refused bindings left %+v, %v", have, err)
	}
	if err := authenticator.Bind(t.Context(), secret.Bytes(), first); err != nil {
		t.Fatal(err)
	}
	second := choose(t, w, "sensor/S000018")
	second.Request, second.Key = first.Request, first.Key
	mustRefuse(t, "another identity", authenticator.Bind(t.Context(), secret.Bytes(), second), pki.RuleTokenBound)
	again := first
	again.Register = nil
	if err := authenticator.Bind(t.Context(), secret.Bytes(), again); err != nil {
		t.Errorf("the binding repeated: %v", err)
	}
	_, err := authenticator.Identify(t.Context(), ra.Presented{Evidence: secret.Bytes(), Identity: second.Identity.ID, At: w.now})
	mustRefuse(t, "another identity, presented", err, pki.RuleTokenBound)
}

// TestNetworksAndKeys checks where and for which key a token can be used.
func TestNetworksAndKeys(t *testing.T) {
	w := newWorld(t)
	key := pki.HashSPKI([]byte("key"))
	secret, made := w.newPattern(t, func(n *ra.NewToken) {
		n.Networks, n.Key = []netip.Prefix{netip.MustParsePrefix("10.2.3.4/16"), netip.MustParsePrefix("2001:db8::/32")}, key
	})
	if made.Networks[0].String() != "10.2.0.0/16" {
		t.Errorf("the network is %s, with the bits of a host", made.Networks[0])
	}
	authenticator := token.New(w.store)
	for _, c := range []struct {
		from string
		key  pki.KeyHash
		rule pki.Rule
	}{
		{"10.2.0.0", key, ""}, {"10.2.255.255", key, ""}, {"2001:db8::1", key, ""},
		{"10.3.0.0", key, pki.RuleTokenNetwork}, {"10.1.255.255", key, pki.RuleTokenNetwork}, {"2001:db9::1", key, pki.RuleTokenNetwork},
		{"::ffff:10.2.0.1", key, pki.RuleTokenNetwork}, // the server unmaps addresses
		{"", key, pki.RuleTokenNetwork},
		{"10.2.0.1", pki.HashSPKI([]byte("other")), pki.RuleTokenKey}, {"10.2.0.1", pki.KeyHash{}, pki.RuleTokenKey},
	} {
		p := ra.Presented{Evidence: secret.Bytes(), Key: c.key, Identity: identity(t, "sensor/S000017"), At: w.now}
		if c.from != "" {
			p.From = netip.MustParseAddr(c.from)
		}
		_, err := authenticator.Identify(t.Context(), p)
		if c.rule == "" && err != nil {
			t.Errorf("from %s: %v", c.from, err)
		} else if c.rule != "" {
			mustRefuse(t, "from "+c.from, err, c.rule)
		}
	}
}

// racedStore calls race before each binding.
type racedStore struct {
	*memory.Store
	race func()
}

func (s racedStore) BindToken(ctx context.Context, id pki.TokenID, b ra.Binding) (ra.Token, error) {
	s.race()
	return s.Store.BindToken(ctx, id, b)
}

// TestPatternBindingRace binds a token to another identity, with the same request and key, after the authenticator has
// read the token. The authenticator must refuse the identity that lost.
func TestPatternBindingRace(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newPattern(t)
	won, lost := choose(t, w, "sensor/S000017"), choose(t, w, "sensor/S000018")
	lost.Request, lost.Key = won.Request, won.Key
	raced := token.New(racedStore{w.store, func() {
		if _, err := w.store.BindToken(t.Context(), made.ID, won); err != nil {
			t.Error(err)
		}
	}})
	mustRefuse(t, "the identity that lost", raced.Bind(t.Context(), secret.Bytes(), lost), pki.RuleTokenBound)
	if _, err := w.store.Identity(t.Context(), lost.Identity.ID); err == nil {
		t.Error("the identity that lost is registered")
	}
}
