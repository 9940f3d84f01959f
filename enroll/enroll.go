// Package enroll is the device side of Brevet: it trades a one-time token for a first certificate, renews the
// certificate before it ends, and keeps key, certificate and trust bundle in files that survive a power cut.
//
// An Agent does all of it; what it asks is an Authority, which is a Client on a device and the server itself
// where the server enrolls its own roles. Programs that only use what an agent wrote open a Source.
//
// The package refuses to speak to a server that does not carry the identity spiffe://<trust domain>/brevet/server
// (SPIFFE X.509-SVID §5) under the root that the token or the trust bundle names, and to install a credential that
// does not load, does not match its key or does not chain to its roots (RFC 5280 §6). It never sends a private key
// anywhere, and asks for no name in its PKCS #10 requests (RFC 2986): names are the server's to give.
package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Authority issues certificates to an Agent, its only consumer, which calls it from one goroutine at a time.
//
// Both methods are repeatable: asked again with the same request ID and key, after an error or a crash on either
// side, they answer with the same certificate. A request that may pass later fails with an error that says so by
// Temporary and RetryAfter (see pki.IsTemporary); one that is refused fails with a *pki.Refusal in its chain.
type Authority interface {
	// Enroll trades evidence for the first certificate of an identity.
	Enroll(context.Context, EnrollRequest) (Credential, error)
	// Renew follows a certificate that is still valid by the next one.
	Renew(context.Context, RenewRequest) (Credential, error)
}

// EnrollRequest asks for an identity's first certificate.
type EnrollRequest struct {
	RequestID pki.RequestID
	Bootstrap Bootstrap
	Evidence  []pki.Evidence // one piece, or two of different kinds
	CSR       []byte         // PKCS #10 in DER
	Lifetime  time.Duration  // zero for the profile's default
}

// RenewRequest asks for the successor of the current certificate.
type RenewRequest struct {
	RequestID pki.RequestID
	Current   *Pair         // proves who asks, and becomes the predecessor
	CSR       []byte        // PKCS #10 in DER
	Lifetime  time.Duration // zero for the profile's default
}

// Credential is what an Authority issues.
type Credential struct {
	Certificate *x509.Certificate
	// Chain holds the CA certificates between Certificate and the root, the issuer first, the root left out.
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
		return c, fmt.Errorf("enroll: the certificate does not parse: %w", err)
	}
	c.Certificate = leaf
	if c.Chain, err = parseAll(chain); err != nil {
		return c, fmt.Errorf("enroll: a CA certificate does not parse: %w", err)
	}
	if c.Roots, err = parseAll(roots); err != nil {
		return c, fmt.Errorf("enroll: a root certificate does not parse: %w", err)
	}
	if len(c.Roots) == 0 {
		return c, errors.New("enroll: the credential names no root to trust")
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
