package validation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// alpnProtocol is the protocol that a host must select (RFC 8737 §6.2).
const alpnProtocol = "acme-tls/1"

var (
	oidACMEIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31} // RFC 8737 §6.1
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// tlsALPN validates tls-alpn-01 (RFC 8737 §3).
func (v *Validator) tlsALPN(ctx context.Context, c Challenge) *pki.Refusal {
	conn, refusal := v.dial(ctx, c.Identifier, v.config.TLSPort)
	if refusal != nil {
		return refusal
	}
	defer func() { _ = conn.Close() }()
	client := tls.Client(conn, &tls.Config{
		ServerName: serverName(c.Identifier), NextProtos: []string{alpnProtocol}, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // the certificate is self-signed, and checkCertificate checks it
	})
	if err := client.HandshakeContext(ctx); err != nil {
		return pki.Refuse(pki.RuleACMEValidationTLS, "let the host select the protocol acme-tls/1 with TLS 1.2 or newer, and order again",
			"the TLS handshake with port %d of %s failed", v.config.TLSPort, c.Identifier.Value)
	}
	state := client.ConnectionState()
	if state.NegotiatedProtocol != alpnProtocol || len(state.PeerCertificates) == 0 {
		return pki.Refuse(pki.RuleACMEValidationTLS, "let the host select the protocol acme-tls/1 with TLS 1.2 or newer, and order again",
			"port %d of %s does not select the protocol acme-tls/1", v.config.TLSPort, c.Identifier.Value)
	}
	if err := checkCertificate(state.PeerCertificates[0], c.Identifier, c.digest()); err != nil {
		return pki.Refuse(pki.RuleACMEValidationAnswer, "present a self-signed certificate as RFC 8737 section 3 describes, and order again",
			"the certificate of %s for acme-tls/1 is not the expected one: %v", c.Identifier.Value, err)
	}
	return nil
}

// serverName returns the name for an identifier in the TLS handshake. For an IP address it is the name of the reverse
// lookup (RFC 8738 §6).
func serverName(i acme.Identifier) string {
	a, err := netip.ParseAddr(i.Value)
	if i.Type != acme.IP || err != nil {
		return i.Value
	}
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		var name strings.Builder
		for _, part := range slices.Backward(b[:]) {
			name.WriteString(strconv.Itoa(int(part)) + ".")
		}
		return name.String() + "in-addr.arpa"
	}
	b := a.As16()
	digits := []byte(hex.EncodeToString(b[:]))
	slices.Reverse(digits)
	return strings.Join(strings.Split(string(digits), ""), ".") + ".ip6.arpa"
}

// checkCertificate checks the certificate of tls-alpn-01. Its errors contain nothing of the certificate.
func checkCertificate(c *x509.Certificate, i acme.Identifier, digest [sha256.Size]byte) error {
	if !bytes.Equal(c.RawIssuer, c.RawSubject) || c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil {
		return errors.New("it is not self-signed")
	}
	var names, responses [][]byte
	for _, e := range c.Extensions {
		switch {
		case e.Id.Equal(oidSubjectAltName):
			names = append(names, e.Value)
		case e.Id.Equal(oidACMEIdentifier):
			if !e.Critical {
				return errors.New("its acmeIdentifier is not critical")
			}
			responses = append(responses, e.Value)
		}
	}
	if len(names) != 1 || len(responses) != 1 {
		return errors.New("it needs one subjectAltName and one acmeIdentifier")
	}
	if !hasOnlyName(names[0], i) {
		return errors.New("its subjectAltName is not the identifier alone")
	}
	var response []byte
	if rest, err := asn1.Unmarshal(responses[0], &response); err != nil || len(rest) > 0 || len(response) != sha256.Size {
		return errors.New("its acmeIdentifier is not an OCTET STRING of 32 bytes")
	}
	if subtle.ConstantTimeCompare(response, digest[:]) != 1 {
		return errors.New("its acmeIdentifier is not the digest of the key authorization")
	}
	return nil
}

// Tags of GeneralName (RFC 5280 §4.2.1.6).
const (
	tagDNSName   = 2
	tagIPAddress = 7
)

// hasOnlyName reports whether a subjectAltName in DER contains the identifier and nothing else.
func hasOnlyName(der []byte, i acme.Identifier) bool {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) > 0 || len(names) != 1 {
		return false
	}
	name := names[0]
	if name.Class != asn1.ClassContextSpecific || name.IsCompound {
		return false
	}
	if i.Type == acme.IP {
		a, err := netip.ParseAddr(i.Value)
		return err == nil && name.Tag == tagIPAddress && bytes.Equal(name.Bytes, a.Unmap().AsSlice())
	}
	return name.Tag == tagDNSName && strings.EqualFold(string(name.Bytes), i.Value)
}
