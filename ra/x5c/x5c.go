package x5c

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/nonce"
)

// Authenticator is an ra.Authenticator and an ra.Challenger for factory certificates. It is safe for concurrent use.
type Authenticator struct {
	trustDomain string
	sources     sources
	nonces      *nonce.Sealer
}

// New returns an Authenticator for devices that enroll in a trust domain. It trusts the sources. A device belongs to the
// first source that its chain leads to. New returns an error for sources that are not usable, such as two with the same
// root.
func New(trustDomain string, sources []Source, nonces *nonce.Sealer) (*Authenticator, error) {
	a := &Authenticator{trustDomain: trustDomain, nonces: nonces}
	if len(sources) == 0 {
		return nil, errors.New("factory certificates have no source: configure the roots of a manufacturer")
	}
	for _, s := range sources {
		compiled, err := s.compile(a.sources)
		if err != nil {
			return nil, err
		}
		a.sources = append(a.sources, compiled)
	}
	return a, nil
}

// Facts implements ra.Authenticator.
func (*Authenticator) Facts() map[string]ra.FactType {
	return factTypes()
}

func factTypes() map[string]ra.FactType {
	return map[string]ra.FactType{
		factSource: ra.FactString, factSerial: ra.FactString, factHardwareType: ra.FactString,
		factCommonName: ra.FactString, factOrganization: ra.FactString,
		factIssuer: ra.FactString, factCertificateSerial: ra.FactString, factNotAfter: ra.FactTime,
	}
}

// Unique returns the facts that distinguish two devices. Serial numbers of devices are unique for one source, and those
// of certificates for one issuer of a source.
func (*Authenticator) Unique() []ra.UniqueFact { return uniqueFacts() }

func uniqueFacts() []ra.UniqueFact {
	return []ra.UniqueFact{
		{Name: factSerial, Within: [][]string{{factSource}}},
		{Name: factCertificateSerial, Within: [][]string{{factSource}, {factIssuer}}},
	}
}

// Challenge implements ra.Challenger. The challenge depends on the request and the key only.
func (a *Authenticator) Challenge(_ context.Context, c ra.ChallengeRequest, at time.Time) ([]byte, error) {
	if len(c.Public) > 0 {
		return nil, pki.Refuse(pki.RuleRequest, "leave public_evidence empty, and send the certificates with Enroll",
			"the request for a challenge has %d bytes of public evidence", len(c.Public))
	}
	return a.nonces.Seal(bindingOf(c.Request, c.Key), nil, at)
}

// Identify implements ra.Authenticator. The signature of the device is verified before the CRLs, so that a refusal of a
// revoked device can be attributed to it.
func (a *Authenticator) Identify(_ context.Context, p ra.Presented) (ra.Claim, error) {
	e, err := read(p.Evidence)
	if err != nil {
		return ra.Claim{}, err
	}
	challenge, _, err := a.nonces.Open(e.Challenge, bindingOf(p.Request, p.Key), p.At)
	if err != nil {
		return ra.Claim{}, err
	}
	presented, err := parse(e.Certificates)
	if err != nil {
		return ra.Claim{}, err
	}
	s, chain, err := a.sources.verify(presented, p.At)
	if err != nil {
		return ra.Claim{}, err
	}
	device := chain[0]
	if !pki.VerifyStatement(device.PublicKey, pki.X5CStatement(a.trustDomain, p.Key, p.Request, e.Challenge), e.Signature) {
		return ra.Claim{}, pki.Refuse(pki.RuleEvidenceSignature,
			"sign the statement of this request with the key of the device's certificate, and the hash for its type",
			"the signature does not prove possession of the key of the factory certificate")
	}
	claim, err := s.claim(pki.EvidenceX5C, chain, p)
	claim.Nonce = challenge
	return claim, err
}

// claim returns the claim of a device that has proved possession of its key. If a certificate in its chain is revoked,
// claim returns the claim with the refusal.
func (s *source) claim(kind pki.EvidenceKind, chain []*x509.Certificate, p ra.Presented) (ra.Claim, error) {
	facts, err := factsOf(s.name, chain[0])
	if err != nil {
		return ra.Claim{}, err
	}
	subject := SubjectOf(chain[0], chain[1])
	return ra.Claim{
		Subject: subject, Facts: facts, Digest: sha256.Sum256(p.Evidence),
		Actor: pki.ActorEvidence(kind, hex.EncodeToString(subject.Hash[:8])),
	}, s.checkRevocation(chain, p.At)
}

// Bind implements ra.Authenticator. There is nothing to bind: the signature is for one request, and the store consumes
// the nonce.
func (*Authenticator) Bind(context.Context, []byte, ra.Binding) error { return nil }

func bindingOf(request pki.RequestID, key pki.KeyHash) nonce.Binding {
	return nonce.Binding{Purpose: nonce.Enroll, Kind: pki.EvidenceX5C, Request: request, Key: key}
}

// SubjectOf returns the subject of a device's certificate: the SHA-256 of the issuer ID of the CA that issued it, and of
// its serial number in DER. The issuer ID contains the key of the CA, because another manufacturer can use its name.
func SubjectOf(device, issuer *x509.Certificate) pki.EvidenceSubject {
	b := cryptobyte.NewBuilder(pki.IssuerOf(issuer).Bytes())
	b.AddASN1BigInt(device.SerialNumber)
	content := b.BytesOrPanic() // a parsed certificate is far from the size limit
	return pki.EvidenceSubject{Kind: pki.EvidenceX5C, Hash: sha256.Sum256(content)}
}
