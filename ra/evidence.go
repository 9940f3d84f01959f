package ra

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Claim is what evidence proved: which identity the caller may enroll.
type Claim struct {
	Identity pki.SPIFFEID
	// Token is set where the evidence is a one-time token; the certificate's guard spends it.
	Token pki.TokenID
	// Replace allows enrolling an identity that is enrolled already.
	Replace bool
	// Actor is who the log says it was.
	Actor pki.Actor
}

// Binding is the one request that single-use evidence serves.
type Binding struct {
	Request pki.RequestID
	Key     pki.KeyHash
	// Identity is the record of the claimed identity, as the decision about the request rests on it.
	Identity Identity
	At       time.Time
}

// Authenticator turns one kind of evidence into a Claim. Methods are safe for concurrent use. They return a *pki.Refusal
// for evidence that proves nothing.
type Authenticator interface {
	// Identify returns whom the evidence speaks for. It changes nothing. A Claim beside a refusal names the identity that
	// the evidence would have spoken for, for the log.
	Identify(ctx context.Context, evidence []byte, at time.Time) (Claim, error)
	// Bind refuses evidence that was made for another state of the identity, and ties single-use evidence to one request,
	// durably, before anything is signed for it. Evidence that is tied to another request already is refused.
	Bind(ctx context.Context, evidence []byte, b Binding) error
}

// Challenger is an Authenticator whose evidence answers a challenge. One that does not implement it needs none.
type Challenger interface {
	// Challenge returns a sealed challenge for one request: it holds all that Identify must know to check the answer, so
	// that any server can. It changes nothing.
	Challenge(ctx context.Context, c ChallengeRequest, at time.Time) ([]byte, error)
}

// ChallengeRequest asks for a challenge.
type ChallengeRequest struct {
	Kind    pki.EvidenceKind
	Request pki.RequestID // of the Enroll call that follows
	Key     pki.KeyHash   // to be certified
	Public  []byte        // the public part of the evidence, as the kind's authenticator reads it
}

// maxEvidence bounds the pieces of evidence of one request.
const maxEvidence = 2

// Challenge returns a sealed challenge for one request, and refuses kinds of evidence that need none.
func (r *Registrar) Challenge(ctx context.Context, c ChallengeRequest) ([]byte, error) {
	a, err := r.authenticator(c.Kind)
	if err != nil {
		return nil, err
	}
	challenger, ok := a.(Challenger)
	if !ok {
		return nil, pki.Refuse(pki.RuleChallenge, "enroll with the evidence alone", "evidence of the kind %s answers no challenge", c.Kind)
	}
	return challenger.Challenge(ctx, c, r.clock())
}

func (r *Registrar) authenticator(kind pki.EvidenceKind) (Authenticator, error) {
	a, ok := r.authenticators[kind]
	if !ok {
		return nil, pki.Refuse(pki.RuleEvidenceKind, "enroll with evidence of the kind "+r.acceptedEvidence(), "evidence of the kind %s is not accepted here", kind)
	}
	return a, nil
}

// acceptedEvidence returns the names of the kinds of evidence that are accepted.
func (r *Registrar) acceptedEvidence() string {
	var names []string
	for _, kind := range slices.Sorted(maps.Keys(r.authenticators)) {
		names = append(names, kind.String())
	}
	return strings.Join(names, " or ")
}

// identify returns the claim that all pieces of evidence make together. They must be of different kinds and prove the same
// identity. A Claim beside a refusal is as for Authenticator.Identify.
func (r *Registrar) identify(ctx context.Context, evidence []pki.Evidence) (Claim, error) {
	if len(evidence) == 0 || len(evidence) > maxEvidence {
		return Claim{}, pki.Refuse(pki.RuleRequest, "send one piece of evidence, or two of different kinds", "the request has %d pieces of evidence", len(evidence))
	}
	var all Claim
	seen := map[pki.EvidenceKind]bool{}
	for _, e := range evidence {
		if seen[e.Kind] {
			return all, pki.Refuse(pki.RuleRequest, "send one of each kind", "the request has two pieces of evidence of the kind %s", e.Kind)
		}
		seen[e.Kind] = true
		a, err := r.authenticator(e.Kind)
		if err != nil {
			return all, err
		}
		c, err := a.Identify(ctx, e.Value, r.clock())
		if all.Identity.IsZero() {
			all = c
		}
		if err != nil {
			return all, err
		}
		if c.Identity != all.Identity {
			return all, pki.Refuse(pki.RuleEvidenceMismatch, "send evidence of one identity", "the pieces of evidence prove different identities")
		}
		all = all.with(c)
	}
	return all, nil
}

// with returns the claim that two claims for the same identity make together.
func (c Claim) with(other Claim) Claim {
	if c.Token.IsZero() {
		c.Token = other.Token
	}
	c.Replace = c.Replace || other.Replace
	return c
}

func (r *Registrar) bind(ctx context.Context, evidence []pki.Evidence, b Binding) error {
	for _, e := range evidence {
		a, err := r.authenticator(e.Kind)
		if err != nil {
			return err
		}
		if err := a.Bind(ctx, e.Value, b); err != nil {
			return err
		}
	}
	return nil
}
