package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// trialCA is a copy of an issuing CA's chain with other keys. Samples are verified against it with crypto/x509. That
// shows what relying parties would refuse before the issuing key signs it.
type trialCA struct {
	issuing       *x509.Certificate
	key           *ecdsa.PrivateKey
	chain         []*x509.Certificate // from the issuing CA to the root
	roots         *x509.CertPool
	intermediates *x509.CertPool
	constrained   bool // the chain contains name constraints
}

// newTrialCA copies the certificates of a chain, starting with the root, with their extensions.
func newTrialCA(iss IssuingCA) (*trialCA, error) {
	s := &trialCA{roots: x509.NewCertPool(), intermediates: x509.NewCertPool()}
	originals := append(slices.Clone(iss.Chain), iss.Root)
	slices.Reverse(originals)
	for _, original := range originals {
		if err := checkConstraintForms(original); err != nil {
			return nil, err
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate a key for verifying samples: %w", err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), RawSubject: original.RawSubject, NotBefore: original.NotBefore, NotAfter: original.NotAfter,
			ExtraExtensions: original.Extensions, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
		}
		parent, signer := template, key
		if s.issuing != nil {
			parent, signer = s.issuing, s.key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			return nil, fmt.Errorf("copy the certificate of %s: %w", original.Subject, err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read the copy of the certificate of %s: %w", original.Subject, err)
		}
		if s.issuing == nil {
			s.roots.AddCert(cert)
		} else {
			s.intermediates.AddCert(cert)
		}
		s.issuing, s.key, s.chain = cert, key, append([]*x509.Certificate{cert}, s.chain...)
		s.constrained = s.constrained || hasNameConstraints(cert)
	}
	return s, nil
}

func hasNameConstraints(c *x509.Certificate) bool { return nameConstraints(c) != nil }

// nameConstraints returns the value of the name constraints extension, or nil if there is none.
func nameConstraints(c *x509.Certificate) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidNameConstraints) {
			return e.Value
		}
	}
	return nil
}

// nameForms are the context tags of GeneralName (RFC 5280 §4.2.1.6).
var nameForms = []string{
	"otherName", "rfc822Name", "dNSName", "x400Address", "directoryName", "ediPartyName", "uniformResourceIdentifier", "iPAddress", "registeredID",
}

// checkConstraintForms returns an error if a CA certificate constrains names of a form that crypto/x509 does not verify.
// crypto/x509 rejects such a constraint only if the extension is critical; OpenSSL applies it in any case.
func checkConstraintForms(c *x509.Certificate) error {
	value := cryptobyte.String(nameConstraints(c))
	if value == nil {
		return nil
	}
	malformed := fmt.Errorf("the name constraints of %s do not parse: have it signed with those of RFC 5280 section 4.2.1.10, or none", c.Subject)
	var constraints cryptobyte.String
	if !value.ReadASN1(&constraints, cbasn1.SEQUENCE) || !value.Empty() {
		return malformed
	}
	for !constraints.Empty() {
		var subtrees cryptobyte.String
		var which cbasn1.Tag
		if !constraints.ReadAnyASN1(&subtrees, &which) {
			return malformed
		}
		for !subtrees.Empty() {
			var subtree, base cryptobyte.String
			var tag cbasn1.Tag
			if !subtrees.ReadASN1(&subtree, cbasn1.SEQUENCE) || !subtree.ReadAnyASN1(&base, &tag) {
				return malformed
			}
			form := int(tag & 0x1f)
			if form >= len(nameForms) {
				return malformed
			}
			switch nameForms[form] {
			case "rfc822Name", "dNSName", "uniformResourceIdentifier", "iPAddress":
			default:
				return fmt.Errorf("the certificate of %s constrains names of the form %s, which cannot be checked before certificates "+
					"are issued: have it signed with constraints of DNS names, IP addresses and URIs alone, or none (RFC 5280 section 4.2.1.10)",
					c.Subject, nameForms[form])
			}
		}
	}
	return nil
}

