package ra

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Claim is the result of verifying one piece of evidence. It is not changed afterwards, and decisions are based on it
// alone, never on the evidence again.
type Claim struct {
	// Identity is the identity that the evidence itself names, as a token does. It is zero if the policy must derive the
	// identity from Subject and Facts.
	Identity pki.SPIFFEID
	// Subject is who or what the evidence identifies: the key in a TPM, the certificate of a manufacturer, the subject of
	// a JWT. It is zero for kinds of evidence that name the identity itself.
	Subject pki.EvidenceSubject
	// Facts are the verified values that the rules of the policy can read, by their names. An Authenticator declares
	// their types with Facts.
	Facts map[string]any
	// Digest is the SHA-256 of the evidence, which the log records.
	Digest [32]byte
	// Nonce is the nonce that the evidence responds to. The guard of the certificate consumes it. It is zero for kinds of
	// evidence without a challenge.
	Nonce pki.Nonce
	// HardwareKey means that the evidence proves that the private key of the request is in hardware, and cannot leave it.
	HardwareKey bool
	// Token identifies the enrollment token, if the evidence is one. The guard of the certificate spends it.
	Token pki.TokenID
	// Used means that the token is bound to another request or key.
	Used bool
	// ExpiresAt is when the token expires. It is zero for other kinds of evidence.
	ExpiresAt time.Time
	// Register describes the identity if the evidence lets the caller choose which one to enroll, as a token with a
	// pattern does. Otherwise it is nil. Authenticator.Bind then registers the identity if it does not exist yet.
	Register *NewIdentity
	// Replace allows the caller to enroll an identity that is already enrolled.
	Replace bool
	// Recovery is set if the evidence is an expired certificate of Identity. The claim allows recovering the identity: the
	// guard of the certificate has this condition.
	Recovery pki.Recovery
	// Recovers is the profile of that certificate.
	Recovers string
	// Order is set if the evidence is an ACME order. Only [Registrar.Order] accepts such evidence.
	Order *Order
	// Actor is recorded in the log as the author of the enrollment.
	Actor pki.Actor
}

// FactType is the type of a verified value.
type FactType uint8

// The types of facts. In Claim.Facts their values are a string, an int64, a bool, a time.Time or a []string.
const (
	FactString FactType = iota + 1
	FactInt
	FactBool
	FactTime
	FactStrings
)

// UniqueFact is a fact that distinguishes two subjects of evidence within a scope.
type UniqueFact struct {
	Name string
	// Within are the facts that form the scope, such as the source of the evidence: two subjects in different scopes can
	// have the same value. The facts in one list are equivalent, so that one of them is enough. If Within is empty, no
	// two subjects have the same value.
	Within [][]string
}

// Presented is a piece of evidence, together with the request that it was sent in.
type Presented struct {
	Evidence []byte
	Request  pki.RequestID
	// Key is the hash of the key in the CSR. The signature of the CSR is not verified yet.
	Key pki.KeyHash
	// Identity is the identity that the request names. It is zero if the request names none.
	Identity pki.SPIFFEID
	// From is the address that the request came from. It is the zero Addr if it is not known.
	From netip.Addr
	At   time.Time
}

// Binding identifies the one request that single-use evidence can be used for.
type Binding struct {
	Request pki.RequestID
	Key     pki.KeyHash
	// Identity is the record of the claimed identity that the decision about the request was based on.
	Identity Identity
	// Register describes the identity if it is not registered yet, and is nil otherwise. It is only set for evidence whose
	// claim has Register. Bind then registers the identity and binds the evidence in one transaction, so that no identity is
	// left over if the evidence is bound to another one.
	Register *Registration
	At       time.Time
}

// Authenticator verifies one kind of evidence. Its methods return a [*pki.Refusal] for evidence that is not valid. They
// are safe for concurrent use.
type Authenticator interface {
	// Facts returns the names and types of the facts in its claims. Each name begins with the name of the kind and a dot, or
	// with that of the kind whose facts they are.
	Facts() map[string]FactType
	// Identify verifies the evidence and returns the claim that it proves. It changes nothing. If it returns a refusal, the
	// Claim names the identity that the evidence was made for, if known, so that the log can attribute the refusal.
	Identify(ctx context.Context, p Presented) (Claim, error)
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
	a, err := r.revision().authenticator(c.Kind)
	if err != nil {
		return nil, err
	}
	challenger, ok := a.(Challenger)
	if !ok {
		return nil, pki.Refuse(pki.RuleChallenge, "enroll with the evidence alone", "evidence of the kind %s answers no challenge", c.Kind)
	}
	return challenger.Challenge(ctx, c, r.clock())
}

func (r Revision) authenticator(kind pki.EvidenceKind) (Authenticator, error) {
	a, ok := r.Authenticators[kind]
	if !ok {
		return nil, pki.Refuse(pki.RuleEvidenceKind, "enroll with evidence of the kind "+r.accepted(), "evidence of the kind %s is not accepted here", kind)
	}
	return a, nil
}

