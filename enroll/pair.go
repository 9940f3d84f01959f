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

// Origin says where a Pair came from. Every field may be empty.
type Origin struct {
	// Server is the address whose Authority enrolled the identity, and renews it.
	Server string `json:"server,omitempty"`
	// Token is the TokenID, as text, of the token that was spent on the enrollment.
	Token string `json:"token,omitempty"`
	// Obtained is when the certificate arrived, by this machine's clock. Certificates are back-dated, so this, not
	// NotBefore, is where this machine's part of its life begins.
	Obtained time.Time `json:"obtained,omitzero"`
	// Renewal is when the Authority wants the certificate renewed.
	Renewal RenewalWindow `json:"renewal_window,omitzero"`
	// BundleRevision is the revision of the trust bundle, in hexadecimal, that came with the certificate.
	BundleRevision string `json:"bundle_revision,omitempty"`
}

// Pair is a credential together with its private key. NewPair checked that they belong together. It does not change,
// and is safe for concurrent use.
type Pair struct {
	Credential
	Key    crypto.Signer
	Origin Origin

	id    pki.SPIFFEID
	tls   *tls.Certificate
	root  *x509.Certificate // that the chain leads to
	roots *x509.CertPool
}

// NewPair checks that the key is the certificate's, that the certificate chains to one of the roots, and that it names
// exactly one identity. An expired certificate passes, and one from the future does: a device's clock may be wrong, and
// what is on its disk is still what it has. The chain is checked at the moment of the certificate's life nearest to now.
func NewPair(c Credential, key crypto.Signer, from Origin, now time.Time) (*Pair, error) {
	leaf := c.Certificate
	if leaf == nil || key == nil {
		return nil, errors.New("enroll: a pair needs a certificate and a key")
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("enroll: the certificate is for another key")
	}
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return nil, errors.New("enroll: the certificate is not an identity's: it must name one SPIFFE ID and be no CA's (SPIFFE X.509-SVID section 2)")
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
		return nil, fmt.Errorf("enroll: the certificate does not chain to its roots: %w", err)
	}
	p.root = paths[0][len(paths[0])-1]
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

// TLS returns the certificate, its chain without the root, and the key, for a tls.Config. Callers share it and must not change it.
func (p *Pair) TLS() *tls.Certificate { return p.tls }

// TLSWithRoot returns the same with the root at the end of the chain: what a Brevet server shows, because an agent
// with a token knows no more of the root than its fingerprint.
func (p *Pair) TLSWithRoot() *tls.Certificate {
	c := *p.tls
	c.Certificate = append(slices.Clone(c.Certificate), p.root.Raw)
	return &c
}

// RootPool returns the trust domain's roots. Callers share it and must not change it.
func (p *Pair) RootPool() *x509.CertPool { return p.roots }

// Serial returns the certificate's serial number as OpenSSL prints it.
func (p *Pair) Serial() string {
	s, err := pki.SerialFromInt(p.Certificate.SerialNumber)
	if err != nil {
		return fmt.Sprintf("%X", p.Certificate.SerialNumber) // not one of Brevet's making
	}
	return s.String()
}

// Expired reports whether the certificate's life is over at a time.
func (p *Pair) Expired(now time.Time) bool { return now.After(p.Certificate.NotAfter) }

func (p *Pair) validAt(at time.Time) bool {
	return !at.Before(p.Certificate.NotBefore) && !p.Expired(at)
}

// early reports whether the certificate is of no use yet because the clock that it was obtained by was ahead: renewing
// it mends that. Where the clock is behind, a new certificate would be from the future as well.
func (p *Pair) early(now time.Time) bool {
	return now.Before(p.Certificate.NotBefore) && now.Before(p.Origin.Obtained)
}

// span returns the part of the certificate's life that is this machine's: from its arrival, where that is known and
// can be true, to its end.
func (p *Pair) span() (start, end time.Time) {
	start, end = p.Certificate.NotBefore, p.Certificate.NotAfter
	if at := p.Origin.Obtained; at.After(start) && at.Before(end) {
		start = at
	}
	return start, end
}