// verify returns why relying parties would refuse a certificate with these names for a usage at a time, or nil.
func (s *trialCA) verify(id pki.SPIFFEID, n Names, usage x509.ExtKeyUsage, at time.Time) error {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: at.Add(-time.Second), NotAfter: at.Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id.URL()}, DNSNames: n.DNS,
	}
	for _, ip := range n.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	if usage != x509.ExtKeyUsageAny {
		template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.issuing, s.key.Public(), s.key)
	if err != nil {
		return fmt.Errorf("make a sample: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("read a sample: %w", err)
	}
	if err := s.checkHost(id.TrustDomain()); err != nil {
		return err
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: s.roots, Intermediates: s.intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

// checkHost checks a trust domain against URI constraints as RFC 5280 section 4.2.1.10 defines them: a constraint
// without a leading dot matches only that host. Go also accepts its subdomains, which OpenSSL refuses.
func (s *trialCA) checkHost(trustDomain string) error {
	for _, c := range s.chain {
		admits := func(domain string) bool {
			return trustDomain == domain || strings.HasPrefix(domain, ".") && strings.HasSuffix(trustDomain, domain)
		}
		if permitted := c.PermittedURIDomains; len(permitted) > 0 && !slices.ContainsFunc(permitted, admits) {
			return fmt.Errorf("%s may certify only identities in %s", c.Subject, strings.Join(permitted, ", "))
		}
	}
	return nil
}

// validTime returns a time at which every certificate of the chain is valid, if there is one.
func (s *trialCA) validTime() time.Time {
	latest := s.issuing.NotBefore
	for _, c := range s.chain {
		if c.NotBefore.After(latest) {
			latest = c.NotBefore
		}
	}
	return latest
}

// checkNames refuses names that a name constraint of the chain excludes, because relying parties would refuse the
// certificate (RFC 5280 section 4.2.1.10).
func (s *trialCA) checkNames(id pki.SPIFFEID, n Names) error {
	if !s.constrained {
		return nil
	}
	if err := s.verify(id, n, x509.ExtKeyUsageAny, s.validTime()); err != nil {
		return pki.Refuse(pki.RuleNames, "use names that the name constraints of the CA's chain permit",
			"the issuing CA %s may not certify %s: %v", s.issuing.Subject, id, err)
	}
	return nil
}

// checkUsage returns an error if a CA of the chain has an extended key usage without this one (RFC 5280 section
// 4.2.1.12). Go accepts anyExtendedKeyUsage for every usage; OpenSSL and NSS do not.
func (s *trialCA) checkUsage(usage x509.ExtKeyUsage) error {
	for _, c := range s.chain {
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, usage) {
			return fmt.Errorf("%s does not permit %s: have the CA signed without extended key usage, or with every usage of its profiles "+
				"by name, because OpenSSL does not accept anyExtendedKeyUsage", c.Subject, usageName(usage))
		}
	}
	return nil
}

func usageName(usage x509.ExtKeyUsage) string {
	for name, u := range extKeyUsages {
		if u == usage {
			return name
		}
	}
	return fmt.Sprintf("extended key usage %d", usage)
}

// CheckIssues verifies samples of what a CA will issue with crypto/x509, along its whole chain. The samples have the
// given identity and names of the server. If relying parties would refuse one, the error starts with the configuration
// key that caused it. [IssuingCA.CheckProfiles] verifies samples of profiles.
func (iss IssuingCA) CheckIssues(server pki.SPIFFEID, names Names, now time.Time) error {
	if err := iss.checkTime(now); err != nil {
		return err
	}
	s, err := newTrialCA(iss)
	if err != nil {
		return err
	}
	if err := iss.verifyChain(now); err != nil {
		return err
	}
	subject := iss.Certificate.Subject
	err = s.verify(server, Names{}, x509.ExtKeyUsageAny, now)
	if bad := new(x509.CertificateInvalidError); errors.As(err, bad) && bad.Reason != x509.CANotAuthorizedForThisName {
		return fmt.Errorf("relying parties could not verify certificates issued by %s: %w", subject, err)
	}
	if err != nil {
		return fmt.Errorf("trust_domain: %s may not certify identities in %s: %w: have the CA signed with name constraints that permit the trust domain, or without any",
			subject, server.TrustDomain(), err)
	}
	for _, name := range names.DNS {
		if err := s.verify(server, Names{DNS: []string{name}}, x509.ExtKeyUsageAny, now); err != nil {
			return refusedName(subject, name, err)
		}
	}
	for _, ip := range names.IPs {
		if err := s.verify(server, Names{IPs: []netip.Addr{ip}}, x509.ExtKeyUsageAny, now); err != nil {
			return refusedName(subject, ip.String(), err)
		}
	}
	return nil
}

// refusedName returns the error for a name of the server that the issuing CA must not certify.
func refusedName(subject pkix.Name, name string, err error) error {
	return fmt.Errorf("names: %s may not certify %s: %w: have the CA signed with name constraints that permit it, or remove it from the names",
		subject, name, err)
}

// verifyChain verifies the signatures of the issuing CA's real chain, which the trial CA does not have.
func (iss IssuingCA) verifyChain(now time.Time) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(iss.Root)
	for _, c := range iss.Chain {
		intermediates.AddCert(c)
	}
	_, err := iss.Certificate.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("relying parties could not verify %s: %w", iss.Certificate.Subject, err)
	}
	return nil
}
