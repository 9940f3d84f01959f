package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/pki"
)

// subjectRule says which attribute of a certificate's subject holds the path of the identity.
type subjectRule uint8

const (
	subjectUID subjectRule = iota
	subjectCommonName
	subjectNone
)

// The attributes of a subject that can hold a path. TLS clients read host names from the second, and from the first none does.
var (
	OIDUserID     = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1} // RFC 4519 §2.39
	OIDCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// maxCommonName is ub-common-name of RFC 5280 appendix A.1, in characters. A user identifier has no bound (RFC 4519 §2.39).
const maxCommonName = 64

// SubjectOf returns a subject of one attribute with the path of an identity.
func SubjectOf(attribute asn1.ObjectIdentifier, id pki.SPIFFEID) pkix.Name {
	return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: attribute, Value: id.Path()}}}
}

// subject returns the subject of an identity's certificates.
func (p *Profile) subject(id pki.SPIFFEID) pkix.Name {
	switch p.subjectRule {
	case subjectCommonName:
		return SubjectOf(OIDCommonName, id)
	case subjectNone:
		return pkix.Name{}
	default:
		return SubjectOf(OIDUserID, id)
	}
}

// checkCommonName refuses a path that does not fit into a common name. It also refuses one that TLS clients could take for a
// host that the identity was not granted: clients that find no name of a host among the subject alternative names compare the
// common name. Every path of one segment can be a host's name or address, whatever DNS allows. None with a slash can.
func (p *Profile) checkCommonName(id pki.SPIFFEID, n Names) error {
	path := id.Path()
	if len(path) > maxCommonName {
		return pki.Refuse(pki.RuleNames, "choose a shorter path, or a profile with subject: uid",
			"profile %s has the path as common name, which holds 64 characters, and %s has %d", p.name, id, len(path))
	}
	if strings.Contains(path, "/") || slices.Contains(n.DNS, strings.ToLower(path)) {
		return nil
	}
	if ip, err := netip.ParseAddr(path); err == nil && slices.Contains(n.IPs, ip) {
		return nil
	}
	return pki.Refuse(pki.RuleNames, "grant the name with --dns or --ip, choose a path of two segments such as device/"+path+", or a profile with subject: uid",
		"profile %s has the path as common name, and TLS clients would take %s for a host that %s was not granted", p.name, path, id)
}
