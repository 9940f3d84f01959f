package enroll

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// maxPeerCertificates is the maximum number of certificates that a peer may send.
const maxPeerCertificates = 8

// ClientTLS returns a TLS 1.3 configuration for connections to a Brevet server. The client presents the current
// credential. It verifies the server's certificate against the credential's roots, and that it names the identity of
// the trust domain's server. Each handshake calls current, for instance Agent.Pair or Source.Pair, so it uses a renewed
// credential. If current returns nil, the handshake fails.
func ClientTLS(current func() *Pair) *tls.Config {
	c := verifyingTLS(func(peer []*x509.Certificate) error {
		pair := current()
		if pair == nil {
			return errNotEnrolled()
		}
		return verifyServer(peer, pair.RootPool(), pair.ID().TrustDomain(), time.Now())
	})
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificateOf(current) }
	return c
}

// AnonymousTLS returns a TLS configuration for clients without a certificate. They accept the servers of a trust
// domain, verified against the given roots.
func AnonymousTLS(roots *x509.CertPool, trustDomain string) *tls.Config {
	return verifyingTLS(func(peer []*x509.Certificate) error { return verifyServer(peer, roots, trustDomain, time.Now()) })
}

// TLS returns a configuration that trusts only the root whose fingerprint is in the bootstrap. The server sends the
// root with its chain. The client presents no certificate.
func (b Bootstrap) TLS() *tls.Config {
	return verifyingTLS(func(peer []*x509.Certificate) error {
		for _, c := range peer {
			if sha256.Sum256(c.Raw) == b.RootFingerprint {
				return verifyServer(peer, poolOf([]*x509.Certificate{c}), b.TrustDomain, time.Now())
			}
		}
		return errors.New("the server does not show the root that the token or root_fingerprint names: it belongs to another " +
			"CA, or the connection is intercepted; check the address, make a new token, or correct root_fingerprint")
	})
}

// verifyingTLS returns a configuration that calls verify instead of crypto/tls's verification, which checks host names.
// Session tickets are disabled, so that every connection is verified.
func verifyingTLS(verify func([]*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection verifies completely
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if n := len(state.PeerCertificates); n == 0 || n > maxPeerCertificates {
				return fmt.Errorf("the peer sent %d certificates: 1 to %d are accepted", n, maxPeerCertificates)
			}
			return verify(state.PeerCertificates)
		},
	}
}

// isServer reports whether a URI is the identity of a server of the trust domain.
func isServer(uri, trustDomain string) bool {
	id, err := pki.ParseSPIFFEID(uri)
	return err == nil && id.TrustDomain() == trustDomain && id.IsServer()
}

// verifyServer verifies the chain, the time and the extended key usage (RFC 5280 section 6). The certificate must name
// only the identity of a server of the trust domain.
func verifyServer(peer []*x509.Certificate, roots *x509.CertPool, trustDomain string, now time.Time) error {
	leaf := peer[0]
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: poolOf(peer[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return fmt.Errorf("a certificate of the server is not valid at %s, which is what this machine's clock says: check the clock, then the server: %w",
				now.UTC().Format(time.RFC3339), err)
		}
		return fmt.Errorf("the server's certificate does not chain to a trusted root: %w", err)
	}
	if leaf.IsCA || len(leaf.URIs) != 1 || !isServer(leaf.URIs[0].String(), trustDomain) {
		return fmt.Errorf("this is not the server of %s: its certificate must name spiffe://%s/brevet/server, or a name below it, "+
			"and nothing else; check the address", trustDomain, trustDomain)
	}
	return nil
}
