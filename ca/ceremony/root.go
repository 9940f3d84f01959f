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

// RootSpec describes a root certificate.
type RootSpec struct {
	Subject Subject
	// Lifetime is the time from Now to notAfter, in whole seconds; at least 1 s.
	Lifetime time.Duration
	// PathLength is the maximum number of CA certificates between the root and a leaf. With 1 the root can sign only
	// issuing CAs. With 2 it can also sign cross-certificates for other roots that have issuing CAs.
	PathLength int
	Now        time.Time
}

// Root returns the DER of a self-signed CA certificate for the signer's key. It has no name constraints, because
// verifiers ignore constraints in a trust anchor (RFC 5280 section 6.1). The certificates that the root signs may have
// them. It has no authority key identifier, as RFC 5280 section 4.2.1.1 allows.
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
		return nil, fmt.Errorf("sign root certificate: %w", err)
	}
	return der, nil
}

// caTemplate returns the common content of all CA certificates. crypto/x509 derives the subject key identifier from the
// key (RFC 7093 section 2).
func caTemplate(now time.Time, lifetime time.Duration, pathLength int) (*x509.Certificate, error) {
	notBefore := now.UTC().Truncate(time.Second)
	notAfter := notBefore.Add(lifetime.Truncate(time.Second))
	if !notAfter.After(notBefore) || notAfter.Year() > 9999 {
		return nil, pki.Refuse(pki.RuleLifetime, "give at least one second, with an end before the year 10000",
			"%s is not a possible lifetime of a CA", lifetime)
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

// newSerial returns a random serial number that contains the time of the ceremony.
func newSerial(now time.Time) (*big.Int, error) {
	var random [pki.SerialRandomSize]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process if it has no randomness
	serial, err := pki.MakeSerial(now, random)
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Int(), nil
}

// refusePathLength returns the refusal of a negative path length.
func refusePathLength(n int) *pki.Refusal {
	return pki.Refuse(pki.RuleRequest, "give 0 or the number of CAs that may follow", "%d is not a path length", n)
}
