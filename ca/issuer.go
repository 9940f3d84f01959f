package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/pki"
)

// Issuer is an issuing CA: its certificate, and its key behind a crypto.Signer that is safe for concurrent use.
type Issuer struct {
	ID          pki.IssuerID
	Certificate *x509.Certificate
	Signer      crypto.Signer
	// Chain is what lies between it and the root, itself first, the root left out.
	Chain []*x509.Certificate
	Root  *x509.Certificate
}

// NewIssuer checks that a certificate may issue, belongs to the key, and chains to the root through the others, which
// may come in any order. A mismatch of key and certificate shows both fingerprints.
func NewIssuer(cert *x509.Certificate, signer crypto.Signer, others []*x509.Certificate) (Issuer, error) {
	have, err := pki.HashKey(signer.Public())
	if err != nil {
		return Issuer{}, fmt.Errorf("ca: key of %s: %w", cert.Subject, err)
	}
	if want := pki.HashSPKI(cert.RawSubjectPublicKeyInfo); have != want {
		return Issuer{}, fmt.Errorf("ca: the token's key does not belong to %s: the certificate has key %s, the token %s; "+
			"install the certificate that was signed for this key, or point token at the other one", cert.Subject, want, have)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 || cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return Issuer{}, fmt.Errorf("ca: %s is not a CA certificate for signing certificates and CRLs (RFC 5280 section 4.2.1.3, 4.2.1.9)", cert.Subject)
	}
	iss := Issuer{ID: pki.IssuerOf(cert), Certificate: cert, Signer: signer}
	at := cert
	for range len(others) + 1 {
		if at.CheckSignatureFrom(at) == nil {
			iss.Root = at
			return iss, nil
		}
		iss.Chain = append(iss.Chain, at)
		next := parentOf(at, others)
		if next == nil {
			return Issuer{}, fmt.Errorf("ca: nothing installed signed %s: install the certificate of %s too", at.Subject, at.Issuer)
		}
		at = next
	}
	return Issuer{}, fmt.Errorf("ca: the chain of %s does not end in a root", cert.Subject)
}

// checkConstraints refuses names that the issuing CA's name constraints exclude (RFC 5280 §4.2.1.10): relying parties
// would refuse the certificate.
func (iss Issuer) checkConstraints(id pki.SPIFFEID, n Names) error {
	c := iss.Certificate
	if uris := c.PermittedURIDomains; len(uris) > 0 && !slices.Contains(uris, id.TrustDomain()) {
		return pki.Refuse(pki.RuleNames, "use an identity of "+strings.Join(uris, " or "),
			"the issuing CA may not certify identities of %s", id.TrustDomain())
	}
	for _, name := range n.DNS {
		if domains := c.PermittedDNSDomains; len(domains) > 0 && !under(name, domains) || under(name, c.ExcludedDNSDomains) {
			return pki.Refuse(pki.RuleNames, "use names that the CA's name constraints permit: "+strings.Join(domains, ", "),
				"the issuing CA may not certify %s", name)
		}
	}
	return nil
}

// under reports whether a DNS name is one of the domains or below one of them.
func under(name string, domains []string) bool {
	return slices.ContainsFunc(domains, func(d string) bool {
		d = strings.TrimPrefix(strings.ToLower(d), ".")
		return d == "" || name == d || strings.HasSuffix(name, "."+d)
	})
}

func parentOf(c *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, p := range among {
		if c.CheckSignatureFrom(p) == nil {
			return p
		}
	}
	return nil
}
