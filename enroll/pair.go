package enroll

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Origin says how a Pair was obtained. Every field may be empty.
type Origin struct {
	// Server is the address of the server that enrolled the identity and renews its certificates.
	Server string `json:"server,omitempty"`
	// Token is the TokenID of the token in the enrollment, as text.
	Token string `json:"token,omitempty"`
	// TPM is the path of the TPM that the key is in. It is empty for a key in a file.
	TPM string `json:"tpm,omitempty"`
	// Attested is true if the identity enrolled with the attestation of its TPM. Then renewals attest their keys too,
	// because the enrollment may require it.
	Attested bool `json:"attested,omitempty"`
	// Obtained is when the certificate arrived, by this machine's clock. This machine can use the certificate from then
	// on. NotBefore is earlier, because certificates are back-dated.
	Obtained time.Time `json:"obtained,omitzero"`
	// Renewal is when the Authority wants the certificate renewed.
	Renewal RenewalWindow `json:"renewal_window,omitzero"`
	// BundleRevision is the revision of the trust bundle in use, in hexadecimal.
	BundleRevision string `json:"bundle_revision,omitempty"`
}

// Pair is a credential with its private key. NewPair has verified that they belong together. A Pair is immutable and
// safe for concurrent use.
type Pair struct {
	Credential
	Key    crypto.Signer
	Origin Origin

	id    pki.SPIFFEID
	tls   *tls.Certificate
	root  *x509.Certificate // last certificate of the shortest verified chain
	roots *x509.CertPool
}

// NewPair verifies that the key belongs to the certificate, that the certificate chains to one of the roots, and that
// it names exactly one identity. A device's clock may be wrong, so NewPair accepts certificates that are expired or not
// yet valid. It verifies the chain at the time in the certificate's validity period that is nearest to now.
func NewPair(c Credential, key crypto.Signer, from Origin, now time.Time) (*Pair, error) {
	leaf := c.Certificate
	if leaf == nil || key == nil {
		return nil, errors.New("a pair needs a certificate and a key")
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return nil, errors.New("the certificate is not an identity certificate: it must carry one SPIFFE ID and " +
			"not be a CA certificate (SPIFFE X.509-SVID section 2)")
	}
	id, err := pki.ParseSPIFFEID(leaf.URIs[0].String())
	if err != nil {
		return nil, err
	}
	p := &Pair{Credential: c, Key: key, Origin: from, id: id, roots: poolOf(c.Roots)}
	if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore
	} else if now.After(leaf.NotAfter) {
		now = leaf.NotAfter
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots: p.roots, Intermediates: poolOf(c.Chain), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("the certificate does not chain to its roots: %w", err)
	}
	// The shortest chain has no cross-certificate.
	shortest := slices.MinFunc(paths, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
	p.root = shortest[len(shortest)-1]
	p.tls = &tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for _, ca := range c.Chain {
		p.tls.Certificate = append(p.tls.Certificate, ca.Raw)
	}
	return p, nil
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// ID returns the identity that the certificate names.
func (p *Pair) ID() pki.SPIFFEID { return p.id }

// TLS returns the certificate, its chain without the root, and the key for a [tls.Config]. Callers must not change it.
func (p *Pair) TLS() *tls.Certificate { return p.tls }

// TLSWith returns the certificate and the key for a [tls.Config], with another chain than TLS returns.
func (p *Pair) TLSWith(chain []*x509.Certificate) *tls.Certificate {
	c := *p.tls
	c.Certificate = [][]byte{p.Certificate.Raw}
	for _, ca := range chain {
		c.Certificate = append(c.Certificate, ca.Raw)
	}
	return &c
}

// Root returns the root of the certificate's shortest chain.
func (p *Pair) Root() *x509.Certificate { return p.root }

// RootPool returns the trust domain's roots. Callers must not change the pool.
func (p *Pair) RootPool() *x509.CertPool { return p.roots }

// Serial returns the certificate's serial number as OpenSSL prints it.
func (p *Pair) Serial() string {
	s, err := pki.SerialFromInt(p.Certificate.SerialNumber)
	if err != nil {
		return fmt.Sprintf("%X", p.Certificate.SerialNumber) // another CA has issued the certificate
	}
	return s.String()
}

// Expired reports whether the certificate has expired at the given time.
func (p *Pair) Expired(now time.Time) bool { return now.After(p.Certificate.NotAfter) }

func (p *Pair) validAt(at time.Time) bool {
	return !at.Before(p.Certificate.NotBefore) && !p.Expired(at)
}

// notYetValid reports whether the certificate is not yet valid because the machine's clock was ahead when the
// certificate was issued. A renewal corrects that. If the clock is behind now, a renewed certificate would not be valid
// yet either, so notYetValid returns false.
func (p *Pair) notYetValid(now time.Time) bool {
	return now.Before(p.Certificate.NotBefore) && now.Before(p.Origin.Obtained)
}

// usableLife returns the part of the certificate's validity period in which this machine can use it. The part starts
// when the certificate arrived, if that time is in the validity period.
func (p *Pair) usableLife() (start, end time.Time) {
	start, end = p.Certificate.NotBefore, p.Certificate.NotAfter
	if at := p.Origin.Obtained; at.After(start) && at.Before(end) {
		start = at
	}
	return start, end
}

// withBundle returns a pair with the same key and certificate, and the roots of a trust bundle. If the certificate does
// not chain to them, the pair keeps the root that it chains to.
func (p *Pair) withBundle(b TrustBundle, now time.Time) (*Pair, error) {
	c, from := p.Credential, p.Origin
	c.Roots, c.BundleRevision, from.BundleRevision = b.Roots, b.Revision, b.Revision
	next, err := NewPair(c, p.Key, from, now)
	if err == nil {
		return next, nil
	}
	c.Roots = append(slices.Clone(b.Roots), p.root)
	return NewPair(c, p.Key, from, now)
}

// sameAs reports whether two pairs have the same certificates.
func (p *Pair) sameAs(other *Pair) bool {
	equal := (*x509.Certificate).Equal
	return p.Certificate.Equal(other.Certificate) && slices.EqualFunc(p.Chain, other.Chain, equal) &&
		slices.EqualFunc(p.Roots, other.Roots, equal)
}
