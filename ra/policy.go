package ra

import (
	"context"
	"maps"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Revision is a revision of the policy: the kinds of evidence that it accepts, with their trust sources, its rules, and the
// certificate profiles. It is not changed after it was made. A request is decided with one revision from its beginning to
// its end.
type Revision struct {
	// OrderRules are the names of the rules for ACME orders that form the identity from the name of an order.
	OrderRules []string
	// OrderProfiles are the names of the profiles that ACME orders can choose, by whatever rule.
	OrderProfiles []string
	// Authenticators maps each accepted kind of evidence to the Authenticator that verifies it.
	Authenticators map[pki.EvidenceKind]Authenticator
	Policy         Policy
	Profiles       *ca.Profiles
	// Labels are the labels of EST by their names.
	Labels map[string]Label
}

// Policy decides what verified evidence grants. It is safe for concurrent use.
type Policy interface {
	// Grant returns what the first rule grants that the claims match, of the rules that the label selects. An empty label
	// selects all rules. Grant refuses claims that no rule matches (rule policy.no_rule). What it grants depends on its
	// arguments and on the revision of the policy only. It changes nothing.
	Grant(claims Claims, label string, at time.Time) (Grant, error)
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
	// Lifetime is the maximum lifetime of the identity's certificates, until it enrolls again. Zero means that only the
	// profile limits it.
	Lifetime time.Duration
	// Keys are the types of keys that the rule allows for these certificates. If it is empty, only the profile limits
	// them.
	Keys []pki.KeyType
	// HardwareKey requires evidence that the private keys are in hardware, and cannot leave it.
	HardwareKey bool
	// Profiles are the profiles that an ACME order can choose. The first is the default. They are empty for other evidence.
	Profiles []string
	// Wildcards allows wildcard names in ACME orders.
	Wildcards bool
	// Total is the maximum number of identities that the rule may register, over all revisions of the policy. Zero means
	// that there is no limit.
	Total int
	// Take counts a new certificate for the rate of the rule, and refuses it above the rate (rule policy.limit). If no
	// certificate is issued in the end, the caller calls undo. Take is nil if the rule has no rate.
	Take func() (undo func(), err error)
}

// terms returns what the rule requires of all certificates of the enrollment.
func (g Grant) terms() pki.Terms {
	return pki.Terms{HardwareKey: g.HardwareKey, Keys: g.Keys, MaxLifetime: g.Lifetime}
}

// take counts a new certificate for the rate of the rule, if it has one.
func (g Grant) take() (undo func(), err error) {
	if g.Take == nil {
		return func() {}, nil
	}
	return g.Take()
}

// grant returns what the claims grant. Evidence that names an identity under /brevet/ was made by an operator or by Brevet
// itself for this identity. The policy, which cannot grant such an identity, is not asked.
func (r *Registrar) grant(rev Revision, claims Claims, label string) (Grant, error) {
	named, err := claims.named()
	if err != nil {
		return Grant{Identity: named}, err
	}
	if named.Reserved() && len(claims) == 1 {
		return Grant{Identity: named, Replace: claims.replaces()}, nil
	}
	g, err := rev.Policy.Grant(claims, label, r.clock())
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
	return g, nil
}

// stateForEnroll returns the state that a decision about an enrollment is based on. If the identity is not registered,
// and the grant describes it, the state has the identity to register, and so has the registration. Otherwise the
// registration is nil.
func (r *Registrar) stateForEnroll(
	ctx context.Context, rev Revision, q IssuanceQuery, g Grant,
) (IssuanceState, *Registration, error) {
	st, err := r.store.IssuanceState(ctx, q)
	if err == nil {
		return st, nil, g.checkLabels(st.Identity)
	}
	if refusal, _ := pki.AsRefusal(err); g.Register == nil || refusal == nil || refusal.Rule != pki.RuleIdentity {
		return st, nil, err
	}
	if st.Identity, err = r.identityOf(rev, g.Identity, *g.Register); err != nil {
		return st, nil, err
	}
	st.Identity.Subject, st.Identity.Rule = g.Subject, g.Rule
	return st, &Registration{st.Identity, g.Total}, nil
}

// checkLabels refuses the first enrollment of an identity that an operator has registered with other labels than the
// rule gives it. Otherwise a registrar could register the paths of devices outside its labels, and later act on them.
func (g Grant) checkLabels(id Identity) error {
	if g.Register == nil || g.Chosen || id.Rule != "" || id.State != pki.Registered || maps.Equal(id.Labels, g.Register.Labels) {
		return nil
	}
	return pki.Refuse(pki.RuleIdentityExists, "an operator compares the labels with those of the rule, and corrects them (brevet identity update)",
		"an operator has registered %s with other labels than those of rule %s", id.ID, g.Rule)
}

// evidence returns what the log records about the evidence of a certificate.
func (c Claims) evidence(g Grant) pki.EvidenceRecord {
	e := pki.EvidenceRecord{Rule: g.Rule, Policy: g.Revision}
	for _, k := range c {
		e.Pieces = append(e.Pieces, pki.EvidenceDigest{Kind: k.Kind, Digest: k.Digest})
	}
	return e
}
