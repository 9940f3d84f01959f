package ra

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Default and maximum lifetime of an enrollment token.
const (
	DefaultTokenLifetime = time.Hour
	maxTokenLifetime     = 30 * 24 * time.Hour
)

// maxNetworks is the maximum number of networks that a token can be bound to.
const maxNetworks = 16

// NewToken is a request for an enrollment token. Exactly one of Identity and Pattern is set.
type NewToken struct {
	Identity pki.SPIFFEID
	// Pattern is a regular expression for the paths of the identities that the token can enroll. See
	// [pki.ParseIdentityPattern].
	Pattern string
	// Spec describes an identity that matches the pattern: its kind, profile and labels. It is zero without a pattern.
	Spec NewIdentity
	// Lifetime is between one second and 30 days. If it is zero, DefaultTokenLifetime is used.
	Lifetime time.Duration
	// Replace allows the token to enroll an identity that is already enrolled.
	Replace bool
	// Networks and Key are as Networks and RequiredKey in [Token].
	Networks []netip.Prefix
	Key      pki.KeyHash
}

// CreateToken creates a single-use enrollment token and returns its secret, which is not stored.
func (r *Registrar) CreateToken(ctx context.Context, n NewToken, by pki.Actor) (pki.TokenSecret, Token, error) {
	none := pki.TokenSecret{}
	if n.Lifetime == 0 {
		n.Lifetime = DefaultTokenLifetime
	}
	if n.Lifetime < time.Second || n.Lifetime > maxTokenLifetime {
		return none, Token{}, pki.Refuse(pki.RuleLifetime, "choose one second to 30 days", "a token cannot be valid for %s", n.Lifetime)
	}
	now := r.clock().Truncate(time.Millisecond)
	t := Token{ExpiresAt: now.Add(n.Lifetime), Replace: n.Replace, RequiredKey: n.Key, CreatedBy: by, CreatedAt: now}
	var err error
	if t.Networks, err = checkNetworks(n.Networks); err != nil {
		return none, Token{}, err
	}
	if n.Pattern == "" {
		err = r.nameIdentity(ctx, n, &t)
	} else {
		err = r.namePattern(n, &t)
	}
	if err != nil {
		return none, Token{}, err
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process if it cannot read random bytes
	secret, err := pki.TokenSecretFromBytes(random[:])
	if err != nil {
		return none, Token{}, err
	}
	t.ID = secret.ID()
	t, err = r.store.CreateToken(ctx, t)
	return secret, t, err
}

// nameIdentity sets the identity of a token. It refuses an identity that the token could not enroll.
func (r *Registrar) nameIdentity(ctx context.Context, n NewToken, t *Token) error {
	id, err := r.store.Identity(ctx, n.Identity)
	if err != nil {
		return err
	}
	switch {
	case id.State == pki.Suspended:
		return pki.Refuse(pki.RuleIdentityState, "resume it first (brevet identity resume)", "%s is suspended", id.ID)
	case id.State == pki.Retired:
		return pki.Refuse(pki.RuleIdentityState, "register another identity", "%s is retired", id.ID)
	case id.State == pki.Enrolled && !n.Replace:
		return pki.Refuse(pki.RuleAlreadyEnrolled, "use --replace to revoke its certificates when the token is used", "%s is already enrolled", id.ID)
	}
	t.Identity, t.IdentityRevision, t.Profile = id.ID, id.Revision, id.Profile
	return nil
}

// namePattern sets the pattern of a token, and the attributes of the identities that match it.
func (r *Registrar) namePattern(n NewToken, t *Token) error {
	const alone = "create a token for the one identity (brevet token create NAME)"
	if n.Replace {
		return pki.Refuse(pki.RuleRequest, alone, "a token with a pattern replaces no certificates")
	}
	if _, err := pki.ParseIdentityPattern(n.Pattern); err != nil {
		return err
	}
	if n.Spec.Kind != pki.Device && n.Spec.Kind != pki.Workload {
		return pki.Refuse(pki.RuleRequest, "use device or workload", "a pattern is for identities of a kind that %s is not", n.Spec.Kind)
	}
	if len(n.Spec.DNSNames) > 0 || len(n.Spec.IPAddresses) > 0 || !n.Spec.Subject.IsZero() {
		return pki.Refuse(pki.RuleRequest, alone, "the identities of a pattern cannot have the same names or evidence")
	}
	if _, err := checkSpec(r.revision(), &n.Spec); err != nil {
		return err
	}
	t.Pattern, t.Kind, t.Profile, t.Labels = n.Pattern, n.Spec.Kind, n.Spec.Profile, n.Spec.Labels
	return nil
}

// checkNetworks returns networks without the bits of hosts in them.
func checkNetworks(all []netip.Prefix) ([]netip.Prefix, error) {
	if len(all) > maxNetworks {
		return nil, pki.Refuse(pki.RuleRequest, fmt.Sprintf("use %d at most", maxNetworks), "the token has %d networks", len(all))
	}
	var networks []netip.Prefix
	for _, n := range all {
		if !n.IsValid() || n.Addr().Is4In6() {
			return nil, pki.Refuse(pki.RuleRequest, "use networks such as 10.2.0.0/16 or 2001:db8::/32", "%s is not a network", n)
		}
		networks = append(networks, n.Masked())
	}
	return networks, nil
}
