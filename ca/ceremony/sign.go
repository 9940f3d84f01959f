package ceremony

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// SignSpec says what a root grants a CA that asks for a certificate.
type SignSpec struct {
	// Lifetime is from Now to notAfter, in whole seconds; it may not reach beyond the root's notAfter.
	Lifetime time.Duration
	// PathLength is how many CAs may follow, from 0; less than the root's own. An issuing CA has 0.
	PathLength int
	// TrustDomain is the SPIFFE trust domain that the CA is for.
	TrustDomain string
	// Constrain holds the CA to TrustDomain, and to PermittedDNS if there are any, by a critical name constraint (RFC
	// 5280 §4.2.1.10). Some verifiers cannot read it; docs/relying-parties.md names them.
	Constrain bool
	// PermittedDNS are the domains under which a constrained CA may certify DNS names; all if there are none.
	PermittedDNS []string
	// CRLURL is where the root's CRL is published, and IssuerURL its certificate in DER. Either may be empty. The
	// scheme is http: fetching them must not depend on what they are needed to verify (RFC 5280 §8).
	CRLURL, IssuerURL string
	Now               time.Time
	// Existing are the CA certificates that the root has signed before: every generation has its own name and key.
	Existing []*x509.Certificate
}

// Sign makes the certificate of the CA that asks for it with a PKCS #10 request, and returns its DER. Of the request
// only subject and key are taken over. By default the certificate has no name constraint, because mbedTLS, rustls and
// others refuse every chain with one. How far a constraint carries depends on the verifier: OpenSSL holds SPIFFE IDs to
// exactly the trust domain, Go admits its subdomains too, GnuTLS does not look. So a relying party that accepts a SPIFFE
// ID compares the trust domain itself.
func Sign(root *x509.Certificate, signer crypto.Signer, request []byte, spec SignSpec) ([]byte, error) {
	if err := checkParent(root, signer, x509.KeyUsageCertSign, spec.Now); err != nil {
		return nil, err
	}
	csr, subject, err := readRequest(request)
	if err != nil {
		return nil, err
	}
	if err := checkGeneration(root, csr.PublicKey, subject, spec.Existing); err != nil {
		return nil, err
	}
	if err := spec.check(root); err != nil {
		return nil, err
	}
	template, err := caTemplate(spec.Now, spec.Lifetime, spec.PathLength)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(root.NotAfter) {
		longest := root.NotAfter.Sub(template.NotBefore)
		return nil, pki.Refuse(pki.RuleLifetime, fmt.Sprintf("the longest lifetime that passes is %s", longest),
			"a lifetime of %s ends at %s, after the root's own end at %s", spec.Lifetime,
			template.NotAfter.Format(time.RFC3339), root.NotAfter.UTC().Format(time.RFC3339))
	}
	template.RawSubject = subject.bytes()
	if spec.Constrain {
		template.PermittedDNSDomainsCritical = true // of all name constraints, whatever its name says
		template.PermittedURIDomains = []string{spec.TrustDomain}
		template.PermittedDNSDomains = spec.PermittedDNS
	}
	template.CRLDistributionPoints = nonEmpty(spec.CRLURL)
	template.IssuingCertificateURL = nonEmpty(spec.IssuerURL)
	if template.SignatureAlgorithm, err = signatureAlgorithm(signer.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, csr.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("ceremony: sign certificate: %w", err)
	}
	return der, nil
}

func nonEmpty(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}

