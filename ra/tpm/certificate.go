package tpm

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
)

// Source is a manufacturer, or a product line, whose certificates of endorsement keys are trusted. All certificates are
// imported explicitly: none is fetched.
type Source struct {
	// Name is the fact tpm.source: 1 to 64 lower-case letters, digits and hyphens.
	Name string
	// Roots are CA certificates of the manufacturer. At least one is required.
	Roots []*x509.Certificate
	// Intermediates are the CA certificates between Roots and the certificates of endorsement keys.
	Intermediates []*x509.Certificate
}

// Limits of the sources.
const (
	maxSources    = 64
	maxSourceName = 64
	maxSourceCAs  = 1024 // in one source; the largest manufacturers publish some hundreds
)

type source struct {
	name                 string
	roots, intermediates *x509.CertPool
}

type sources []source

func newSources(from []Source) (sources, error) {
	if len(from) > maxSources {
		return nil, fmt.Errorf("there are %d sources of TPM certificates: at most %d are allowed", len(from), maxSources)
	}
	var s sources
	for _, f := range from {
		notInName := func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }
		switch {
		case f.Name == "" || len(f.Name) > maxSourceName || strings.ContainsFunc(f.Name, notInName):
			return nil, fmt.Errorf("%.100q is not the name of a source of TPM certificates: "+
				"use 1 to %d lower-case letters, digits and hyphens", f.Name, maxSourceName)
		case slices.ContainsFunc(s, func(other source) bool { return other.name == f.Name }):
			return nil, fmt.Errorf("there are two sources of TPM certificates with the name %s", f.Name)
		case len(f.Roots) == 0:
			return nil, fmt.Errorf("the source of TPM certificates %s has no root certificate", f.Name)
		case len(f.Roots)+len(f.Intermediates) > maxSourceCAs:
			return nil, fmt.Errorf("the source of TPM certificates %s has %d CA certificates: at most %d are allowed",
				f.Name, len(f.Roots)+len(f.Intermediates), maxSourceCAs)
		}
		s = append(s, source{f.Name, poolOf(f.Roots), poolOf(f.Intermediates)})
	}
	return s, nil
}

// digestOf returns a digest that changes with every change of the sources.
func digestOf(from []Source) [32]byte {
	h := sha256.New()
	for _, f := range from {
		_, _ = fmt.Fprintf(h, "%s %d %d\n", f.Name, len(f.Roots), len(f.Intermediates)) // a hash returns no error
		for _, c := range slices.Concat(f.Roots, f.Intermediates) {
			_, _ = fmt.Fprintf(h, "%x\n", sha256.Sum256(c.Raw))
		}
	}
	return [32]byte(h.Sum(nil))
}

func poolOf(all []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range all {
		pool.AddCert(c)
	}
	return pool
}

// endorsement is what the verified certificate of an endorsement key says. It is zero if there is no certificate, or if
// the certificate does not chain to a source.
type endorsement struct {
	source string
	product
}

// verify verifies the certificate of an endorsement key. A certificate that chains to no source proves nothing, and is
// not refused: the policy may name the endorsement key. A certificate that is wrong in itself is refused.
func (s sources) verify(stored []byte, ek public, at time.Time) (endorsement, error) {
	if len(stored) == 0 {
		return endorsement{}, nil
	}
	leaf, about, err := parseCertificate(stored, ek.key)
	if err != nil {
		return endorsement{}, err
	}
	// The chain is verified at the nearest time within the validity of the certificate, to distinguish a certificate of
	// an unknown manufacturer from one that has expired.
	valid := at
	if at.Before(leaf.NotBefore) {
		valid = leaf.NotBefore
	} else if at.After(leaf.NotAfter) {
		valid = leaf.NotAfter
	}
	for _, from := range s {
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: from.roots, Intermediates: from.intermediates, CurrentTime: valid,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err != nil {
			continue
		}
		return endorsement{from.name, about}, checkValidity(leaf, at)
	}
	return endorsement{}, nil
}

