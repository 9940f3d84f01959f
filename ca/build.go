package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// Names are the names in a certificate besides the SPIFFE ID.
type Names struct {
	DNS []string
	IPs []netip.Addr
}

// idPKIXOCSPNocheck tells relying parties not to check the status of a delegated OCSP responder (RFC 6960 section
// 4.2.2.2.1).
var idPKIXOCSPNocheck = pkix.Extension{
	Id:    asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5},
	Value: asn1.NullBytes,
}

// template returns the content of the certificate. It comes from the profile, the identity and the issuing CA, except
// for the public key in RawSubjectPublicKeyInfo.
func (p *Profile) template(iss IssuingCA, req Request, serial pki.Serial, partition uint16, now time.Time) (*x509.Certificate, error) {
	if err := p.CheckNames(req.Identity, req.Names); err != nil {
		return nil, err
	}
	if err := p.checkKey(req.Key); err != nil {
		return nil, err
	}
	notBefore, notAfter, err := p.validity(iss, req.Lifetime, now)
	if err != nil {
		return nil, err
	}
	spki, err := pki.MarshalKey(req.Key)
	if err != nil {
		return nil, unencodable()
	}
	ski, err := subjectKeyID(spki)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial.Int(), NotBefore: notBefore, NotAfter: notAfter,
		Subject: p.subject(req.Identity), SubjectKeyId: ski,
		RawSubjectPublicKeyInfo: spki,
		DNSNames:                req.Names.DNS,
		KeyUsage:                p.keyUsage, ExtKeyUsage: p.extKeyUsage, BasicConstraintsValid: true,
	}
	if !p.anonymous {
		t.URIs = []*url.URL{req.Identity.URL()}
	}
	for _, ip := range req.Names.IPs {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	at := func(u string) []string {
		if u == "" {
			return nil
		}
		return []string{strings.ReplaceAll(u, issuerField, iss.ID.Short())}
	}
	t.CRLDistributionPoints, t.OCSPServer, t.IssuingCertificateURL = at(p.crlURL), at(p.ocspURL), at(p.caURL)
	switch {
	case p.delegate():
		t.ExtraExtensions = []pkix.Extension{idPKIXOCSPNocheck}
	case p.noRevAvail:
		t.ExtraExtensions = []pkix.Extension{noRevAvail}
	case p.partitioned:
		return t, p.addPartition(t, iss.ID, partition)
	}
	return t, nil
}

// addPartition adds the URLs of the partition's CRL and delta CRL to a certificate.
func (p *Profile) addPartition(t *x509.Certificate, issuer pki.IssuerID, partition uint16) error {
	crl, delta := p.CRLPoint(issuer, partition)
	t.CRLDistributionPoints = []string{crl}
	if delta == "" {
		return nil
	}
	value, err := distributionPoints(delta)
	t.ExtraExtensions = []pkix.Extension{{Id: oidFreshestCRL, Value: value}}
	return err
}

// validity returns notBefore and notAfter. It refuses a lifetime above the profile's maximum. It shortens a lifetime
// that exceeds the issuing CA's, because a certificate that outlives its issuer does not verify.
func (p *Profile) validity(iss IssuingCA, lifetime time.Duration, now time.Time) (notBefore, notAfter time.Time, err error) {
	if lifetime == 0 {
		lifetime = p.lifetime
	}
	if lifetime < time.Second || lifetime > p.maxLifetime {
		return notBefore, notAfter, pki.Refuse(pki.RuleLifetime, "ask for one second to "+p.maxLifetime.String(),
			"profile %s does not allow a lifetime of %s", p.name, lifetime)
	}
	end := iss.Certificate.NotAfter
	if !now.Before(end) || now.Before(iss.Certificate.NotBefore) {
		return notBefore, notAfter, &unavailable{what: "the issuing CA " + iss.Certificate.Subject.String() +
			" is not valid now: check the server's clock, or install the next CA generation", after: time.Minute}
	}
	notBefore, notAfter = now.Add(-p.backdate).Truncate(time.Second), now.Add(lifetime).Truncate(time.Second)
	if notBefore.Before(iss.Certificate.NotBefore) {
		notBefore = iss.Certificate.NotBefore
	}
	if notAfter.After(end) {
		notAfter = end
	}
	return notBefore.UTC(), notAfter.UTC(), nil
}

// CheckNames refuses names that the profile forbids, and the lack of names that it requires.
func (p *Profile) CheckNames(id pki.SPIFFEID, n Names) error {
	if p.anonymous && len(n.DNS)+len(n.IPs) == 0 {
		return pki.Refuse(pki.RuleNames, "register the identity with a DNS name or an IP address",
			"certificates of profile %s do not contain the SPIFFE ID, and need another name", p.name)
	}
	return p.CheckOwnNames(id, n)
}

// CheckOwnNames is like CheckNames, for the names of an identity whose certificates may get further names from orders.
func (p *Profile) CheckOwnNames(id pki.SPIFFEID, n Names) error {
	for _, c := range []struct {
		rule  nameRule
		count int
		what  string
	}{{p.dnsNames, len(n.DNS), "DNS names"}, {p.ipAddresses, len(n.IPs), "IP addresses"}} {
		switch {
		case c.rule == forbidden && c.count > 0:
			return pki.Refuse(pki.RuleNames, "register the identity without them",
				"profile %s allows no %s", p.name, c.what)
		case c.rule == required && c.count == 0:
			return pki.Refuse(pki.RuleNames, "register the identity with at least one",
				"profile %s needs %s", p.name, c.what)
		}
	}
	if p.subjectRule == subjectCommonName {
		return p.checkCommonName(id, n)
	}
	return nil
}

// subjectKeyID returns the first 160 bits of the SHA-256 hash of the public key's bit string (RFC 7093 section 2,
// method 1).
func subjectKeyID(spki []byte) ([]byte, error) {
	info := cryptobyte.String(spki)
	var bits cryptobyte.String
	if !info.ReadASN1(&info, cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.SEQUENCE) || !info.ReadASN1(&bits, cbasn1.BIT_STRING) || !bits.Skip(1) {
		return nil, unencodable()
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

func unencodable() *pki.Refusal {
	return pki.Refuse(pki.RuleKeyType, "use a P-256 key", "the key cannot be encoded")
}
