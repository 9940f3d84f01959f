package x5c

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// The facts of a factory certificate.
const (
	factSource            = "x5c.source"             // the name of the source that vouches for it
	factSerial            = "x5c.serial"             // the serial number of the device
	factHardwareType      = "x5c.hardware_type"      // the object identifier in its HardwareModuleName
	factCommonName        = "x5c.common_name"        // of the subject
	factOrganization      = "x5c.organization"       // of the subject
	factIssuer            = "x5c.issuer"             // the name of the issuer (RFC 4514)
	factCertificateSerial = "x5c.certificate_serial" // upper-case hexadecimal digits, as OpenSSL prints it
	factNotAfter          = "x5c.not_after"
)

var (
	oidSubjectAltName      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidSerialNumber        = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidCommonName          = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidOrganization        = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidHardwareModuleName  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4} // RFC 4108 §5
	oidPermanentIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 3} // RFC 4043 §2
)

// factsOf returns what the certificate of a device says. A fact is empty if the certificate does not say it. The serial
// number of the device is that in the subject, else that in the HardwareModuleName, else the PermanentIdentifier.
func factsOf(source string, c *x509.Certificate) (map[string]any, error) {
	names, err := namesOf(c)
	if err != nil {
		return nil, err
	}
	serial, commonName := attribute(c, oidSerialNumber), attribute(c, oidCommonName)
	organization := attribute(c, oidOrganization)
	for _, found := range [][]string{serial, commonName, organization} {
		if len(found) > 1 {
			return nil, pki.Refuse(pki.RuleEvidenceMalformed,
				"use a certificate with one serial number, common name and organization at most",
				"the subject of the device's certificate has two attributes of one type")
		}
	}
	return map[string]any{
		factSource:            source,
		factSerial:            firstOf(text(serial), names.hardwareSerial, names.permanent),
		factHardwareType:      names.hardwareType,
		factCommonName:        text(commonName),
		factOrganization:      text(organization),
		factIssuer:            c.Issuer.String(),
		factCertificateSerial: firstOf(strings.ToUpper(hex.EncodeToString(c.SerialNumber.Bytes())), "00"),
		factNotAfter:          c.NotAfter.UTC(),
	}, nil
}

// attribute returns the values of one type in the subject.
func attribute(c *x509.Certificate, oid asn1.ObjectIdentifier) []string {
	var values []string
	for _, a := range c.Subject.Names {
		if value, ok := a.Value.(string); ok && a.Type.Equal(oid) {
			values = append(values, value)
		}
	}
	return values
}

func text(values []string) string { return strings.Join(values, "") }

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// altNames are the names of a device in its subject alternative name.
type altNames struct {
	hardwareType    string
	hardwareSerial  string
	permanent       string
	unknownCritical bool // the extension is critical and has a name that is not understood
}

// namesOf parses the subject alternative name of a certificate (RFC 5280 §4.2.1.6). crypto/x509 ignores the names in it
// that devices have.
func namesOf(c *x509.Certificate) (altNames, error) {
	var names altNames
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		known, ok := names.read(e.Value)
		if !ok {
			return altNames{}, pki.Refuse(pki.RuleEvidenceMalformed,
				"use a certificate with one HardwareModuleName (RFC 4108), and one PermanentIdentifier (RFC 4043), at most",
				"the subject alternative name of the device's certificate cannot be read")
		}
		names.unknownCritical = e.Critical && !known
	}
	return names, nil
}

// Tags of the names in a subject alternative name. An otherName is constructed, the others are primitive.
var (
	tagOtherName = cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()
	tagEmail     = cryptobyte_asn1.Tag(1).ContextSpecific()
	tagDNS       = cryptobyte_asn1.Tag(2).ContextSpecific()
	tagURI       = cryptobyte_asn1.Tag(6).ContextSpecific()
	tagIP        = cryptobyte_asn1.Tag(7).ContextSpecific()

	tagExplicit = cryptobyte_asn1.Tag(0).ContextSpecific().Constructed() // of the value in an otherName
)

// read reads the names in the extension's value. known reports whether all of them are understood.
func (n *altNames) read(value []byte) (known, ok bool) {
	all, known := cryptobyte.String(value), true
	if !all.ReadASN1(&all, cryptobyte_asn1.SEQUENCE) {
		return false, false
	}
	for !all.Empty() {
		var name cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !all.ReadAnyASN1(&name, &tag) {
			return false, false
		}
		switch tag {
		case tagOtherName:
			understood, ok := n.readOther(name)
			if !ok {
				return false, false
			}
			known = known && understood
		case tagEmail, tagDNS, tagURI, tagIP:
		default:
			known = false
		}
	}
	return known, true
}

// readOther reads an otherName: its type, and its value in the explicit tag 0.
func (n *altNames) readOther(name cryptobyte.String) (known, ok bool) {
	var kind asn1.ObjectIdentifier
	var value cryptobyte.String
	if !name.ReadASN1ObjectIdentifier(&kind) || !name.ReadASN1(&value, tagExplicit) || !name.Empty() {
		return false, false
	}
	switch {
	case kind.Equal(oidHardwareModuleName):
		return true, n.readHardwareModule(value)
	case kind.Equal(oidPermanentIdentifier):
		return true, n.readPermanent(value)
	default:
		return false, true
	}
}

// readHardwareModule reads a HardwareModuleName: the type of the hardware, an object identifier, and the serial number,
// an OCTET STRING.
func (n *altNames) readHardwareModule(value cryptobyte.String) bool {
	var kind, serial cryptobyte.String
	var oid x509.OID
	if n.hardwareType != "" || !value.ReadASN1(&value, cryptobyte_asn1.SEQUENCE) ||
		!value.ReadASN1(&kind, cryptobyte_asn1.OBJECT_IDENTIFIER) ||
		!value.ReadASN1(&serial, cryptobyte_asn1.OCTET_STRING) || !value.Empty() || oid.UnmarshalBinary(kind) != nil {
		return false
	}
	n.hardwareType, n.hardwareSerial = oid.String(), printable(serial)
	return true
}

// printable returns a serial number that is printable ASCII as it is, and any other as 0x and hexadecimal digits. The
// results of two different serial numbers differ.
func printable(serial []byte) string {
	for _, c := range serial {
		if c <= ' ' || c > '~' {
			return "0x" + hex.EncodeToString(serial)
		}
	}
	if strings.HasPrefix(string(serial), "0x") {
		return "0x" + hex.EncodeToString(serial)
	}
	return string(serial)
}

// readPermanent reads a PermanentIdentifier, whose value and assigner may both be absent. Without a value, the serial
// number in the subject is meant (RFC 4043 §2).
func (n *altNames) readPermanent(value cryptobyte.String) bool {
	var id, assigner cryptobyte.String
	var hasID bool
	if n.permanent != "" || !value.ReadASN1(&value, cryptobyte_asn1.SEQUENCE) ||
		!value.ReadOptionalASN1(&id, &hasID, cryptobyte_asn1.UTF8String) ||
		!value.ReadOptionalASN1(&assigner, nil, cryptobyte_asn1.OBJECT_IDENTIFIER) ||
		!value.Empty() || !utf8.Valid(id) {
		return false
	}
	n.permanent = string(id)
	return true
}
