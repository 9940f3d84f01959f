package jwt

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// The facts of a token.
const (
	factSource    = "jwt.source"     // the name of the source
	factIssuer    = "jwt.issuer"     // the claim iss
	factSubject   = "jwt.subject"    // the claim sub
	factAudience  = "jwt.audience"   // the claim aud
	factExpiresAt = "jwt.expires_at" // the claim exp
	factIssuedAt  = "jwt.issued_at"  // the claim iat, if the token has it

	factNamespace      = "jwt.kubernetes.namespace"
	factServiceAccount = "jwt.kubernetes.service_account"
	factPod            = "jwt.kubernetes.pod"
	factPodUID         = "jwt.kubernetes.pod_uid"
	factNode           = "jwt.kubernetes.node"
)

var standardFacts = map[string]ra.FactType{
	factSource: ra.FactString, factIssuer: ra.FactString, factSubject: ra.FactString, factAudience: ra.FactStrings,
	factExpiresAt: ra.FactTime, factIssuedAt: ra.FactTime,
}

// Authenticator is an ra.Authenticator for JWTs. It is safe for concurrent use. The zero value has no sources, accepts
// no token, and declares the facts that all sources have.
type Authenticator struct {
	sources map[string]*source     // by issuer
	facts   map[string]ra.FactType // besides standardFacts
}

// New returns an Authenticator for the tokens of sources. It starts nothing: the keys are fetched when Start is
// called, or when the first token arrives. The clock decides when they are fetched again. An Authenticator that was
// used must be closed.
func New(sources []Source, clock func() time.Time, log *slog.Logger) (*Authenticator, error) {
	a := &Authenticator{sources: map[string]*source{}, facts: map[string]ra.FactType{}}
	if len(sources) == 0 {
		return nil, errors.New("there is no source of JWTs: configure one")
	}
	names := map[string]bool{}
	for _, s := range sources {
		c, err := s.compile(clock, log)
		if err != nil {
			return nil, err
		}
		if other := a.sources[s.Issuer]; other != nil || names[s.Name] {
			return nil, fmt.Errorf("source %s has the name or the issuer of another source: each needs its own", s.Name)
		}
		a.sources[s.Issuer], names[s.Name] = c, true
		if err := a.declare(c); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Start begins to fetch the keys of all sources, and does not wait for them. If previous is the Authenticator of the
// sources before a change, Start takes over the keys of the sources that still fetch them from the same place.
func (a *Authenticator) Start(previous *Authenticator) {
	for issuer, s := range a.sources {
		var before *source
		if previous != nil {
			before = previous.sources[issuer]
		}
		s.start(before)
	}
}

// declare adds the facts of a source.
func (a *Authenticator) declare(s *source) error {
	for _, f := range s.facts {
		if t, ok := a.facts[f.Fact]; ok && t != f.Type {
			return fmt.Errorf("source %s has another type for the fact %s than another source: use one type, or two names",
				s.name, f.Fact)
		}
		a.facts[f.Fact] = f.Type
	}
	if _, ok := a.facts[factNamespace]; s.kubernetes && !ok {
		for name := range (workload{}).facts() {
			a.facts[name] = ra.FactString
		}
	}
	return nil
}

// Close ends the goroutines that fetch keys, and waits for them.
func (a *Authenticator) Close() {
	for _, s := range a.sources {
		s.close()
	}
}

// Facts implements ra.Authenticator.
func (a *Authenticator) Facts() map[string]ra.FactType {
	all := maps.Clone(standardFacts)
	maps.Copy(all, a.facts)
	return all
}

// Unique returns the facts that distinguish two subjects: the claim sub, which is unique for one issuer, and for
// Kubernetes the service account, which is unique for one namespace of an issuer. Each source has an issuer of its own.
func (a *Authenticator) Unique() []ra.UniqueFact {
	issuer := []string{factSource, factIssuer}
	unique := []ra.UniqueFact{{Name: factSubject, Within: [][]string{issuer}}}
	if _, ok := a.facts[factServiceAccount]; ok {
		unique = append(unique, ra.UniqueFact{Name: factServiceAccount, Within: [][]string{issuer, {factNamespace}}})
	}
	return unique
}

// SubjectOf returns the subject of the tokens of an issuer (iss) for a subject (sub). It is the SHA-256 of both, each
// after its length in 4 bytes.
func SubjectOf(issuer, subject string) pki.EvidenceSubject {
	var b []byte
	for _, text := range []string{issuer, subject} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(text))) //nolint:gosec // a token has 16 KiB at most
		b = append(b, text...)
	}
	return pki.EvidenceSubject{Kind: pki.EvidenceJWT, Hash: sha256.Sum256(b)}
}