// accepted returns the names of the kinds of evidence that are accepted.
func (r Revision) accepted() string {
	var names []string
	for _, kind := range slices.Sorted(maps.Keys(r.Authenticators)) {
		names = append(names, kind.String())
	}
	return strings.Join(names, " or ")
}

// identify verifies all pieces of evidence of a request, and returns their claims in the same order. The pieces must be
// of different kinds. If it returns a refusal, the last claim is as described for Authenticator.Identify.
func (r Revision) identify(ctx context.Context, e EnrollRequest, key pki.KeyHash, at time.Time) (Claims, error) {
	if len(e.Evidence) == 0 || len(e.Evidence) > maxEvidence {
		return nil, pki.Refuse(pki.RuleRequest, "send one piece of evidence, or two of different kinds", "the request has %d pieces of evidence", len(e.Evidence))
	}
	claims := Claims{}
	for _, evidence := range e.Evidence {
		if slices.ContainsFunc(claims, func(k KindClaim) bool { return k.Kind == evidence.Kind }) {
			return claims, pki.Refuse(pki.RuleRequest, "send one of each kind", "the request has two pieces of evidence of the kind %s", evidence.Kind)
		}
		a, err := r.authenticator(evidence.Kind)
		if err != nil {
			return claims, err
		}
		if evidence.Kind == pki.EvidenceACME {
			return claims, pki.Refuse(pki.RuleEvidenceKind, "finalize the order with ACME", "an ACME order enrolls no identity")
		}
		c, err := a.Identify(ctx, Presented{Evidence: evidence.Value, Request: e.RequestID, Key: key, Identity: e.Identity, From: e.From, At: at})
		claims = append(claims, KindClaim{evidence.Kind, c})
		if err != nil {
			return claims, err
		}
	}
	return claims, nil
}

// KindClaim is a claim, and the kind of evidence that proved it.
type KindClaim struct {
	Kind pki.EvidenceKind
	Claim
}

// Claims are the claims of one request, each of another kind of evidence.
type Claims []KindClaim

// named returns the identity that the evidence itself names, and zero if no piece names one. It refuses pieces that name
// different identities.
func (c Claims) named() (pki.SPIFFEID, error) {
	var id pki.SPIFFEID
	for _, k := range c {
		if !id.IsZero() && !k.Identity.IsZero() && k.Identity != id {
			return id, pki.Refuse(pki.RuleEvidenceMismatch, "send evidence of one identity", "the pieces of evidence prove different identities")
		}
		if id.IsZero() {
			id = k.Identity
		}
	}
	return id, nil
}

// Rule returns the name of the only rule of the policy that may decide about the claims. It is empty if any rule may.
func (c Claims) Rule() string {
	for _, k := range c {
		if k.Order != nil {
			return k.Order.Rule
		}
	}
	return ""
}

// actor returns the actor of the first piece of evidence.
func (c Claims) actor() pki.Actor {
	if len(c) == 0 {
		return pki.Actor{}
	}
	return c[0].Actor
}

// guard returns the conditions that follow from the evidence alone, without the grant.
func (c Claims) guard() pki.Guard {
	g := pki.Guard{Enrolls: true}
	for _, k := range c {
		if !k.Token.IsZero() {
			g.Token = k.Token
		}
		if !k.Nonce.IsZero() {
			g.Nonces = append(g.Nonces, k.Nonce)
		}
		if !k.Recovery.IsZero() {
			g.Recovery = k.Recovery
		}
	}
	return g
}

// registers returns the description of the identity, if a piece of evidence lets the caller choose it, and otherwise nil.
func (c Claims) registers() *NewIdentity {
	for _, k := range c {
		if k.Register != nil {
			return k.Register
		}
	}
	return nil
}

// recovers reports whether a piece of evidence is the key of an expired certificate.
func (c Claims) recovers() bool {
	return slices.ContainsFunc(c, func(k KindClaim) bool { return !k.Recovery.IsZero() })
}

// recovered returns the profile of the expired certificate, if a piece of evidence is one.
func (c Claims) recovered() string {
	for _, k := range c {
		if !k.Recovery.IsZero() {
			return k.Recovers
		}
	}
	return ""
}

// subject returns the subject of the first piece of evidence that has one.
func (c Claims) subject() pki.EvidenceSubject {
	for _, k := range c {
		if !k.Subject.IsZero() {
			return k.Subject
		}
	}
	return pki.EvidenceSubject{}
}

// haveToken reports whether a piece of evidence is an enrollment token.
func (c Claims) haveToken() bool {
	return slices.ContainsFunc(c, func(k KindClaim) bool { return !k.Token.IsZero() })
}

// replaces reports whether a piece of evidence allows enrolling an identity that is already enrolled.
func (c Claims) replaces() bool {
	return slices.ContainsFunc(c, func(k KindClaim) bool { return k.Replace })
}

func (r Revision) bind(ctx context.Context, evidence []pki.Evidence, b Binding) error {
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
