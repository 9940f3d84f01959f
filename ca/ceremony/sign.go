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

// SignSpec describes the certificate that a root signs for another CA.
type SignSpec struct {
	// Lifetime is the time from Now to notAfter, in whole seconds. It must end by the root's notAfter.
	Lifetime time.Duration
	// PathLength is the maximum number of CAs below this one, less than the root's. An issuing CA has 0.
	PathLength int
	// TrustDomain is the SPIFFE trust domain of the CA.
	TrustDomain string
	// Constrain adds a critical name constraint (RFC 5280 section 4.2.1.10) that restricts the CA to TrustDomain and,
	// if there are any, to PermittedDNS. Some verifiers cannot read it; docs/relying-parties.md lists them.
	Constrain bool
	// PermittedDNS lists the domains in which a constrained CA may certify DNS names. If it is empty, all are
	// permitted.
	PermittedDNS []string
	// CRLURL is the URL of the root's CRL, and IssuerURL that of its certificate in DER. Either may be empty. The
	// scheme must be http, because fetching them must not depend on a certificate that they are needed to verify (RFC
	// 5280 section 8).
	CRLURL, IssuerURL string
	Now               time.Time
	// Existing contains the CA certificates that the root has signed before. Each generation needs another name and
	// key.
	Existing []*x509.Certificate
}

// Sign returns the DER of a certificate for the CA that made a PKCS #10 request. It takes only subject and key from the
// request. By default the certificate has no name constraint, because mbedTLS, rustls and others refuse chains that
// contain one. Verifiers apply a constraint differently: OpenSSL restricts SPIFFE IDs to exactly the trust domain, Go
// also accepts its subdomains, and GnuTLS ignores it. A relying party must therefore compare the trust domain of a
// SPIFFE ID itself.
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
	template, err := spec.template(root.NotAfter)
	if err != nil {
		return nil, err
	}
	template.RawSubject = subject.bytes()
	return certify(template, root, csr.PublicKey, signer)
}

// template returns the content of a CA certificate apart from its subject. It refuses a lifetime that ends after end.
func (spec SignSpec) template(end time.Time) (*x509.Certificate, error) {
	template, err := caTemplate(spec.Now, spec.Lifetime, spec.PathLength)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(end) {
		longest := end.Sub(template.NotBefore)
		return nil, pki.Refuse(pki.RuleLifetime, fmt.Sprintf("use a lifetime of at most %s", longest),
			"a lifetime of %s ends at %s, after the root's own end at %s", spec.Lifetime,
			template.NotAfter.Format(time.RFC3339), end.UTC().Format(time.RFC3339))
	}
	if spec.Constrain {
		template.PermittedDNSDomainsCritical = true // despite its name, this applies to all name constraints
		template.PermittedURIDomains = []string{spec.TrustDomain}
		template.PermittedDNSDomains = spec.PermittedDNS
	}
	template.CRLDistributionPoints = nonEmpty(spec.CRLURL)
	template.IssuingCertificateURL = nonEmpty(spec.IssuerURL)
	return template, nil
}

