package authz

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// A Client is the certificate that a client sent in its TLS handshake.
type Client struct {
	leaf *x509.Certificate
	sum  [sha256.Size]byte // SHA-256 of the certificate in DER
}

// maxParts is the maximum number of names, attributes and extensions in a client's certificate. Parsed, each takes up to
// a hundred times as much memory as in DER, and the server keeps the certificate as long as the connection.
const maxParts = 128

// NewClient parses a client's certificate in DER. It copies der. If the certificate does not parse, or has too many
// names, NewClient returns a [pki.Refusal].
func NewClient(der []byte) (*Client, error) {
	leaf, err := x509.ParseCertificate(bytes.Clone(der))
	if err != nil {
		return nil, pki.Refuse(pki.RuleCertificate, "connect with a certificate in DER, or with none", "the client certificate does not parse")
	}
	if n := partsOf(leaf); n > maxParts {
		return nil, pki.Refuse(pki.RuleCertificate, "connect with a certificate that has fewer names, or with none",
			"the certificate has %d names, attributes and extensions, and the maximum is %d", n, maxParts)
	}
	return &Client{leaf: leaf, sum: sha256.Sum256(der)}, nil
}

// partsOf returns the number of names, attributes and extensions in a certificate.
func partsOf(c *x509.Certificate) int {
	return len(c.Subject.Names) + len(c.Issuer.Names) + len(c.Extensions) + len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage) +
		len(c.DNSNames) + len(c.EmailAddresses) + len(c.IPAddresses) + len(c.URIs) +
		len(c.OCSPServer) + len(c.IssuingCertificateURL) + len(c.CRLDistributionPoints) + len(c.Policies) + len(c.PolicyMappings) +
		len(c.PermittedDNSDomains) + len(c.ExcludedDNSDomains) + len(c.PermittedIPRanges) + len(c.ExcludedIPRanges) +
		len(c.PermittedEmailAddresses) + len(c.ExcludedEmailAddresses) + len(c.PermittedURIDomains) + len(c.ExcludedURIDomains)
}

// maxChains is the maximum number of verified chains in the cache. A full cache is emptied.
const maxChains = 8192

// A chain is the result of verifying a certificate's chain: signatures, purposes and names, which never change. The
// Authorizer checks validity and revocation, which can change, at every call.
type chain struct {
	caller    Caller
	notBefore time.Time // latest notBefore in the chain
	notAfter  time.Time // earliest notAfter in the chain
}

// chainCache holds the chains of client certificates that verified, keyed by the SHA-256 of the certificate. It does
// not hold failures. It is safe for concurrent use.
type chainCache struct {
	mu  sync.Mutex
	all map[[sha256.Size]byte]chain
}

// chainOf returns the verified chain of a certificate, from the cache if possible.
func (a *Authorizer) chainOf(client *Client, now time.Time) (chain, error) {
	a.chains.mu.Lock()
	v, ok := a.chains.all[client.sum]
	a.chains.mu.Unlock()
	if ok && !now.Before(v.notBefore) && !now.After(v.notAfter) {
		return v, nil
	}
	v, err := a.verifyChain(client.leaf, now)
	if err != nil {
		return v, err
	}
	a.chains.mu.Lock()
	defer a.chains.mu.Unlock()
	if len(a.chains.all) >= maxChains || a.chains.all == nil {
		a.chains.all = map[[sha256.Size]byte]chain{}
	}
	a.chains.all[client.sum] = v
	return v, nil
}

// verifyChain verifies signatures, purpose and identity (RFC 5280 §6).
func (a *Authorizer) verifyChain(leaf *x509.Certificate, now time.Time) (chain, error) {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.config.Roots, Intermediates: a.config.Intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil || len(chains[0]) < 2 {
		return chain{}, pki.Refuse(pki.RuleCertificate, "use a certificate for client authentication from this CA", "the certificate does not verify")
	}
	serial, err := pki.SerialFromInt(leaf.SerialNumber)
	if err != nil || len(leaf.URIs) != 1 {
		return chain{}, pki.Refuse(pki.RuleCertificate, "use a certificate from this CA", "the certificate names no identity")
	}
	id, err := pki.ParseSPIFFEID(leaf.URIs[0].String())
	if err != nil || id.TrustDomain() != a.config.TrustDomain {
		return chain{}, pki.Refuse(pki.RuleCertificate, "use a certificate from this CA",
			"the certificate names no identity of %s", a.config.TrustDomain)
	}
	v := chain{caller: Caller{
		ID: id, Key: pki.HashSPKI(leaf.RawSubjectPublicKeyInfo), NotAfter: leaf.NotAfter,
		Certificate: pki.CertRef{Issuer: pki.IssuerOf(chains[0][1]), Serial: serial},
	}}
	for _, c := range chains[0] {
		if v.notBefore.IsZero() || c.NotBefore.After(v.notBefore) {
			v.notBefore = c.NotBefore
		}
		if v.notAfter.IsZero() || c.NotAfter.Before(v.notAfter) {
			v.notAfter = c.NotAfter
		}
	}
	return v, nil
}
