package ra

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Claim is the result of verifying evidence. It names the identity that the caller may enroll.
type Claim struct {
	Identity pki.SPIFFEID
	// Token identifies the enrollment token, if the evidence is one. The guard of the certificate spends it.
	Token pki.TokenID
	// Replace allows the caller to enroll an identity that is already enrolled.
	Replace bool
	// Actor is recorded in the log as the author of the enrollment.
	Actor pki.Actor
}

// Binding identifies the one request that single-use evidence can be used for.
type Binding struct {
	Request pki.RequestID
	Key     pki.KeyHash
	// Identity is the record of the claimed identity that the decision about the request was based on.
	Identity Identity
	At       time.Time
}

// Authenticator verifies one kind of evidence. Its methods return a [*pki.Refusal] for evidence that is not valid. They
// are safe for concurrent use.
type Authenticator interface {
	// Identify verifies the evidence and returns the claim that it proves. It changes nothing. If it returns a refusal, the
	// Claim names the identity that the evidence was made for, if known, so that the log can attribute the refusal.
	Identify(ctx context.Context, evidence []byte, at time.Time) (Claim, error)
	// Bind durably binds single-use evidence to one request, before anything is signed for it. It refuses evidence that is
	// bound to another request, and evidence that was made for another revision of the identity.
	Bind(ctx context.Context, evidence []byte, b Binding) error
}

// Challenger is implemented by an Authenticator whose evidence responds to a challenge.
type Challenger interface {
	// Challenge returns a sealed challenge for one request. The challenge contains everything that Identify needs to verify
	// the response, so that any server can do it. Challenge changes nothing.
	Challenge(ctx context.Context, c ChallengeRequest, at time.Time) ([]byte, error)
}

// ChallengeRequest asks for a challenge.
type ChallengeRequest struct {
	Kind    pki.EvidenceKind
	Request pki.RequestID // of the EnrollRequest that will contain the response
	Key     pki.KeyHash   // of the key to certify
	Public  []byte        // the public part of the evidence, in the encoding of its Authenticator
}

// maxEvidence is the maximum number of pieces of evidence in one request.
const maxEvidence = 2

// Challenge returns a sealed challenge for one request. It refuses kinds of evidence that need no challenge.
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

// identify verifies all pieces of evidence and returns their combined claim. The pieces must be of different kinds and
// prove the same identity. If it returns a refusal, the claim is as described for Authenticator.Identify.
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

// with returns the combination of two claims for the same identity.
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
