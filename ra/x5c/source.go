package x5c

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"regexp"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// DefaultMaxChain is the default of Source.MaxChain: device, two intermediate CAs and root.
const DefaultMaxChain = 4

// Source is a trust source: the CA certificates of one product line of a manufacturer, and what its devices must
// satisfy.
type Source struct {
	// Name identifies the product line, as the fact x5c.source. It has 1 to 63 lower-case letters, digits and hyphens.
	Name string
	// Roots are the CA certificates that are trusted without further proof. They need not be self-signed: with the
	// issuing CA of a product line as root, the manufacturer's other products are not trusted.
	Roots []*x509.Certificate
	// Intermediates are CA certificates for devices that do not send theirs. May be empty.
	Intermediates []*x509.Certificate
	// Keys are the types of keys that devices may have. If it is empty, they may have any of pki.KeyTypes.
	Keys []pki.KeyType
	// MaxChain is the maximum number of certificates from the device to the root, including both. Zero means
	// DefaultMaxChain, and at most 8 is allowed.
	MaxChain int
	// CRLs are the manufacturer's CRLs. A certificate that is listed in the newest CRL of its issuer is refused. Nil
	// means that there are none.
	CRLs *CRLs
	// RequireCRLs means that each certificate except the root must be covered by a current CRL of its issuer.
	RequireCRLs bool
}

var sourceName = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// source is a trust source that was checked.
type source struct {
	name          string
	anchors       map[pki.IssuerID]bool // the roots
	roots         *x509.CertPool
	intermediates *x509.CertPool
	issuers       map[string]bool // the subjects of roots and intermediates, in DER
	keys          []pki.KeyType
	maxChain      int
	crls          *CRLs
	requireCRLs   bool
}

// sources are the trust sources of a policy. A device belongs to the first one that its chain leads to.
type sources []*source

// CheckName returns an error if a text is not the name of a source.
func CheckName(name string) error {
	if sourceName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%.100q is not the name of a source: use 1 to 63 lower-case letters, digits and hyphens", name)
}

// compile checks the source, also against the sources before it.
func (s Source) compile(earlier []*source) (*source, error) {
	if err := CheckName(s.Name); err != nil {
		return nil, err
	}
	c := &source{
		name: s.Name, anchors: map[pki.IssuerID]bool{}, roots: x509.NewCertPool(), intermediates: x509.NewCertPool(),
		issuers: map[string]bool{}, keys: s.Keys, maxChain: s.MaxChain, crls: s.CRLs, requireCRLs: s.RequireCRLs,
	}
	if c.maxChain == 0 {
		c.maxChain = DefaultMaxChain
	}
	switch {
	case len(s.Roots) == 0:
		return nil, fmt.Errorf("source %s has no root: configure a CA certificate of the manufacturer", s.Name)
	case c.maxChain < 2 || c.maxChain > maxCertificates:
		return nil, fmt.Errorf("source %s allows chains of %d certificates: allow 2 to %d",
			s.Name, s.MaxChain, maxCertificates)
	case s.RequireCRLs && s.CRLs == nil:
		return nil, fmt.Errorf("source %s requires CRLs and has none: configure the manufacturer's CRLs", s.Name)
	}
	if len(c.keys) == 0 {
		c.keys = pki.KeyTypes()
	}
	for _, cert := range slices.Concat(s.Roots, s.Intermediates) {
		if err := checkCA(cert); err != nil {
			return nil, fmt.Errorf("source %s: the certificate of %s cannot be used: %w", s.Name, cert.Subject, err)
		}
		c.issuers[string(cert.RawSubject)] = true
	}
	for _, root := range s.Roots {
		c.roots.AddCert(root)
		c.anchors[pki.IssuerOf(root)] = true
	}
	for _, cert := range s.Intermediates {
		c.intermediates.AddCert(cert)
	}
	for _, other := range earlier {
		if other.name == s.Name {
			return nil, fmt.Errorf("two sources have the name %s", s.Name)
		}
		for _, root := range s.Roots {
			if other.anchors[pki.IssuerOf(root)] {
				return nil, fmt.Errorf("the sources %s and %s have the same root, %s: "+
					"give each source the issuing CA of its product line as root", other.name, s.Name, root.Subject)
			}
		}
	}
	return c, nil
}

// between returns the certificates between the device and a root of the source: the chain without the root, and without
// what follows the root. A certificate with the name and the key of a root counts as this root, because a trust anchor is
// a name and a key (RFC 5280 §6.1.1). If names alone show that the chain does not lead to the source, ok is false.
func (s *source) between(chain []*x509.Certificate) (_ []*x509.Certificate, ok bool) {
	for i, c := range chain[1:] {
		if s.anchors[pki.IssuerOf(c)] {
			return chain[:i+1], true
		}
	}
	top := chain[len(chain)-1]
	return chain, s.issuers[string(top.RawIssuer)] && !bytes.Equal(top.RawIssuer, top.RawSubject)
}