// checkParent refuses a CA certificate that cannot sign what is asked of it at this time.
func checkParent(root *x509.Certificate, signer crypto.Signer, usage x509.KeyUsage, now time.Time) error {
	refuse := func(fix, detail string, args ...any) error {
		return pki.Refuse(pki.RuleParent, fix, detail, args...)
	}
	switch {
	case !root.BasicConstraintsValid || !root.IsCA || root.KeyUsage&usage == 0:
		return refuse("give the root's certificate", "%q is not the certificate of a CA that may sign this", nameText(root.RawSubject))
	case len(root.SubjectKeyId) == 0:
		return refuse("give a root with one", "the certificate %q has no subject key identifier", nameText(root.RawSubject))
	case !sameKey(root.PublicKey, signer.Public()):
		return refuse("give the certificate and the key of one and the same root", "the key is not that of the certificate %q",
			nameText(root.RawSubject))
	case now.Before(root.NotBefore) || now.After(root.NotAfter):
		return refuse("set the clock right, or make a new root", "the root %q is valid from %s to %s, not at %s", nameText(root.RawSubject),
			root.NotBefore.UTC().Format(time.RFC3339), root.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkGeneration refuses a CA that takes over another one's name or key. An issuer is found by its name, so that
// two generations of one name would answer for each other's certificates and CRLs.
func checkGeneration(root *x509.Certificate, key crypto.PublicKey, subject Subject, existing []*x509.Certificate) error {
	if sameKey(key, root.PublicKey) {
		return pki.Refuse(pki.RuleKeyReserved, "make a new key for the issuing CA", "the request is for the root's own key")
	}
	if sameName(subject.bytes(), root.RawSubject) {
		return pki.Refuse(pki.RuleSubject, "give the issuing CA a name of its own", "%s is the root's own subject", subject)
	}
	for _, c := range existing {
		if sameName(subject.bytes(), c.RawSubject) {
			return pki.Refuse(pki.RuleSubject, "count the generation up: every one has its own subject",
				"%s is the subject of the CA certificate with the serial number %s", subject, serialText(c.SerialNumber))
		}
		if sameKey(key, c.PublicKey) {
			return pki.Refuse(pki.RuleKeyInUse, "make a new key: every generation has its own",
				"the request is for the key of %s, serial number %s", nameText(c.RawSubject), serialText(c.SerialNumber))
		}
	}
	return nil
}

func (spec SignSpec) check(root *x509.Certificate) error {
	if spec.PathLength < 0 {
		return refusePathLength(spec.PathLength)
	}
	if limited := root.MaxPathLen >= 0; limited && spec.PathLength >= root.MaxPathLen {
		if root.MaxPathLen == 0 {
			return pki.Refuse(pki.RuleParent, "use a root with a path length of 1 or more", "the root's path length of 0 lets it sign no CA")
		}
		return pki.Refuse(pki.RuleParent, fmt.Sprintf("the longest that passes is %d", root.MaxPathLen-1),
			"a path length of %d does not fit under the root's own of %d", spec.PathLength, root.MaxPathLen)
	}
	if err := CheckTrustDomain(spec.TrustDomain); err != nil {
		return err
	}
	if err := spec.checkConstraint(); err != nil {
		return err
	}
	for _, link := range append(nonEmpty(spec.CRLURL), nonEmpty(spec.IssuerURL)...) {
		if err := pki.CheckWebURL(link); err != nil {
			return pki.Refuse(pki.RuleRequest, "use one like http://ca.example/root.crl", "%v", err)
		}
	}
	return nil
}

// checkConstraint refuses domains that a name constraint cannot hold.
func (spec SignSpec) checkConstraint() error {
	if !spec.Constrain {
		if len(spec.PermittedDNS) > 0 {
			return pki.Refuse(pki.RuleRequest, "constrain the CA, or leave the DNS domains out",
				"DNS domains were given for a CA that is not constrained")
		}
		return nil
	}
	if !isQualified(spec.TrustDomain) {
		return pki.Refuse(pki.RuleTrustDomain, "use a fully qualified domain name such as fleet.example (RFC 5280 section 4.2.1.10)",
			"a name constraint cannot be made of the trust domain %q", spec.TrustDomain)
	}
	for _, domain := range spec.PermittedDNS {
		if !isQualified(domain) {
			return pki.Refuse(pki.RuleRequest, "use a fully qualified domain name in lower case, such as fleet.example, which admits its subdomains too",
				"%q is not a DNS domain", domain)
		}
	}
	return nil
}

// CheckTrustDomain refuses a trust domain that relying parties cannot parse as the host of a URI. Java takes host names
// (RFC 1123 §2.1) alone, which excludes some that SPIFFE allows: those with an underscore, with a hyphen at either end
// of a label, or with a last label that begins with a digit, as IPv4 addresses do.
func CheckTrustDomain(name string) error {
	if isHost(name) {
		return nil
	}
	return pki.Refuse(pki.RuleTrustDomain, "use a host name such as fleet.example: lower-case letters, digits, and hyphens inside of labels",
		"%q cannot be a trust domain: Java and others cannot parse it in certificates, and it could never be changed", name)
}

// isHost reports whether a name is a host name (RFC 1123 §2.1) in lower case that is no IP address.
func isHost(name string) bool {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		bad := strings.ContainsFunc(label, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })
		if bad || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	last := labels[len(labels)-1]
	return len(name) <= 253 && last[0] >= 'a'
}

// isQualified reports whether a name is what RFC 5280 §4.2.1.10 lets a constraint be: a fully qualified domain name,
// without the leading dot, which would turn the trust domain into its subdomains.
func isQualified(name string) bool { return isHost(name) && strings.Contains(name, ".") }
