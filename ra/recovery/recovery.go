package recovery

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/nonce"
)

const (
	// maxPublicKey is the maximum size of a public key in bytes. One of RSA with 8192 bits has 1062 bytes.
	maxPublicKey = 2 << 10
	// maxSignature is the maximum size of a signature in bytes. One of RSA with 8192 bits has 1024 bytes.
	maxSignature = 2 << 10
	// MaxTimes is the maximum of Config.Times.
	MaxTimes = 1000
)

// The facts of an expired certificate.
const (
	factIdentity  = "recovery.identity"   // the path of its identity
	factProfile   = "recovery.profile"    // its profile
	factExpiredAt = "recovery.expired_at" // its notAfter
)

// Store reads certificates. It is safe for concurrent use.
type Store interface {
	// Certificate returns the record of a certificate, or a refusal of the class NotFound.
	Certificate(ctx context.Context, ref pki.CertRef) (ra.Certificate, error)
}

// Config configures an Authenticator. All fields are required, except for an Authenticator that only declares facts.
type Config struct {
	TrustDomain string
	Store       Store
	Nonces      *nonce.Sealer
	// Grace is how long after its expiry a certificate is accepted.
	Grace time.Duration
	// Times is how often in a row an identity can recover, from 1 to MaxTimes.
	Times int
}

// Authenticator is an ra.Authenticator and an ra.Challenger for the keys of expired certificates. It is safe for
// concurrent use.
type Authenticator struct{ config Config }

// New returns an Authenticator.
func New(c Config) (*Authenticator, error) {
	if c.Grace <= 0 {
		return nil, errors.New("grace: write how long after its expiry a certificate is accepted, such as 720h")
	}
	if c.Times < 1 || c.Times > MaxTimes {
		return nil, fmt.Errorf("times: write how often in a row an identity can recover, from 1 to %d", MaxTimes)
	}
	return &Authenticator{c}, nil
}

// Grace returns how long after its expiry a certificate is accepted.
func (a *Authenticator) Grace() time.Duration { return a.config.Grace }

// Facts implements ra.Authenticator.
func (*Authenticator) Facts() map[string]ra.FactType {
	return map[string]ra.FactType{factIdentity: ra.FactString, factProfile: ra.FactString, factExpiredAt: ra.FactTime}
}

// Challenge implements ra.Challenger. The challenge depends on the request and the key only.
func (a *Authenticator) Challenge(_ context.Context, c ra.ChallengeRequest, at time.Time) ([]byte, error) {
	if len(c.Public) > 0 {
		return nil, pki.Refuse(pki.RuleRequest, "leave public_evidence empty, and send the certificate's reference with Enroll",
			"the request for a challenge has %d bytes of public evidence", len(c.Public))
	}
	return a.config.Nonces.Seal(bindingOf(c.Request, c.Key), nil, at)
}

// Identify implements ra.Authenticator. It opens the challenge first, so that evidence without one costs no read of the
// store. It does not check whether the certificate can still be used: a repeated request must get the same response
// after the new certificate has been issued.
func (a *Authenticator) Identify(ctx context.Context, p ra.Presented) (ra.Claim, error) {
	e, ref, err := read(p.Evidence)
	if err != nil {
		return ra.Claim{}, err
	}
	challenge, _, err := a.config.Nonces.Open(e.Challenge, bindingOf(p.Request, p.Key), p.At)
	if err != nil {
		return ra.Claim{}, err
	}
	expired, err := a.config.Store.Certificate(ctx, ref)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule.Class() == pki.NotFound {
		return ra.Claim{}, refuseUnknown(ref)
	}
	if err != nil {
		return ra.Claim{}, err
	}
	// The hash on record identifies the key, so the caller cannot choose another one.
	if !expired.Delivered || pki.HashSPKI(e.PublicKey) != expired.KeyHash {
		return ra.Claim{}, refuseUnknown(ref)
	}
	key, err := x509.ParsePKIXPublicKey(e.PublicKey)
	if err != nil {
		return ra.Claim{}, pki.Refuse(pki.RuleEvidenceMalformed, hintFormat, "the public key does not parse")
	}
	if !pki.VerifyStatement(key, pki.RecoveryStatement(a.config.TrustDomain, ref, p.Key, p.Request, e.Challenge), e.Signature) {
		return ra.Claim{}, pki.Refuse(pki.RuleEvidenceSignature,
			"sign the statement of this request with the key of the certificate, and the hash for its type",
			"the signature does not prove possession of the key of the certificate")
	}
	claim := ra.Claim{
		Identity: expired.Identity, Digest: sha256.Sum256(p.Evidence), Nonce: challenge,
		Facts: map[string]any{
			factIdentity: expired.Identity.Path(), factProfile: expired.Profile, factExpiredAt: expired.NotAfter,
		},
		Recovery: pki.Recovery{Certificate: ref, Grace: a.config.Grace, Times: a.config.Times},
		Recovers: expired.Profile,
		Actor:    pki.ActorEvidence(pki.EvidenceRecovery, ref.Serial.String()),
	}
	if expired.Identity.Reserved() {
		return claim, pki.Refuse(pki.RuleReserved, "enroll with a token (brevet token create --replace)",
			"%s is reserved, and cannot recover with an expired certificate", expired.Identity)
	}
	return claim, nil
}

// Bind implements ra.Authenticator. There is nothing to bind: the signature is for one request, and the store consumes
// the nonce.
func (*Authenticator) Bind(context.Context, []byte, ra.Binding) error { return nil }

func bindingOf(request pki.RequestID, key pki.KeyHash) nonce.Binding {
	return nonce.Binding{Purpose: nonce.Enroll, Kind: pki.EvidenceRecovery, Request: request, Key: key}
}

// hintFormat is the hint of malformed evidence.
const hintFormat = "send the issuer ID, the serial number and the public key of the certificate, a challenge and a signature"

// read parses the evidence.
func read(b []byte) (pki.RecoveryEvidence, pki.CertRef, error) {
	malformed := func(detail string) (pki.RecoveryEvidence, pki.CertRef, error) {
		return pki.RecoveryEvidence{}, pki.CertRef{}, pki.Refuse(pki.RuleEvidenceMalformed, hintFormat, "%s", detail)
	}
	e, err := pki.ParseRecoveryEvidence(b)
	if err != nil {
		return malformed(err.Error())
	}
	if len(e.PublicKey) > maxPublicKey || len(e.Signature) > maxSignature {
		return pki.RecoveryEvidence{}, pki.CertRef{}, pki.Refuse(pki.RuleEvidenceSize,
			fmt.Sprintf("send a public key of %d bytes and a signature of %d bytes at most", maxPublicKey, maxSignature),
			"the public key has %d bytes, and the signature %d", len(e.PublicKey), len(e.Signature))
	}
	var ref pki.CertRef
	if ref.Issuer, err = pki.IssuerIDFromBytes(e.IssuerID); err != nil {
		return malformed("the issuer ID has not 32 bytes")
	}
	if ref.Serial, err = pki.SerialFromBytes(e.Serial); err != nil {
		return malformed("the serial number is not one of this CA")
	}
	return e, ref, nil
}

// refuseUnknown returns the refusal of a certificate that is not on record with the key. It does not say which of both.
func refuseUnknown(ref pki.CertRef) error {
	return pki.Refuse(pki.RuleEvidenceUntrusted, "check the issuer ID, the serial number and the public key; if they are right, ask an operator for a token",
		"no certificate %s with this key is on record", ref.Serial)
}
