// Package token authenticates first certificates by one-time enrollment tokens: 256-bit secrets, of which only a hash
// is kept, made for one identity and one profile, and expiring. A token serves one request and one key: that pair may
// retry while the token lives, and everything else is refused. It says no more to the caller than that the token does
// not serve, or was revoked; the log says why.
package token

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Store is what the authenticator remembers: ra.TokenRecords without the making of tokens.
type Store interface {
	Token(ctx context.Context, id pki.TokenID) (ra.Token, error)
	BindToken(ctx context.Context, id pki.TokenID, request pki.RequestID, key pki.KeyHash, at time.Time) (ra.Token, error)
}

// Authenticator is an ra.Authenticator for tokens. It is safe for concurrent use.
type Authenticator struct{ store Store }

// New returns an Authenticator over the given records.
func New(records Store) *Authenticator { return &Authenticator{records} }

// The facts of a token.
const (
	factIdentity = "token.identity" // the path of its identity
	factCreator  = "token.creator"  // the actor that created it
)

// Facts implements ra.Authenticator.
func (*Authenticator) Facts() map[string]ra.FactType {
	return map[string]ra.FactType{factIdentity: ra.FactString, factCreator: ra.FactString}
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
		Facts: map[string]any{factIdentity: t.Identity.Path(), factCreator: t.CreatedBy.String()},
	}
	if !p.At.Before(t.ExpiresAt) {
		return claim, ra.RefuseToken()
	}
	return claim, t.CheckRevoked()
}

// Bind ties the token to one request and key. It refuses a token whose identity has changed since it was made: by an
// enrollment, a suspension or an update.
func (a *Authenticator) Bind(ctx context.Context, evidence []byte, b ra.Binding) error {
	t, err := a.find(ctx, evidence)
	if err != nil {
		return err
	}
	if t.Profile != b.Identity.Profile {
		return pki.Refuse(pki.RuleIdentityStale, "make a new token", "the token was made for profile %s, and %s has %s now",
			t.Profile, b.Identity.ID, b.Identity.Profile)
	}
	if t.Request.IsZero() {
		if t, err = a.store.BindToken(ctx, t.ID, b.Request, b.Key, b.At); err != nil {
			return err
		}
	}
	if err := t.CheckRevoked(); err != nil {
		return err
	}
	if err := t.CheckBound(b.Request, b.Key); err != nil {
		return err
	}
	return t.CheckRevision(b.Identity) // after the binding, which tells a spent token apart
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