// withoutCertificate is what a device can do if its certificate is not accepted.
const withoutCertificate = "name the endorsement key in the policy (tpm.ek) and enroll without its certificate"

func checkValidity(c *x509.Certificate, at time.Time) error {
	switch {
	case at.Before(c.NotBefore):
		return pki.Refuse(pki.RuleEvidenceNotYet, "set the server's clock, or "+withoutCertificate,
			"the certificate of the endorsement key is not valid before %s (server time is %s)", stamp(c.NotBefore), stamp(at))
	case at.After(c.NotAfter):
		return pki.Refuse(pki.RuleEvidenceExpired, withoutCertificate,
			"the certificate of the endorsement key expired at %s (server time is %s)", stamp(c.NotAfter), stamp(at))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidOAEP           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	// oidEKCertificate is tcg-kp-EKCertificate (TCG EK Credential Profile 2.5, section 3.5.11).
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidManufacturer  = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel         = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion       = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// parseCertificate parses the certificate of an endorsement key. It returns the certificate without
// UnhandledCriticalExtensions, after it has checked all of them.
func parseCertificate(stored []byte, ek crypto.PublicKey) (*x509.Certificate, product, error) {
	var about product
	c, err := parseDER(stored)
	if err != nil {
		return nil, about, err
	}
	if !certifies(c, ek) {
		return nil, about, pki.Refuse(pki.RuleEvidenceKey, "send the certificate of the endorsement key, or none",
			"the certificate is for another key than the endorsement key")
	}
	untrusted := func(detail string, args ...any) error {
		detail = "the certificate of the endorsement key " + detail
		return pki.Refuse(pki.RuleEvidenceUntrusted, withoutCertificate, detail, args...)
	}
	names, present := altNames(c)
	onlyDirectory := false
	if present {
		if about, onlyDirectory, err = parseAltNames(names); err != nil {
			return nil, about, pki.Refuse(pki.RuleEvidenceMalformed, withoutCertificate,
				"the subject alternative name in the certificate of the endorsement key does not parse: %v", err)
		}
	}
	for _, id := range c.UnhandledCriticalExtensions {
		if !id.Equal(oidSubjectAltName) || !onlyDirectory {
			return nil, about, untrusted("has the critical extension %s, which is not understood (RFC 5280 section 4.2)", id)
		}
	}
	usages := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage)
	switch {
	case c.IsCA:
		return nil, about, untrusted("is a CA certificate")
	case usages > 0 && !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal):
		return nil, about, untrusted("is for another use: its extended key usage does not contain %s", oidEKCertificate)
	}
	c.UnhandledCriticalExtensions = nil
	return c, about, nil
}

func parseDER(stored []byte) (*x509.Certificate, error) {
	der, err := attest.CertificateDER(stored)
	if err != nil {
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, withoutCertificate, "%v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil && strings.Contains(err.Error(), "serial number") {
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, withoutCertificate, "the certificate of the endorsement key has a "+
			"serial number that is negative or not encoded as DER requires (RFC 5280 section 4.1.2.2)")
	}
	if err != nil { // the error may contain names
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, withoutCertificate,
			"the certificate of the endorsement key does not parse (openssl x509 -text)")
	}
	return c, nil
}

// certifies reports whether a certificate is for a key. Some manufacturers mark RSA keys with id-RSAES-OAEP (RFC 4055
// section 4.1), which crypto/x509 does not parse.
func certifies(c *x509.Certificate, key crypto.PublicKey) bool {
	certified := c.PublicKey
	if certified == nil {
		var spki, algorithm, bits cryptobyte.String
		var id asn1.ObjectIdentifier
		rest := cryptobyte.String(c.RawSubjectPublicKeyInfo)
		if !rest.ReadASN1(&spki, cryptobyte_asn1.SEQUENCE) || !spki.ReadASN1(&algorithm, cryptobyte_asn1.SEQUENCE) ||
			!algorithm.ReadASN1ObjectIdentifier(&id) || !id.Equal(oidOAEP) || !spki.ReadASN1BitStringAsBytes((*[]byte)(&bits)) {
			return false
		}
		parsed, err := x509.ParsePKCS1PublicKey(bits)
		if err != nil {
			return false
		}
		certified = parsed
	}
	public, ok := certified.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(key)
}

