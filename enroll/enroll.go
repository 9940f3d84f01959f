// Package enroll is the device side of Brevet. It exchanges a one-time token for a first certificate and renews the
// certificate before it expires. It stores key, certificate and trust bundle in files that survive a power failure.
//
// An [Agent] does all of this. It sends its requests to an [Authority]: on a device this is a [Client], inside the
// server it is the server itself. Programs that only use a credential written by an agent open a [Source].
//
// The package refuses a server that does not carry the identity spiffe://<trust domain>/brevet/server (SPIFFE
// X.509-SVID section 5). The server's root must be the root named by the token or be in the trust bundle. The package
// installs only a credential that loads, matches its key and chains to its roots (RFC 5280 section 6). It never sends a
// private key, and its PKCS #10 requests (RFC 2986) contain no names, because the server decides them.
package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Authority issues certificates to an [Agent], which calls it from one goroutine at a time.
//
// Both methods are idempotent: repeated with the same request ID and key, they return the same certificate, even after
// a crash on either side. If a request may succeed later, the error implements Temporary and RetryAfter (see
// [pki.IsTemporary]). If the request is refused, the error wraps a [*pki.Refusal].
type Authority interface {
	// Enroll trades evidence for the first certificate of an identity.
	Enroll(context.Context, EnrollRequest) (Credential, error)
	// Renew issues the successor of a certificate that is still valid.
	Renew(context.Context, RenewRequest) (Credential, error)
}

// EnrollRequest is a request for an identity's first certificate.
type EnrollRequest struct {
	RequestID pki.RequestID
	Bootstrap Bootstrap
	Evidence  []pki.Evidence // one piece, or two of different kinds
	CSR       []byte         // PKCS #10 in DER
	Lifetime  time.Duration  // zero for the profile's default
}

// RenewRequest is a request for the successor of the current certificate.
type RenewRequest struct {
	RequestID pki.RequestID
	Current   *Pair         // authenticates the request and becomes the predecessor
	CSR       []byte        // PKCS #10 in DER
	Lifetime  time.Duration // zero for the profile's default
}

// Credential is the certificate that an [Authority] issued, with its chain and the roots.
type Credential struct {
	Certificate *x509.Certificate
	// Chain holds the CA certificates between Certificate and the root, the issuing CA first, without the root.
	Chain []*x509.Certificate
	// Roots holds the root certificates of the trust domain.
	Roots []*x509.Certificate
	// Renewal is when to renew, by the clock of the Authority. It is zero if the Authority named no time.
	Renewal RenewalWindow
	// BundleRevision changes whenever the trust domain's roots change, in hexadecimal. It is empty if it is unknown.
	BundleRevision string
	// Server is the address that issued the credential. It is empty if no network lay between.
	Server string
}

// RenewalWindow is the span of time in which a certificate is to be renewed.
type RenewalWindow struct {
	Start time.Time `json:"start_time,omitzero"`
	End   time.Time `json:"end_time,omitzero"`
}

// ParseCredential reads a credential's parts from DER. It checks their form and what has to be there, not the chain.
func ParseCredential(certificate []byte, chain, roots [][]byte) (Credential, error) {
	var c Credential
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return c, fmt.Errorf("the certificate does not parse: %w", err)
	}
	c.Certificate = leaf
	if c.Chain, err = parseAll(chain); err != nil {
		return c, fmt.Errorf("a CA certificate does not parse: %w", err)
	}
	if c.Roots, err = parseAll(roots); err != nil {
		return c, fmt.Errorf("a root certificate does not parse: %w", err)
	}
	if len(c.Roots) == 0 {
		return c, errors.New("the credential contains no root certificate")
	}
	return c, nil
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}
