package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/pki"
)

// subjectRule says which attribute of the subject contains the identity's path.
type subjectRule uint8

const (
	subjectUID subjectRule = iota
	subjectCommonName
	subjectNone
)

// The subject attributes that can contain a path. TLS clients take host names from common names, but not from user IDs.
var (
	OIDUserID     = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1} // RFC 4519 §2.39
	OIDCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// maxCommonName is ub-common-name in characters (RFC 5280 appendix A.1). A user ID has no limit (RFC 4519 section
// 2.39).
const maxCommonName = 64

// SubjectOf returns a subject with one attribute that contains the path of an identity.
func SubjectOf(attribute asn1.ObjectIdentifier, id pki.SPIFFEID) pkix.Name {
	return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: attribute, Value: id.Path()}}}
}

// subject returns the subject for an identity's certificates.
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

// checkCommonName refuses a path that is too long for a common name. It also refuses a path that TLS clients could take
// for the name of a host that the identity does not have. Clients compare the common name if the subject alternative
// names contain no host. Any path of one segment can be a host's name or address, even if DNS does not allow it. A path
// with a slash cannot.
func (p *Profile) checkCommonName(id pki.SPIFFEID, n Names) error {
	path := id.Path()
	if len(path) > maxCommonName {
		return pki.Refuse(pki.RuleNames, "choose a shorter path, or a profile with subject: uid",
			"profile %s uses the path as common name, which has at most 64 characters, but %s has %d", p.name, id, len(path))
	}
	if strings.Contains(path, "/") || slices.Contains(n.DNS, strings.ToLower(path)) {
		return nil
	}
	if ip, err := netip.ParseAddr(path); err == nil && slices.Contains(n.IPs, ip) {
		return nil
	}
	return pki.Refuse(pki.RuleNames, "grant the name with --dns or --ip, choose a path of two segments such as device/"+path+", or a profile with subject: uid",
		"profile %s uses the path as common name, and TLS clients would take %s for the name of a host, which %s does not have", p.name, path, id)
}
