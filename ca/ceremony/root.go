package ceremony

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// RootSpec says what root to make.
type RootSpec struct {
	Subject Subject
	// Lifetime is from Now to notAfter, in whole seconds; 1 s at least.
	Lifetime time.Duration
	// PathLength is how many CAs may stand between the root and a leaf's issuer, from 0; 1 lets the root sign issuing
	// CAs and one level of CAs above them, 0 issuing CAs only.
	PathLength int
	Now        time.Time
}

// Root makes a self-signed CA certificate for the signer's key and returns its DER. Its names are not constrained: a
// verifier does not look for constraints in a trust anchor (RFC 5280 §6.1), so they belong into the certificates that
// it signs. It has no authority key identifier, as RFC 5280 §4.2.1.1 allows.
func Root(signer crypto.Signer, spec RootSpec) ([]byte, error) {
	if spec.Subject.IsZero() {
		return nil, refuseSubject("the root has no subject")
	}
	if spec.PathLength < 0 {
		return nil, refusePathLength(spec.PathLength)
	}
	template, err := caTemplate(spec.Now, spec.Lifetime, spec.PathLength)
	if err != nil {
		return nil, err
	}
	template.RawSubject = spec.Subject.bytes()
	if template.SignatureAlgorithm, err = signatureAlgorithm(signer.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("ceremony: sign root certificate: %w", err)
	}
	return der, nil
}

// caTemplate is what all CA certificates have in common. Its subject key identifier is the one that crypto/x509 makes
// from the key (RFC 7093 §2).
func caTemplate(now time.Time, lifetime time.Duration, pathLength int) (*x509.Certificate, error) {
	notBefore := now.UTC().Truncate(time.Second)
	notAfter := notBefore.Add(lifetime.Truncate(time.Second))
	if !notAfter.After(notBefore) || notAfter.Year() > 9999 {
		return nil, pki.Refuse(pki.RuleLifetime, "give one of a second at least that ends before the year 10000",
			"%s is not the lifetime of a CA", lifetime)
	}
	serial, err := newSerial(now)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, NotBefore: notBefore, NotAfter: notAfter,
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: pathLength, MaxPathLenZero: pathLength == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}

func newSerial(now time.Time) (*big.Int, error) {
	var random [pki.SerialRandomSize]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process where there is no randomness
	serial, err := pki.MakeSerial(now, random)
	if err != nil {
		return nil, fmt.Errorf("ceremony: %w", err)
	}
	return serial.Int(), nil
}

func refusePathLength(n int) *pki.Refusal {
	return pki.Refuse(pki.RuleRequest, "give 0, or how many CAs may follow", "%d is not a path length", n)
}
