package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// IssuingCA is an issuing CA: its certificate, and its key behind a crypto.Signer that is safe for concurrent use.
type IssuingCA struct {
	ID          pki.IssuerID
	Certificate *x509.Certificate
	Signer      crypto.Signer
	// Chain is what lies between it and the root, itself first, the root left out.
	Chain []*x509.Certificate
	Root  *x509.Certificate
}

// NewIssuingCA checks that a certificate may issue, belongs to the key, and chains to the root through the others, which
// may come in any order. A mismatch of key and certificate shows both fingerprints.
func NewIssuingCA(cert *x509.Certificate, signer crypto.Signer, others []*x509.Certificate) (IssuingCA, error) {
	have, err := pki.HashKey(signer.Public())
	if err != nil {
		return IssuingCA{}, fmt.Errorf("ca: key of %s: %w", cert.Subject, err)
	}
	if want := pki.HashSPKI(cert.RawSubjectPublicKeyInfo); have != want {
		return IssuingCA{}, fmt.Errorf("ca: the token's key does not belong to %s: the certificate has key %s, the token %s; "+
			"install the certificate that was signed for this key, or point token at the other one", cert.Subject, want, have)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 || cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return IssuingCA{}, fmt.Errorf("ca: %s is not a CA certificate for signing certificates and CRLs (RFC 5280 section 4.2.1.3, 4.2.1.9)", cert.Subject)
	}
	iss := IssuingCA{ID: pki.IssuerOf(cert), Certificate: cert, Signer: signer}
	at := cert
	for range len(others) + 1 {
		if IsRoot(at) {
			iss.Root = at
			return iss, nil
		}
		iss.Chain = append(iss.Chain, at)
		next := parentOf(at, others)
		if next == nil {
			return IssuingCA{}, fmt.Errorf("ca: nothing installed signed %s: install the certificate of %s too", at.Subject, at.Issuer)
		}
		at = next
	}
	return IssuingCA{}, fmt.Errorf("ca: the chain of %s does not end in a root", cert.Subject)
}

// checkTime returns an error if the issuing CA is not valid at a time.
func (iss IssuingCA) checkTime(now time.Time) error {
	if c := iss.Certificate; now.After(c.NotAfter) || now.Before(c.NotBefore) {
		return fmt.Errorf("ca: the issuing CA %s is not valid at %s: check the clock, or install the next CA generation",
			c.Subject, now.UTC().Format(time.RFC3339))
	}
	return nil
}

// IsRoot reports whether a certificate is self-issued and names no other key as its issuer's. Its own signature is not
// looked at, as that of no trust anchor is (RFC 5280 §6.1): it may be one that is not good for anything else, as SHA-1.
func IsRoot(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && (len(c.AuthorityKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId))
}

func parentOf(c *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, p := range among {
		if c.CheckSignatureFrom(p) == nil {
			return p
		}
	}
	return nil
}
