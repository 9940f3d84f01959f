package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// IssuingCA is an issuing CA: its certificate, and its key behind a [crypto.Signer] that is safe for concurrent use.
type IssuingCA struct {
	ID          pki.IssuerID
	Certificate *x509.Certificate
	Signer      crypto.Signer
	// Chain is the chain from the issuing CA's certificate, which is first, to the root, which is omitted.
	Chain []*x509.Certificate
	Root  *x509.Certificate
}

// NewIssuingCA checks that a certificate may issue, belongs to the key, and chains to a root through others, which may
// be in any order. If key and certificate do not match, the error contains both fingerprints.
func NewIssuingCA(cert *x509.Certificate, signer crypto.Signer, others []*x509.Certificate) (IssuingCA, error) {
	have, err := pki.HashKey(signer.Public())
	if err != nil {
		return IssuingCA{}, fmt.Errorf("key of %s: %w", cert.Subject, err)
	}
	if want := pki.HashSPKI(cert.RawSubjectPublicKeyInfo); have != want {
		return IssuingCA{}, fmt.Errorf("the HSM's key does not belong to %s: the certificate has key %s, the HSM %s; "+
			"install the certificate that was signed for this key, or configure the HSM that has its key", cert.Subject, want, have)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 || cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return IssuingCA{}, fmt.Errorf("%s is not a CA certificate for signing certificates and CRLs (RFC 5280 "+
			"section 4.2.1.3, 4.2.1.9)", cert.Subject)
	}
	iss, err := ChainOf(cert, others)
	iss.Signer = signer
	return iss, err
}

// ChainOf returns an issuing CA without its key. Its certificate must chain to a root through others, which may be in
// any order.
func ChainOf(cert *x509.Certificate, others []*x509.Certificate) (IssuingCA, error) {
	iss := IssuingCA{ID: pki.IssuerOf(cert), Certificate: cert}
	at := cert
	for range len(others) + 1 {
		if IsRoot(at) {
			iss.Root = at
			return iss, nil
		}
		iss.Chain = append(iss.Chain, at)
		next := parentOf(at, others)
		if next == nil {
			return IssuingCA{}, fmt.Errorf("no installed certificate signed %s: install the certificate of %s, too",
				at.Subject, at.Issuer)
		}
		at = next
	}
	return IssuingCA{}, fmt.Errorf("the chain of %s does not end in a root", cert.Subject)
}

// checkTime returns an error if the issuing CA is not valid at a time.
func (iss IssuingCA) checkTime(now time.Time) error {
	if c := iss.Certificate; now.After(c.NotAfter) || now.Before(c.NotBefore) {
		return fmt.Errorf("the issuing CA %s is not valid at %s: check the clock, or install the next CA generation",
			c.Subject, now.UTC().Format(time.RFC3339))
	}
	return nil
}

// IsRoot reports whether a certificate is self-issued and names no other key as its issuer's. It does not verify the
// self-signature, which is irrelevant for a trust anchor (RFC 5280 section 6.1) and may use SHA-1.
func IsRoot(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && (len(c.AuthorityKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId))
}

// parentOf returns the certificate that signed c, or nil.
func parentOf(c *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, p := range among {
		if c.CheckSignatureFrom(p) == nil {
			return p
		}
	}
	return nil
}
