// Package token authenticates first certificates by one-time enrollment tokens: 256-bit secrets, of which only a hash
// is kept, made for one identity and one profile, and expiring. A token with a pattern is made for any one identity that
// matches it. A token serves one request, one key and one identity: these may retry while the token lives, and
// everything else is refused. It may also serve some networks or one key only. It says no more to the caller than that
// the token does not serve, or was revoked, and nothing about a token whose secret the caller lacks.
package token

import (
	"context"
	"crypto/sha256"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Store is what the authenticator remembers: ra.TokenRecords without the making of tokens.
type Store interface {
	Token(ctx context.Context, id pki.TokenID) (ra.Token, error)
	BindToken(ctx context.Context, id pki.TokenID, b ra.Binding) (ra.Token, error)
}

// Authenticator is an ra.Authenticator for tokens. It is safe for concurrent use.
type Authenticator struct{ store Store }

// New returns an Authenticator over the given records.
func New(records Store) *Authenticator { return &Authenticator{records} }

// The facts of a token.
const (
	factIdentity = "token.identity" // the path of its identity, or of the one in the request if the token has a pattern
	factPattern  = "token.pattern"  // its pattern, empty for none
	factCreator  = "token.creator"  // the actor that created it
)

// Facts implements ra.Authenticator.
func (*Authenticator) Facts() map[string]ra.FactType {
	return map[string]ra.FactType{factIdentity: ra.FactString, factPattern: ra.FactString, factCreator: ra.FactString}
}

// Identify finds the token by the hash of its secret, which is looked up instead of compared: the time it takes says
// nothing about a secret that does not exist.
func (a *Authenticator) Identify(ctx context.Context, p ra.Presented) (ra.Claim, error) {
	t, err := a.find(ctx, p.Evidence)
	if err != nil {
		return ra.Claim{}, err
	}
	claim := ra.Claim{
		Identity: t.Identity, Token: t.ID, ExpiresAt: t.ExpiresAt, Replace: t.Replace, Actor: pki.ActorToken(t.ID), Digest: sha256.Sum256(p.Evidence),
		Used:  !t.Request.IsZero() && t.CheckBound(p.Request, p.Key) != nil,
		Facts: map[string]any{factPattern: t.Pattern, factCreator: t.CreatedBy.String()},
	}
	if !p.At.Before(t.ExpiresAt) {
		return claim, ra.RefuseToken()
	}
	if err := t.CheckRevoked(); err != nil {
		return claim, err
	}
	if err := t.CheckNetwork(p.From); err != nil {
		return claim, err
	}
	if err := t.CheckKey(p.Key); err != nil {
		return claim, err
	}
	if t.Pattern != "" {
		if err := t.CheckIdentity(p.Identity); err != nil {
			return claim, err
		}
		claim.Identity, claim.Register = p.Identity, &ra.NewIdentity{Kind: t.Kind, Profile: t.Profile, Labels: t.Labels}
	}
	claim.Facts[factIdentity] = claim.Identity.Path()
	return claim, nil
}

// Bind ties the token to one request and key, and a token with a pattern to one identity as well. It refuses a token
// whose identity has changed since it was made: by an enrollment, a suspension or an update. A token with a pattern is
// refused for an identity that has enrolled before, or has other attributes than those of the token.
func (a *Authenticator) Bind(ctx context.Context, evidence []byte, b ra.Binding) error {
	t, err := a.find(ctx, evidence)
	if err != nil {
		return err
	}
	if t.Pattern != "" {
		if err := checkChosen(t, b.Identity); err != nil {
			return err
		}
	} else if t.Profile != b.Identity.Profile {
		return pki.Refuse(pki.RuleIdentityStale, "make a new token", "the token was made for profile %s, and %s has %s now",
			t.Profile, b.Identity.ID, b.Identity.Profile)
	}
	if t.Request.IsZero() {
		if t, err = a.store.BindToken(ctx, t.ID, b); err != nil {
			return err
		}
	}
	if err := t.CheckRevoked(); err != nil {
		return err
	}
	if t.Pattern != "" {
		if err := t.CheckIdentity(b.Identity.ID); err != nil { // it may have been bound to another one since Identify
			return err
		}
	}
	if err := t.CheckBound(b.Request, b.Key); err != nil {
		return err
	}
	return t.CheckRevision(b.Identity) // after the binding, which tells a spent token apart
}

// checkChosen refuses an identity that a token with a pattern cannot enroll: because of its path, or of what is on record
// about it.
func checkChosen(t ra.Token, id ra.Identity) error {
	if err := t.CheckIdentity(id.ID); err != nil {
		return err
	}
	if id.State != pki.Registered {
		return pki.Refuse(pki.RuleAlreadyEnrolled, "ask an operator for a token that replaces its certificates (brevet token create NAME --replace)",
			"%s is %s, and the enrollment token is for machines that have not enrolled", id.ID, id.State)
	}
	want := id
	want.Profile, want.Labels, want.DNSNames, want.IPAddresses = t.Profile, t.Labels, nil, nil
	if t.Kind != id.Kind || !want.SameAttributes(id) {
		return pki.Refuse(pki.RuleIdentityExists, "ask an operator for a token for this identity alone (brevet token create NAME)",
			"%s is registered with another kind, profile, labels or names than those of the enrollment token", id.ID)
	}
	return nil
}

func (a *Authenticator) find(ctx context.Context, evidence []byte) (ra.Token, error) {
	secret, err := pki.TokenSecretFromBytes(evidence)
	if err != nil {
		return ra.Token{}, pki.Refuse(pki.RuleToken, "send the 32 bytes of the token's secret", "the enrollment token is not of its form")
	}
	t, err := a.store.Token(ctx, secret.ID())
	if r, ok := pki.AsRefusal(err); ok && r.Rule.Class() == pki.NotFound {
		return ra.Token{}, ra.RefuseToken()
	}
	return t, err
}
