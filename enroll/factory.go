package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
)

// factory is Evidence with the certificate that the manufacturer gave to the device.
type factory struct {
	chain [][]byte
	key   crypto.Signer
}

// FactoryCertificate returns [Evidence] with a certificate of the device's manufacturer (an IDevID of IEEE 802.1AR). c
// contains the device's certificate and its issuers, in order; the root may be left out. The private key is a
// crypto.Signer, for instance in a secure element. It is an ECDSA key on P-256 or P-384, an RSA key or an Ed25519 key.
func FactoryCertificate(c tls.Certificate) (Evidence, error) {
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
		return nil, errors.New("the private key does not belong to the factory certificate: give the key of this device")
	}
	if _, err := statementOptions(device.PublicKey); err != nil {
		return nil, err
	}
	return factory{c.Certificate, key}, nil
}

// Kind implements Evidence.
func (factory) Kind() pki.EvidenceKind { return pki.EvidenceX5C }

// Subject returns the SHA-256 of the certificate in hexadecimal.
func (f factory) Subject() string {
	digest := sha256.Sum256(f.chain[0])
	return hex.EncodeToString(digest[:])
}

// Present implements Evidence.
func (f factory) Present(ctx context.Context, p Presentation) (pki.Evidence, error) {
	challenge, err := p.Challenge(ctx, pki.EvidenceX5C, nil)
	if err != nil {
		return pki.Evidence{}, err
	}
	signature, err := signStatement(f.key, pki.X5CStatement(p.TrustDomain, p.KeyHash, p.RequestID, challenge))
	if err != nil {
		return pki.Evidence{}, fmt.Errorf("sign with the key of the factory certificate: %w", err)
	}
	e := pki.X5CEvidence{Certificates: f.chain, Challenge: challenge, Signature: signature}
	return pki.Evidence{Kind: pki.EvidenceX5C, Value: e.Encode()}, nil
}

// Format hides the key from every verb of fmt.
func (f factory) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("[x5c]")) }

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
		return nil, fmt.Errorf("the key of the factory certificate is a %T: use ECDSA, RSA or Ed25519", key)
	}
}
