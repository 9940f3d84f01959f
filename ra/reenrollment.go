package ra

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// checkDoor refuses to renew a certificate at a door that its profile does not allow. It also refuses a certificate of a
// profile that the policy no longer has, because nothing says where it can be renewed.
func (r Revision) checkDoor(profile string, door pki.Door) error {
	if door == pki.DoorSelf {
		return nil
	}
	p, err := r.Profiles.Profile(profile)
	if err != nil {
		return pki.Refuse(pki.RuleRenewalDoor, "an operator adds the profile to the policy again, until its certificates are renewed; "+
			"or enroll again", "the certificate has profile %s, which the policy no longer has", profile)
	}
	if p.RenewableAt(door) {
		return nil
	}
	return pki.Refuse(pki.RuleRenewalDoor, "enroll again as for the first certificate, or ask an operator to change renewals in the profile",
		"certificates of profile %s cannot be renewed by %s", profile, door)
}

// useLabel applies what a label says about a CSR, and refuses one that is not linked to its connection if it must be.
func (r Revision) useLabel(c *csr, name string, linked bool) error {
	l, err := r.label(name)
	if err != nil {
		return err
	}
	if l.AcceptNames {
		c.names = ignored
	}
	c.linked = linked
	return l.checkLinked(linked)
}

// checkBefore refuses names and extensions in a CSR that differ from those of the certificate to renew (RFC 7030
// §4.2.2). A CSR may leave them out. The certificate is nil if the CSR is not compared with it.
func (c *csr) checkBefore(der []byte) error {
	if der == nil || c.names == ignored {
		return nil
	}
	before, err := x509.ParseCertificate(der)
	if err != nil {
		return pki.Refuse(pki.RuleCertificate, "renew with the certificate as the server issued it", "the certificate to renew does not parse")
	}
	refuse := func(detail string, args ...any) error {
		return pki.Refuse(pki.RuleCSRContent, "ask for the key alone, or for what the certificate to renew contains; a label with "+
			"accept_names ignores the rest", detail, args...)
	}
	if len(c.request.Subject.Names) > 0 && !sameNames(c.request.Subject.Names, before.Subject.Names) {
		return refuse("the request asks for another subject than that of the certificate to renew")
	}
	for _, e := range c.request.Extensions {
		i := slices.IndexFunc(before.Extensions, func(have pkix.Extension) bool { return have.Id.Equal(e.Id) })
		switch {
		case e.Id.Equal(oidSubjectKeyID): // has no effect: the CA computes the subject key identifier
		case i < 0:
			return refuse("the request asks for the extension %s, which the certificate to renew does not have", e.Id)
		case e.Id.Equal(oidSubjectAltName):
			if !sameAltNames(e.Value, before.Extensions[i].Value) {
				return refuse("the request asks for other alternative names than those of the certificate to renew")
			}
		case !bytes.Equal(e.Value, before.Extensions[i].Value):
			return refuse("the request asks for another value of the extension %s than that of the certificate to renew", e.Id)
		}
	}
	c.names = unchanged
	return nil
}

// sameNames reports whether two subjects have the same attributes in the same order. The types of their strings may
// differ (RFC 5280 §7.1).
func sameNames(a, b []pkix.AttributeTypeAndValue) bool {
	return slices.EqualFunc(a, b, func(a, b pkix.AttributeTypeAndValue) bool { return a.Type.Equal(b.Type) && sameValue(a.Value, b.Value) })
}

func sameValue(a, b any) bool {
	x, isText := a.(string)
	y, alsoText := b.(string)
	return isText && alsoText && x == y
}

// sameAltNames reports whether two subject alternative names have the same names, in any order.
func sameAltNames(a, b []byte) bool {
	x, ok := altNamesIn(a)
	y, alsoOK := altNamesIn(b)
	return ok && alsoOK && slices.Equal(x, y)
}

// altNamesIn returns the names in a subject alternative name in DER, sorted.
func altNamesIn(san []byte) ([]string, bool) {
	all := cryptobyte.String(san)
	if !all.ReadASN1(&all, cryptobyte_asn1.SEQUENCE) {
		return nil, false
	}
	var names []string
	for !all.Empty() {
		var name cryptobyte.String
		if !all.ReadAnyASN1Element(&name, new(cryptobyte_asn1.Tag)) {
			return nil, false
		}
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names, true
}
