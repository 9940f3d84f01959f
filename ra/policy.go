package ra

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Revision is a revision of the policy: the kinds of evidence that it accepts, with their trust sources, and its rules. It
// is not changed after it was made. A request is decided with one revision from its beginning to its end.
type Revision struct {
	// Authenticators maps each accepted kind of evidence to the Authenticator that verifies it.
	Authenticators map[pki.EvidenceKind]Authenticator
	Policy         Policy
}

// Policy decides what verified evidence grants. It is safe for concurrent use.
type Policy interface {
	// Grant returns what the first rule grants that the claims match. It refuses claims that no rule matches (rule
	// policy.no_rule). What it grants depends on its arguments and on the revision of the policy only. If the rule has a
	// rate, Grant counts the request, and refuses it above the rate (rule policy.limit). It changes nothing else.
	Grant(claims Claims, at time.Time) (Grant, error)
}

// Grant is what a rule of the policy grants to the holder of evidence.
type Grant struct {
	// Rule is the name of the rule, and Revision the revision of the policy. The log records both.
	Rule     string
	Revision uint64
	Identity pki.SPIFFEID
	// Subject is the subject of evidence that the identity is tied to. It is zero if the evidence has none.
	Subject pki.EvidenceSubject
	// Register describes the identity to register if it does not exist yet. If Register is nil, the identity must exist.
	// Register.Name is ignored.
	Register *NewIdentity
	// Chosen means that the caller has chosen the identity, within the limits of its evidence. Then Register is set, the
	// identity must not be tied to a subject that the evidence lacks, and Authenticator.Bind registers it.
	Chosen bool
	// Replace allows the caller to enroll the identity again, which revokes its certificates. The evidence must have the
	// subject that the identity is tied to.
	Replace bool
	// Lifetime is the maximum lifetime of the certificate. Zero means that only the profile limits it.
	Lifetime time.Duration
	// Keys are the types of keys that the rule allows. If it is empty, only the profile limits them.
	Keys []pki.KeyType
	// HardwareKey requires evidence that the private key is in hardware, and cannot leave it.
	HardwareKey bool
	// Total is the maximum number of identities that the rule may register, over all revisions of the policy. Zero means
	// that there is no limit.
	Total int
}

// grant returns what the claims grant. Evidence that names an identity under /brevet/ was made by an operator or by Brevet
// itself for this identity. The policy, which cannot grant such an identity, is not asked.
func (r *Registrar) grant(rev Revision, claims Claims) (Grant, error) {
	named, err := claims.named()
	if err != nil {
		return Grant{Identity: named}, err
	}
	if named.Reserved() && len(claims) == 1 {
		return Grant{Identity: named, Replace: claims.replaces()}, nil
	}
	g, err := rev.Policy.Grant(claims, r.clock())
	if err != nil {
		return Grant{Identity: named}, err
	}
	if g.Identity.Reserved() || g.Identity.TrustDomain() != r.trustDomain {
		return g, pki.Refuse(pki.RuleReserved, "change the policy: it grants identities of "+r.trustDomain+" outside of /brevet/", "rule %s grants %s", g.Rule, g.Identity)
	}
	if !named.IsZero() && g.Identity != named {
		return g, pki.Refuse(pki.RuleEvidenceMismatch, "send evidence of one identity", "the pieces of evidence prove different identities")
	}
	if n := claims.registers(); n != nil {
		g.Register, g.Chosen = n, true
	}
	if g.HardwareKey && !slices.ContainsFunc(claims, func(c KindClaim) bool { return c.HardwareKey }) {
		return g, pki.Refuse(pki.RuleHardwareKey, "make the key in the TPM, and send evidence of it", "rule %s requires a key in hardware, which the evidence does not prove", g.Rule)
	}
	return g, nil
}

// stateForEnroll returns the state that a decision about an enrollment is based on. If the identity is not registered, and
// the grant describes it, stateForEnroll registers it, unless decide refuses the request. If the caller has chosen the
// identity, bind registers it.
func (r *Registrar) stateForEnroll(
	ctx context.Context, q IssuanceQuery, g Grant, by pki.Actor, decide func(IssuanceState) (*ca.Draft, error),
	bind func(Identity, *Registration) error,
) (IssuanceState, error) {
	st, err := r.store.IssuanceState(ctx, q)
	refusal, _ := pki.AsRefusal(err)
	if g.Register == nil || refusal == nil || refusal.Rule != pki.RuleIdentity {
		return st, err
	}
	want, err := r.identityOf(g.Identity, *g.Register)
	if err != nil {
		return st, err
	}
	want.Subject, want.Rule = g.Subject, g.Rule
	if _, err := decide(IssuanceState{Identity: want}); err != nil {
		return st, err
	}
	n := Registration{want, g.Total}
	if g.Chosen {
		err = bind(want, &n)
	} else {
		_, err = r.store.CreateIdentity(ctx, n, by)
	}
	if err != nil {
		return st, err
	}
	return r.store.IssuanceState(ctx, q)
}

// check refuses a request that the rule does not allow. It reduces the requested lifetime to the rule's maximum if the
// request names none.
func (g Grant) check(id Identity, c csr, e *EnrollRequest) error {
	if !id.Subject.IsZero() && id.Subject != g.Subject && (g.Chosen || !g.Subject.IsZero()) {
		return id.ID.EvidenceConflict()
	}
	if len(g.Keys) > 0 {
		if t, err := ca.TypeOf(c.key); err != nil || !slices.Contains(g.Keys, t) {
			return pki.Refuse(pki.RuleKeyType, "use one of "+pki.JoinKeyTypes(g.Keys), "rule %s does not allow this key", g.Rule)
		}
	}
	switch {
	case g.Lifetime == 0:
	case e.Lifetime == 0:
		e.Lifetime = g.Lifetime
	case e.Lifetime > g.Lifetime:
		return pki.Refuse(pki.RuleLifetime, "request at most "+g.Lifetime.String(), "rule %s allows %s, and the request asks for %s", g.Rule, g.Lifetime, e.Lifetime)
	}
	return nil
}

// evidence returns what the log records about the evidence of a certificate.
func (c Claims) evidence(g Grant) ca.Evidence {
	e := ca.Evidence{Rule: g.Rule, Policy: g.Revision}
	for _, k := range c {
		e.Pieces = append(e.Pieces, ca.EvidenceDigest{Kind: k.Kind, Digest: k.Digest})
	}
	return e
}
