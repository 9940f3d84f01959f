// Package enroll is the device side of Brevet. It exchanges evidence, such as a one-time token, for a first certificate
// and renews the certificate before it expires. It stores key, certificate and trust bundle in files that survive a
// power failure.
//
// An [Agent] does all of this. It sends its requests to an [Authority]: on a device to a [Client], inside the server to
// the server itself. A program that only uses the credential of an agent opens a [Source].
//
// The package refuses a server without the identity spiffe://<trust domain>/brevet/server (SPIFFE X.509-SVID section
// 5). The server's root must be the root that the [Bootstrap] names, or be in the trust bundle. A credential is installed
// only if it is complete, matches its key and chains to its roots (RFC 5280 section 6). The package never sends a
// private key. Its PKCS #10 requests (RFC 2986) contain no names, because the server decides them.
package enroll

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Authority issues certificates to an [Agent], which calls it from one goroutine at a time.
//
// Enroll and Renew are idempotent. If the agent repeats a request with the same request ID and key, they return the
// same certificate, even after a crash of the agent or the server. If a request may succeed later, the error implements
// Temporary and RetryAfter (see [pki.IsTemporary]). If the server refuses the request, the error wraps a
// [*pki.Refusal].
type Authority interface {
	// Enroll exchanges evidence for the first certificate of an identity.
	Enroll(context.Context, EnrollRequest) (Credential, error)
	// Renew returns a new certificate in exchange for one that is still valid.
	Renew(context.Context, RenewRequest) (Credential, error)
	// RenewalInfo returns when the certificate of a pair should be renewed, as of now. The pair authenticates the request.
	RenewalInfo(context.Context, *Pair) (RenewalInfo, error)
	// TrustBundle returns the trust domain's roots. The pair, whose certificate is valid, authenticates the agent, and
	// its roots authenticate the server.
	TrustBundle(context.Context, *Pair) (TrustBundle, error)
}

// EnrollRequest is a request for the first certificate of an identity.
type EnrollRequest struct {
	RequestID pki.RequestID
	Bootstrap Bootstrap
	Evidence  []Evidence    // one piece of evidence, or two of different kinds
	CSR       []byte        // PKCS #10 in DER
	Key       crypto.Signer // the key of the CSR; required for the attestation of a TPM only
	Lifetime  time.Duration // zero for the profile's default
	Identity  string        // the identity to enroll, as a path or a SPIFFE ID; empty for the one that the evidence names
	// Expired is the credential that the evidence recovers, whose roots authenticate the server. It is nil for another
	// enrollment. Then the server is authenticated by the root that Bootstrap names.
	Expired *Pair
}

// RenewRequest is a request for a certificate that replaces the current one.
type RenewRequest struct {
	RequestID pki.RequestID
	Current   *Pair         // authenticates the request; the new certificate replaces its certificate
	CSR       []byte        // PKCS #10 in DER
	Key       crypto.Signer // the key of the CSR; required for the attestation of a TPM only
	Lifetime  time.Duration // zero for the profile's default
	Identity  string        // the identity to enroll, as a path or a SPIFFE ID; empty for the one that the evidence names
	// Evidence proves that the key of the CSR is in hardware. It is nil if the enrollment does not require that.
	Evidence Evidence
}

// Credential is the certificate that an [Authority] issued, with its chain and the roots.
type Credential struct {
	Certificate *x509.Certificate
	// Chain holds the CA certificates between Certificate and the root. The issuing CA is the first. The root is not
	// included.
	Chain []*x509.Certificate
	// Roots holds the root certificates of the trust domain.
	Roots []*x509.Certificate
	// Renewal is when the Authority wants the certificate renewed, by its clock. It is zero if the Authority sent none.
	Renewal RenewalWindow
	// BundleRevision identifies the version of the trust domain's roots, in hexadecimal. It is empty if it is unknown.
	BundleRevision string
	// Server is the address of the server that sent the credential. It is empty if the Authority was in the same
	// process.
	Server string
}

// RenewalWindow is the period in which the agent renews a certificate.
type RenewalWindow struct {
	Start time.Time `json:"start_time,omitzero"`
	End   time.Time `json:"end_time,omitzero"`
}

// ParseCredential parses the parts of a credential from DER. It checks that no part is missing, but it does not verify
// the chain.
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
