package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// PeerServerTLS returns a TLS 1.3 configuration for a server whose clients belong to its trust domain. The server
// presents the current credential and requires a client certificate. It verifies the certificate (see [PeerClientTLS])
// and calls authorize with the client's identity. If authorize returns an error, the handshake fails with it. If
// authorize is nil, every handshake fails.
func PeerServerTLS(current func() *Pair, authorize func(pki.SPIFFEID) error) *tls.Config {
	c := peerTLS(current, x509.ExtKeyUsageClientAuth, authorize)
	c.ClientAuth = tls.RequireAnyClientCert // VerifyConnection verifies the certificate
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificateOf(current) }
	return c
}

// PeerClientTLS returns a TLS 1.3 configuration for a client whose server belongs to its trust domain. The client
// presents the current credential, verifies the server's certificate and calls authorize with the server's identity. If
// authorize returns an error, the handshake fails with it. If authorize is nil, every handshake fails.
//
// The client verifies the certificate and its extended key usage against the credential's roots, at this machine's time
// (RFC 5280 section 6). The certificate must name exactly one identity, in the credential's trust domain (SPIFFE
// X.509-SVID section 5). Host names are ignored. Revocation is not checked: a revoked peer is accepted until its
// certificate expires.
//
// Each handshake calls current, for instance Agent.Pair or Source.Pair, so it uses a renewed credential. Sessions are
// not resumed, so every connection is verified.
func PeerClientTLS(current func() *Pair, authorize func(pki.SPIFFEID) error) *tls.Config {
	c := peerTLS(current, x509.ExtKeyUsageServerAuth, authorize)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificateOf(current) }
	return c
}

func certificateOf(current func() *Pair) (*tls.Certificate, error) {
	if p := current(); p != nil {
		return p.TLS(), nil
	}
	return nil, errNotEnrolled()
}

func peerTLS(current func() *Pair, usage x509.ExtKeyUsage, authorize func(pki.SPIFFEID) error) *tls.Config {
	return verifyingTLS(func(peer []*x509.Certificate) error {
		own := current()
		if own == nil {
			return errNotEnrolled()
		}
		id, err := verifyPeer(peer, own, usage, time.Now())
		if err != nil {
			return err
		}
		if authorize == nil {
			return errors.New("no function authorizes the peer: pass one that accepts the expected identities")
		}
		return authorize(id)
	})
}

// verifyPeer verifies the certificate of a member of the trust domain, and returns its identity.
func verifyPeer(peer []*x509.Certificate, own *Pair, usage x509.ExtKeyUsage, now time.Time) (pki.SPIFFEID, error) {
	leaf := peer[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: own.RootPool(), Intermediates: poolOf(peer[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return pki.SPIFFEID{}, fmt.Errorf("verify the peer's certificate: %w", err)
	}
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return pki.SPIFFEID{}, fmt.Errorf("the peer's certificate must name one SPIFFE ID and not be a CA: it has %d URIs",
			len(leaf.URIs))
	}
	id, err := pki.ParseSPIFFEID(leaf.URIs[0].String())
	if err != nil {
		return pki.SPIFFEID{}, err
	}
	if id.TrustDomain() != own.ID().TrustDomain() {
		return pki.SPIFFEID{}, fmt.Errorf("the peer %s is not a member of the trust domain %s", id, own.ID().TrustDomain())
	}
	return id, nil
}
