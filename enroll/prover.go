package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Prover makes evidence that responds to a challenge of the server, with what a device has from its factory. See
// [FactoryCertificate] and Client.EnrollWith.
type Prover interface {
	Kind() pki.EvidenceKind
	// Public returns what the server needs to make a challenge. It is empty for kinds whose challenge depends on
	// nothing.
	Public(ctx context.Context) ([]byte, error)
	// Prove returns evidence for one request.
	Prove(ctx context.Context, p Proof) (pki.Evidence, error)
}

// Proof is the request that a [Prover] makes evidence for.
type Proof struct {
	TrustDomain string // that the device enrolls in
	RequestID   pki.RequestID
	Key         pki.KeyHash // of the key in the CSR
	Challenge   []byte      // from the server
}

// prove gets a challenge for each prover, and returns their evidence.
func prove(
	ctx context.Context, s brevetv1.EnrollmentServiceClient, r EnrollRequest, provers []Prover,
) ([]*brevetv1.Evidence, error) {
	if len(provers) == 0 {
		return nil, nil
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, fmt.Errorf("read the key of the certification request: %w", err)
	}
	key := pki.HashSPKI(csr.RawSubjectPublicKeyInfo)
	var all []pki.Evidence
	for _, p := range provers {
		public, err := p.Public(ctx)
		if err != nil {
			return nil, fmt.Errorf("prepare evidence of the kind %s: %w", p.Kind(), err)
		}
		challenge, err := s.CreateChallenge(ctx, &brevetv1.CreateChallengeRequest{
			Kind: wireKinds[p.Kind()], RequestId: r.RequestID.Bytes(), KeyHash: key.Bytes(), PublicEvidence: public,
		})
		if err != nil {
			return nil, err // call converts the status
		}
		evidence, err := p.Prove(ctx, Proof{r.Bootstrap.TrustDomain, r.RequestID, key, challenge.GetChallenge()})
		if err != nil {
			return nil, fmt.Errorf("make evidence of the kind %s: %w", p.Kind(), err)
		}
		all = append(all, evidence)
	}
	return wireEvidence(all)
}

// wireKinds maps the kinds of evidence that respond to a challenge to those in protobuf.
var wireKinds = map[pki.EvidenceKind]brevetv1.EvidenceKind{
	pki.EvidenceX5C: brevetv1.EvidenceKind_EVIDENCE_KIND_X5C,
	pki.EvidenceTPM: brevetv1.EvidenceKind_EVIDENCE_KIND_TPM,

	pki.EvidenceRecovery: brevetv1.EvidenceKind_EVIDENCE_KIND_RECOVERY,
}

// factory is a Prover with the certificate that the manufacturer gave to the device.
type factory struct {
	chain [][]byte
	key   crypto.Signer
}

// FactoryCertificate returns a Prover for a device with a certificate of its manufacturer (an IDevID of IEEE 802.1AR).
// c contains the device's certificate and its issuers, in order; the root may be left out. The private key is a
// crypto.Signer, for instance in a secure element. It is an ECDSA key on P-256 or P-384, an RSA key or an Ed25519 key.
func FactoryCertificate(c tls.Certificate) (Prover, error) {
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key of the factory certificate cannot sign")
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("there is no factory certificate")
	}
	device, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("the factory certificate does not parse: %w", err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(device.PublicKey) {
		return nil, errors.New("the private key does not belong to the factory certificate")
	}
	if _, err := statementOptions(device.PublicKey); err != nil {
		return nil, err
	}
	return factory{c.Certificate, key}, nil
}

// Kind implements Prover.
func (factory) Kind() pki.EvidenceKind { return pki.EvidenceX5C }

// Public implements Prover.
func (factory) Public(context.Context) ([]byte, error) { return nil, nil }

// Prove implements Prover.
func (f factory) Prove(_ context.Context, p Proof) (pki.Evidence, error) {
	signature, err := signStatement(f.key, pki.X5CStatement(p.TrustDomain, p.Key, p.RequestID, p.Challenge))
	if err != nil {
		return pki.Evidence{}, fmt.Errorf("sign with the key of the factory certificate: %w", err)
	}
	e := pki.X5CEvidence{Certificates: f.chain, Challenge: p.Challenge, Signature: signature}
	return pki.Evidence{Kind: pki.EvidenceX5C, Value: e.Encode()}, nil
}

// signStatement signs with the algorithm that the server expects of this type of key.
func signStatement(key crypto.Signer, statement []byte) ([]byte, error) {
	options, err := statementOptions(key.Public())
	if err != nil {
		return nil, err
	}
	if hash := options.HashFunc(); hash != 0 {
		h := hash.New()
		h.Write(statement)
		statement = h.Sum(nil)
	}
	return key.Sign(rand.Reader, statement, options)
}

// statementOptions returns the algorithm that belongs to a key. Devices sign with PKCS #1 v1.5 if the key is RSA,
// because not every secure element supports PSS.
func statementOptions(key crypto.PublicKey) (crypto.SignerOpts, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P384() {
			return crypto.SHA384, nil
		}
		return crypto.SHA256, nil
	case *rsa.PublicKey:
		return crypto.SHA256, nil
	case ed25519.PublicKey:
		return crypto.Hash(0), nil
	default:
		return nil, fmt.Errorf("the key of the certificate is a %T: use ECDSA, RSA or Ed25519", key)
	}
}
