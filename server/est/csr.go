package est

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// oidTemplate is the attribute with a template of CSRs (RFC 9908 §3.4).
var oidTemplate = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 61}

// csr is what this package needs of a CSR. Package ra parses it again in full.
type csr struct {
	spki      []byte   // SubjectPublicKeyInfo in DER
	passwords [][]byte // values of the attributes challengePassword
}

// readCSR reads a CSR in DER. It does not check more than it needs.
func readCSR(der []byte) (c csr, ok bool) {
	whole := cryptobyte.String(der)
	var info, spki, attributes cryptobyte.String
	var hasAttributes bool
	if !whole.ReadASN1(&whole, cryptobyte_asn1.SEQUENCE) || !whole.ReadASN1(&info, cryptobyte_asn1.SEQUENCE) ||
		!info.SkipASN1(cryptobyte_asn1.INTEGER) || !info.SkipASN1(cryptobyte_asn1.SEQUENCE) ||
		!info.ReadASN1Element(&spki, cryptobyte_asn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attributes, &hasAttributes, cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()) {
		return csr{}, false
	}
	c.spki = spki
	for !attributes.Empty() {
		var attribute, values cryptobyte.String
		var id asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, cryptobyte_asn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&id) ||
			!attribute.ReadASN1(&values, cryptobyte_asn1.SET) {
			return csr{}, false
		}
		for id.Equal(ra.OIDChallengePassword) && !values.Empty() {
			var value cryptobyte.String
			if !values.ReadAnyASN1(&value, new(cryptobyte_asn1.Tag)) {
				return csr{}, false
			}
			c.passwords = append(c.passwords, value)
		}
	}
	return c, true
}

// checkLinking reports whether the CSR is linked to its connection (RFC 7030 §3.5): its challengePassword is tls-unique
// (RFC 5929 §3) or tls-exporter (RFC 9266), in base64. It refuses a CSR with any other challengePassword, because this one
// was made on another connection.
func checkLinking(c csr, connection *tls.ConnectionState) (linked bool, err error) {
	if len(c.passwords) == 0 {
		return false, nil
	}
	if len(c.passwords) == 1 {
		for _, binding := range bindings(connection) {
			text := base64.StdEncoding.AppendEncode(nil, binding)
			if subtle.ConstantTimeCompare(text, c.passwords[0]) == 1 {
				return true, nil
			}
		}
	}
	return false, pki.Refuse(pki.RuleLinking, "make the CSR on the connection on which it is sent, or leave out the challengePassword",
		"the challengePassword of the CSR is not the tls-unique or tls-exporter value of this connection")
}

// bindings returns the values that identify a connection. With TLS 1.2, there are none unless client and server use the
// extended master secret (RFC 7627): without it, two connections can have the same values. Without it, Go exports no
// keying material, but has a value of tls-unique.
func bindings(connection *tls.ConnectionState) [][]byte {
	if connection == nil {
		return nil
	}
	exported, err := connection.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil
	}
	all := [][]byte{exported}
	if len(connection.TLSUnique) > 0 {
		all = append(all, connection.TLSUnique)
	}
	return all
}