// Identify implements ra.Authenticator.
func (a *Authenticator) Identify(ctx context.Context, p ra.Presented) (ra.Claim, error) {
	t, err := parseToken(p.Evidence)
	if err != nil {
		return ra.Claim{}, err
	}
	s, ok := a.sources[t.claims.issuer]
	if !ok {
		return ra.Claim{}, pki.Refuse(pki.RuleEvidenceUntrusted, "request a token from an issuer that a source names",
			"the token is from an issuer that no source names")
	}
	if err := s.verify(ctx, t); err != nil {
		return ra.Claim{}, err
	}
	claim := newClaim(t, s)
	err = s.complete(ctx, &claim, t, p)
	if err != nil && s.keys == nil { // the signature of the token is not verified
		claim = ra.Claim{}
	}
	return claim, err
}

// newClaim returns what a token with a valid signature proves.
func newClaim(t *token, s *source) ra.Claim {
	c := t.claims
	subject := SubjectOf(c.issuer, c.subject)
	claim := ra.Claim{
		Subject: subject,
		Actor:   pki.ActorEvidence(pki.EvidenceJWT, hex.EncodeToString(subject.Hash[:8])),
		Digest:  sha256.Sum256([]byte(t.raw)),
		Facts: map[string]any{
			factSource: s.name, factIssuer: c.issuer, factSubject: c.subject, factAudience: c.audience, factExpiresAt: c.expires,
		},
	}
	if !c.issuedAt.IsZero() {
		claim.Facts[factIssuedAt] = c.issuedAt
	}
	if c.hasID {
		claim.Nonce = t.nonce()
	}
	return claim
}

// nonce returns the nonce that makes a token usable once. It depends on the header and the payload. It does not depend
// on the signature, because the holder of a token can change an ECDSA signature into another one that verifies.
func (t *token) nonce() pki.Nonce {
	digest := sha256.Sum256([]byte(t.signed))
	return pki.Nonce{ID: [16]byte(digest[:16]), ExpiresAt: t.claims.expires.Add(clockSkew)}
}

// complete checks the claims of a token, and adds the facts that only some sources have.
func (s *source) complete(ctx context.Context, claim *ra.Claim, t *token, p ra.Presented) error {
	if err := t.claims.checkAudience(s.audience); err != nil {
		return err
	}
	if err := t.claims.checkTimes(p.At, s.lifetime); err != nil {
		return err
	}
	for _, f := range s.facts {
		value, err := f.read(t.claims.all)
		if err != nil {
			return err
		}
		if value != nil {
			claim.Facts[f.Fact] = value
		}
	}
	if !s.kubernetes {
		return nil
	}
	w, err := workloadOf(t.claims)
	if err == nil && s.cluster != nil { // the cluster gets only what has the form of its tokens
		w, err = s.cluster.review(ctx, t, s.audience, p)
	}
	if err != nil {
		return err
	}
	for name, value := range w.facts() {
		if value != "" {
			claim.Facts[name] = value
		}
	}
	return nil
}

// Bind implements ra.Authenticator. The nonce of a token binds it, in the transaction that records the certificate.
func (*Authenticator) Bind(context.Context, []byte, ra.Binding) error { return nil }