// certify signs a certificate with the key of a root.
func certify(template, root *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	var err error
	if template.SignatureAlgorithm, err = signatureAlgorithm(signer.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, key, signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

// nonEmpty returns a list of the text, or nil if it is empty.
func nonEmpty(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}

// checkParent refuses a CA certificate that cannot be used for signing with the key at this time.
func checkParent(root *x509.Certificate, signer crypto.Signer, usage x509.KeyUsage, now time.Time) error {
	refuse := func(fix, detail string, args ...any) error {
		return pki.Refuse(pki.RuleParent, fix, detail, args...)
	}
	switch {
	case !root.BasicConstraintsValid || !root.IsCA || root.KeyUsage&usage == 0:
		return refuse("give the root's certificate", "%q is not a CA certificate with the key usage for this", nameText(root.RawSubject))
	case len(root.SubjectKeyId) == 0:
		return refuse("give a root that has one", "the certificate %q has no subject key identifier", nameText(root.RawSubject))
	case !sameKey(root.PublicKey, signer.Public()):
		return refuse("give the certificate and the key of the same root", "the key does not belong to the certificate %q",
			nameText(root.RawSubject))
	case now.Before(root.NotBefore) || now.After(root.NotAfter):
		return refuse("set the clock right, or make a new root", "the root %q is valid from %s to %s, not at %s", nameText(root.RawSubject),
			root.NotBefore.UTC().Format(time.RFC3339), root.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkGeneration refuses a CA with the name or key of another one. Verifiers find an issuer by its name, so two
// generations with the same name would be confused in the verification of certificates and CRLs.
func checkGeneration(root *x509.Certificate, key crypto.PublicKey, subject Subject, existing []*x509.Certificate) error {
	if sameKey(key, root.PublicKey) {
		return pki.Refuse(pki.RuleKeyReserved, "make a new key for the issuing CA",
			"the request is for the root's own key")
	}
	if sameName(subject.bytes(), root.RawSubject) {
		return pki.Refuse(pki.RuleSubject, "give the issuing CA another name", "%s is the root's own subject", subject)
	}
	for _, c := range existing {
		if sameName(subject.bytes(), c.RawSubject) {
			return pki.Refuse(pki.RuleSubject, "increase the generation number: each generation needs another subject",
				"%s is the subject of the CA certificate with the serial number %s", subject, serialText(c.SerialNumber))
		}
		if sameKey(key, c.PublicKey) {
			return pki.Refuse(pki.RuleKeyInUse, "make a new key: each generation needs another one",
				"the request is for the key of %s, serial number %s", nameText(c.RawSubject), serialText(c.SerialNumber))
		}
	}
	return nil
}

// check refuses a specification that contradicts itself or the root.
func (spec SignSpec) check(root *x509.Certificate) error {
	if spec.PathLength < 0 {
		return refusePathLength(spec.PathLength)
	}
	if limited := root.MaxPathLen >= 0; limited && spec.PathLength >= root.MaxPathLen {
		if root.MaxPathLen == 0 {
			return pki.Refuse(pki.RuleParent, "use a root with a path length of 1 or more",
				"the root has path length 0 and cannot sign a CA")
		}
		return pki.Refuse(pki.RuleParent, fmt.Sprintf("use at most %d", root.MaxPathLen-1),
			"a path length of %d needs a root with more than its %d", spec.PathLength, root.MaxPathLen)
	}
	return spec.checkNames()
}

// checkNames refuses a trust domain, a constraint or a URL that cannot be in a certificate.
func (spec SignSpec) checkNames() error {
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

// checkConstraint refuses domains that cannot be in a name constraint.
func (spec SignSpec) checkConstraint() error {
	if !spec.Constrain {
		if len(spec.PermittedDNS) > 0 {
			return pki.Refuse(pki.RuleRequest, "constrain the CA, or omit the DNS domains",
				"DNS domains were given for a CA that is not constrained")
		}
		return nil
	}
	if !isQualified(spec.TrustDomain) {
		return pki.Refuse(pki.RuleTrustDomain, "use a fully qualified domain name such as fleet.example (RFC 5280 section 4.2.1.10)",
			"the trust domain %q cannot be in a name constraint", spec.TrustDomain)
	}
	for _, domain := range spec.PermittedDNS {
		if !isQualified(domain) {
			return pki.Refuse(pki.RuleRequest, "use a fully qualified domain name in lower case, such as fleet.example, which includes its subdomains",
				"%q is not a DNS domain", domain)
		}
	}
	return nil
}

// CheckTrustDomain refuses a trust domain that relying parties cannot parse as the host of a URI. Java accepts only
// host names (RFC 1123 section 2.1). That excludes some trust domains that SPIFFE allows. These have an underscore, a
// hyphen at either end of a label, or a last label that starts with a digit, as in IPv4 addresses.
func CheckTrustDomain(name string) error {
	if isHost(name) {
		return nil
	}
	return pki.Refuse(pki.RuleTrustDomain, "use a host name such as fleet.example: lower-case letters, digits, and hyphens inside of labels",
		"%q cannot be a trust domain: Java and others cannot parse it in certificates, and it could never be changed", name)
}

// isHost reports whether a name is a host name (RFC 1123 section 2.1) in lower case and not an IP address.
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

// isQualified reports whether a name is a fully qualified domain name, as RFC 5280 section 4.2.1.10 requires for a
// constraint. It has no leading dot, which would permit only the subdomains of the trust domain.
func isQualified(name string) bool { return isHost(name) && strings.Contains(name, ".") }