func altNames(c *x509.Certificate) ([]byte, bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			return e.Value, true
		}
	}
	return nil, false
}

// product describes a TPM (TCG EK Credential Profile 2.5, section 3.1.2). A value that is not 1 to 64 characters of
// printable ASCII is empty.
type product struct{ manufacturer, model, version string }

// Limits of a subject alternative name.
const (
	maxAltNames   = 16
	maxAttributes = 16
	maxAttribute  = 64 // bytes
)

// parseAltNames returns the description of the TPM in the directory names of a subject alternative name (RFC 5280
// section 4.2.1.6), and whether it has no other names.
func parseAltNames(der []byte) (about product, onlyDirectory bool, err error) {
	rest, names := cryptobyte.String(der), cryptobyte.String(nil)
	if !rest.ReadASN1(&names, cryptobyte_asn1.SEQUENCE) || !rest.Empty() || names.Empty() {
		return about, false, errors.New("it is not a sequence of names")
	}
	onlyDirectory = true
	for n := 0; !names.Empty(); n++ {
		var name cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if n == maxAltNames || !names.ReadAnyASN1(&name, &tag) {
			return about, false, fmt.Errorf("a name is damaged, or there are more than %d", maxAltNames)
		}
		if tag != cryptobyte_asn1.Tag(4).Constructed().ContextSpecific() {
			onlyDirectory = false
			continue
		}
		if err := about.read(name); err != nil {
			return about, false, err
		}
	}
	return about, onlyDirectory, nil
}

// read reads the attributes of a directory name. Attributes may share a RelativeDistinguishedName.
func (m *product) read(name cryptobyte.String) error {
	var sets cryptobyte.String
	if !name.ReadASN1(&sets, cryptobyte_asn1.SEQUENCE) || !name.Empty() {
		return errors.New("a directory name is damaged")
	}
	for n := 0; !sets.Empty(); {
		var set cryptobyte.String
		if !sets.ReadASN1(&set, cryptobyte_asn1.SET) {
			return errors.New("a directory name is damaged")
		}
		for ; !set.Empty(); n++ {
			if n == maxAttributes {
				return fmt.Errorf("a directory name has more than %d attributes", maxAttributes)
			}
			if err := m.readAttribute(&set); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *product) readAttribute(set *cryptobyte.String) error {
	var attribute, value cryptobyte.String
	var id asn1.ObjectIdentifier
	var tag cryptobyte_asn1.Tag
	if !set.ReadASN1(&attribute, cryptobyte_asn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&id) ||
		!attribute.ReadAnyASN1(&value, &tag) || !attribute.Empty() {
		return errors.New("an attribute of a directory name is damaged")
	}
	var to *string
	switch {
	case id.Equal(oidManufacturer):
		to = &m.manufacturer
	case id.Equal(oidModel):
		to = &m.model
	case id.Equal(oidVersion):
		to = &m.version
	default:
		return nil
	}
	if *to != "" {
		return fmt.Errorf("the attribute %s is there twice", id)
	}
	texts := []cryptobyte_asn1.Tag{cryptobyte_asn1.UTF8String, cryptobyte_asn1.PrintableString, cryptobyte_asn1.IA5String}
	notPlain := func(r rune) bool { return r < 0x20 || r > 0x7e }
	if slices.Contains(texts, tag) && len(value) <= maxAttribute && !strings.ContainsFunc(string(value), notPlain) {
		*to = string(value)
	}
	return nil
}
