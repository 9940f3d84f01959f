package ra

import (
	"bytes"
	"encoding/asn1"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// Hints of refused certification requests.
const (
	hintDER       = "send one PKCS #10 certification request in DER (RFC 2986), with nothing after it"
	hintKey       = "use a P-256 key, or another kind that the profile allows"
	hintSignature = "sign the request with the private key of the key in it, with SHA-256, SHA-384 or SHA-512"
	hintPSS       = "sign with PKCS #1 v1.5, or with SHA-256, SHA-384 or SHA-512, MGF1 of the same hash, and a salt of the hash's length"
)

// diagnose returns a refusal that explains why crypto/x509 cannot parse a certification request. The error of crypto/x509,
// err, may be nil. It does not name algorithms, so diagnose parses the request itself (RFC 2986 §4).
func diagnose(der []byte, err error) *pki.Refusal {
	if refusal := diagnoseText(der); refusal != nil {
		return refusal
	}
	malformed := func(detail string, args ...any) *pki.Refusal {
		return pki.Refuse(pki.RuleCSR, hintDER, detail, args...)
	}
	input := cryptobyte.String(der)
	var request, info, key cryptobyte.String
	var version int64
	switch {
	case bytes.HasPrefix(der, []byte{0x30, 0x80}):
		return malformed("the certification request has an indefinite length, which is BER and not DER")
	case !input.ReadASN1(&request, cryptobyte_asn1.SEQUENCE):
		return malformed("the certification request is not in DER, or its end is missing")
	case !input.Empty():
		return malformed("%d bytes follow the certification request", len(input))
	case !request.ReadASN1(&info, cryptobyte_asn1.SEQUENCE):
		return malformed("the DER that was sent is not a certification request")
	case info.PeekASN1Tag(cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()):
		return malformed("the DER that was sent is a certificate and not a certification request")
	case !info.ReadASN1Integer(&version):
		return malformed("the DER that was sent is not a certification request")
	case version != 0: // RFC 2986 §4.1 defines only version 0
		return malformed("the certification request has the version %d, not 0", version)
	case !info.SkipASN1(cryptobyte_asn1.SEQUENCE) || !info.ReadASN1(&key, cryptobyte_asn1.SEQUENCE):
		return malformed("the subject or the public key of the certification request cannot be read")
	}
	if refusal := diagnoseKey(key); refusal != nil {
		return refusal
	}
	if info.Empty() {
		return pki.Refuse(pki.RuleCSR, "add the attributes, which may be empty: a0 00 (RFC 2986 section 4.1)",
			"the certification request has no attributes")
	}
	return malformed("the certification request does not parse: %v", err)
}

// diagnoseText refuses a request in PEM, or in base64 without PEM headers. It returns nil for anything else.
func diagnoseText(der []byte) *pki.Refusal {
	hint := "send the DER that it encodes (openssl req -outform DER)"
	text := bytes.TrimSpace(der)
	switch {
	case bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return pki.Refuse(pki.RuleCSR, hint, "the certification request is in PEM")
	case bytes.HasPrefix(text, []byte("MI")): // 0x30 0x82 or 0x81
		return pki.Refuse(pki.RuleCSR, hint, "the certification request is in base64")
	default:
		return nil
	}
}

// diagnoseKey refuses a public key (RFC 5280 §4.1.2.7) of an unsupported algorithm, curve or encoding. It returns nil for
// any other key.
func diagnoseKey(key cryptobyte.String) *pki.Refusal {
	var algorithm, point cryptobyte.String
	var id, curve asn1.ObjectIdentifier
	if !key.ReadASN1(&algorithm, cryptobyte_asn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&id) {
		return pki.Refuse(pki.RuleCSR, hintDER, "the public key of the certification request cannot be read")
	}
	switch {
	case id.Equal(oidRSAPSS):
		return pki.Refuse(pki.RuleKeyType, "write the key as rsaEncryption (openssl genpkey -algorithm RSA), or use a P-256 key",
			"the key is RSA restricted to %s", algorithmName(id))
	case !slices.ContainsFunc(supportedKeys, id.Equal):
		return pki.Refuse(pki.RuleKeyType, hintKey, "the key is of the algorithm %s", algorithmName(id))
	case !id.Equal(oidECKey):
		return nil
	case algorithm.PeekASN1Tag(cryptobyte_asn1.SEQUENCE):
		return pki.Refuse(pki.RuleKeyType, "name the curve (openssl -pkeyopt ec_param_enc:named_curve), such as P-256",
			"the key of the algorithm %s has explicit curve parameters", algorithmName(id))
	case !algorithm.ReadASN1ObjectIdentifier(&curve):
		return pki.Refuse(pki.RuleKeyType, hintKey, "the key of the algorithm %s names no curve", algorithmName(id))
	case !slices.ContainsFunc(supportedCurves, curve.Equal):
		return pki.Refuse(pki.RuleKeyType, hintKey, "the key is on the curve %s", algorithmName(curve))
	case key.ReadASN1(&point, cryptobyte_asn1.BIT_STRING) && len(point) > 1 && point[0] == 0 && point[1] != 4:
		return pki.Refuse(pki.RuleCSR, "write the point uncompressed, which begins with 04 (SEC 1 section 2.3.3)",
			"the point of the key on the curve %s begins with %02x", algorithmName(curve), point[1])
	default:
		return nil
	}
}

// diagnoseSignature returns the refusal of a request whose signature algorithm is not supported.
func diagnoseSignature(der []byte) *pki.Refusal {
	request := cryptobyte.String(der)
	var algorithm cryptobyte.String
	var id asn1.ObjectIdentifier
	if !request.ReadASN1(&request, cryptobyte_asn1.SEQUENCE) || !request.SkipASN1(cryptobyte_asn1.SEQUENCE) ||
		!request.ReadASN1(&algorithm, cryptobyte_asn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&id) {
		return pki.Refuse(pki.RuleCSR, hintDER, "the signature algorithm of the certification request cannot be read")
	}
	if id.Equal(oidRSAPSS) {
		return pki.Refuse(pki.RuleCSRSignature, hintPSS, "the request is signed with %s, %s", algorithmName(id), pssParameters(algorithm))
	}
	return pki.Refuse(pki.RuleCSRSignature, hintSignature, "the request is signed with %s", algorithmName(id))
}

// pssParameters formats the hash and the salt length in the parameters of RSASSA-PSS (RFC 4055 §3.1).
func pssParameters(algorithm cryptobyte.String) string {
	var parameters, hash cryptobyte.String
	var hasHash bool
	tag := func(n uint8) cryptobyte_asn1.Tag { return cryptobyte_asn1.Tag(n).ContextSpecific().Constructed() }
	id, salt := oidSHA1, int64(20) // the defaults of RFC 4055 §3.1
	unreadable := "with parameters that cannot be read"
	if !algorithm.ReadASN1(&parameters, cryptobyte_asn1.SEQUENCE) || !parameters.ReadOptionalASN1(&hash, &hasHash, tag(0)) {
		return unreadable
	}
	if hasHash && (!hash.ReadASN1(&hash, cryptobyte_asn1.SEQUENCE) || !hash.ReadASN1ObjectIdentifier(&id)) {
		return unreadable
	}
	if !parameters.SkipOptionalASN1(tag(1)) || !parameters.ReadOptionalASN1Integer(&salt, tag(2), salt) {
		return unreadable
	}
	return fmt.Sprintf("the hash %s and a salt of %d bytes", algorithmName(id), salt)
}
