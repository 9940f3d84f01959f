package ocsp

import (
	"bytes"
	"crypto"
	"crypto/sha1" //nolint:gosec // RFC 5019 §2.1.1 has clients identify issuers by SHA-1: it is a lookup key, and no security rests on it
	"crypto/sha256"
	"crypto/x509"
	encoding_asn1 "encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// The limits of a request.
const (
	MaxRequestSize = 8 << 10 // bytes of DER
	MaxIDs         = 16      // certificates in one request
	MaxNonce       = 128     // bytes (RFC 9654 §2.1)
	maxExtensions  = 32      // extensions of the request, and of each entry in it
)

// IssuerHash identifies an issuer like a CertID does: by the hashes of its name and its key. It can be compared with ==
// and be a map key. The zero value identifies no issuer.
type IssuerHash struct {
	hash      crypto.Hash
	name, key [sha256.Size]byte
}

// CertID identifies a certificate in a request (RFC 6960 §4.1.1).
type CertID struct {
	// Issuer is zero if the CertID uses a hash other than SHA-1 and SHA-256.
	Issuer IssuerHash
	// Serial is zero if the serial number in the request is not allowed for certificates (RFC 5280 §4.1.2.2).
	Serial pki.Serial
	// Raw is the DER of the CertID, which is copied into the response.
	Raw []byte
}

// Request is a parsed request about 1 to MaxIDs certificates. It refers to the bytes from which it was parsed.
type Request struct {
	IDs   []CertID
	Nonce []byte // 1 to MaxNonce bytes, or nil if there is none
}

var (
	oidSHA1   = encoding_asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256 = encoding_asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidNonce  = encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}

	// The object identifiers in DER, so that they can be compared without decoding.
	elementSHA1, elementSHA256, elementNonce = objectIdentifier(oidSHA1), objectIdentifier(oidSHA256), objectIdentifier(oidNonce)
)

func objectIdentifier(oid encoding_asn1.ObjectIdentifier) []byte {
	var b cryptobyte.Builder
	b.AddASN1ObjectIdentifier(oid)
	der, _ := b.Bytes() // encoding a constant cannot fail
	return der
}

// oidText returns an OBJECT IDENTIFIER in DER as text with dots.
func oidText(element cryptobyte.String) string {
	var oid encoding_asn1.ObjectIdentifier
	element.ReadASN1ObjectIdentifier(&oid)
	return oid.String()
}

// contextTag returns the tag of an explicitly tagged field.
func contextTag(number uint8) asn1.Tag { return asn1.Tag(number).ContextSpecific().Constructed() }

// HashIssuers returns the two identifiers that requests use for a CA: with SHA-1 and with SHA-256.
func HashIssuers(issuer *x509.Certificate) ([2]IssuerHash, error) {
	key, err := publicKeyBits(issuer)
	if err != nil {
		return [2]IssuerHash{}, err
	}
	one, two := IssuerHash{hash: crypto.SHA1}, IssuerHash{hash: crypto.SHA256}
	name1, key1 := sha1.Sum(issuer.RawSubject), sha1.Sum(key) //nolint:gosec // a lookup key only; see the import
	copy(one.name[:], name1[:])
	copy(one.key[:], key1[:])
	two.name, two.key = sha256.Sum256(issuer.RawSubject), sha256.Sum256(key)
	return [2]IssuerHash{one, two}, nil
}

// publicKeyBits returns the bits of the subject's public key, without tag, length and number of unused bits. The key
// hashes in RFC 6960 §4.1.1 and §4.2.1 are over exactly these.
func publicKeyBits(c *x509.Certificate) ([]byte, error) {
	outer := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	var info cryptobyte.String
	var bits []byte
	if !outer.ReadASN1(&info, asn1.SEQUENCE) || !info.SkipASN1(asn1.SEQUENCE) || !info.ReadASN1BitStringAsBytes(&bits) {
		return nil, errors.New("the certificate has no readable public key")
	}
	return bits, nil
}

// ParseRequest parses an OCSPRequest in DER. For any error, the responder should send malformedRequest (RFC 6960 §2.3).
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > MaxRequestSize {
		return nil, fmt.Errorf("a request has at most %d bytes, not %d", MaxRequestSize, len(der))
	}
	outer := cryptobyte.String(der)
	var request, tbs cryptobyte.String
	if !outer.ReadASN1(&request, asn1.SEQUENCE) || !outer.Empty() {
		return nil, errors.New("not one DER sequence (RFC 6960 section 4.1.1)")
	}
	if !request.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil, errors.New("no tbsRequest")
	}
	if !request.SkipOptionalASN1(contextTag(0)) || !request.Empty() {
		return nil, errors.New("something other than a signature follows tbsRequest")
	}
	return parseTBS(tbs)
}

// PlainCertID locates the CertID and the serial number in a request of the most common form: one certificate and no
// extensions. It is fast, because it does not validate id. The caller must compare id with the CertID of a request that
// ParseRequest accepted earlier. If they are equal, ParseRequest would also accept der, and return this CertID and no
// nonce.
func PlainCertID(der []byte) (id []byte, serial pki.Serial, ok bool) {
	// OCSPRequest, tbsRequest, requestList and Request each begin with a tag and a length. All of them end at the same
	// byte.
	for range 4 {
		if len(der) < 2 || der[0] != 0x30 || der[1] >= 0x80 || int(der[1]) != len(der)-2 {
			return nil, pki.Serial{}, false
		}
		der = der[2:]
	}
	number := len(der) - pki.SerialSize
	if number < 2 || der[number-2] != byte(asn1.INTEGER) || der[number-1] != pki.SerialSize {
		return nil, pki.Serial{}, false
	}
	serial, err := pki.SerialFromBytes(der[number:])
	return der, serial, err == nil
}

func parseTBS(tbs cryptobyte.String) (*Request, error) {
	// There is only one version, v1. As the default, it must not be encoded in DER.
	if tbs.PeekASN1Tag(contextTag(0)) {
		return nil, errors.New("the request has a version: only version 1 exists, which DER omits")
	}
	var list, wrapped cryptobyte.String
	var extended bool
	if !tbs.SkipOptionalASN1(contextTag(1)) || !tbs.ReadASN1(&list, asn1.SEQUENCE) {
		return nil, errors.New("no requestList")
	}
	if !tbs.ReadOptionalASN1(&wrapped, &extended, contextTag(2)) || !tbs.Empty() {
		return nil, errors.New("something other than extensions follows requestList")
	}
	q := &Request{}
	for !list.Empty() {
		if len(q.IDs) == MaxIDs {
			return nil, fmt.Errorf("a request asks about at most %d certificates", MaxIDs)
		}
		id, err := parseSingle(&list)
		if err != nil {
			return nil, err
		}
		q.IDs = append(q.IDs, id)
	}
	if len(q.IDs) == 0 {
		return nil, errors.New("the request asks about no certificate")
	}
	if extended {
		return q, parseExtensions(wrapped, q.handleExtension)
	}
	return q, nil
}

// handleExtension stores the nonce. It ignores other extensions, and returns an error if they are critical.
func (q *Request) handleExtension(oid cryptobyte.String, critical bool, value cryptobyte.String) error {
	switch {
	case bytes.Equal(oid, elementNonce):
		var nonce cryptobyte.String
		if !value.ReadASN1(&nonce, asn1.OCTET_STRING) || !value.Empty() || len(nonce) < 1 || len(nonce) > MaxNonce {
			return fmt.Errorf("a nonce is an OCTET STRING of 1 to %d bytes (RFC 9654 section 2.1)", MaxNonce)
		}
		q.Nonce = nonce
		return nil
	case critical:
		return fmt.Errorf("the critical extension %v is not supported", oidText(oid))
	}
	return nil
}

// refuseCritical refuses critical extensions of a single entry. None is supported.
func refuseCritical(oid cryptobyte.String, critical bool, _ cryptobyte.String) error {
	if critical {
		return fmt.Errorf("the critical extension %v is not supported", oidText(oid))
	}
	return nil
}

func parseSingle(list *cryptobyte.String) (CertID, error) {
	var single, raw, wrapped cryptobyte.String
	var extended bool
	if !list.ReadASN1(&single, asn1.SEQUENCE) || !single.ReadASN1Element(&raw, asn1.SEQUENCE) ||
		!single.ReadOptionalASN1(&wrapped, &extended, contextTag(0)) || !single.Empty() {
		return CertID{}, errors.New("an entry of requestList is not a Request")
	}
	if extended {
		if err := parseExtensions(wrapped, refuseCritical); err != nil {
			return CertID{}, err
		}
	}
	return parseCertID(raw)
}

func parseCertID(raw cryptobyte.String) (CertID, error) {
	id := CertID{Raw: raw}
	var body, algorithm, name, key cryptobyte.String
	var oid cryptobyte.String
	if !raw.ReadASN1(&body, asn1.SEQUENCE) || !body.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!readObjectIdentifier(&algorithm, &oid) || !body.ReadASN1(&name, asn1.OCTET_STRING) ||
		!body.ReadASN1(&key, asn1.OCTET_STRING) || !readSerial(&body, &id.Serial) || !body.Empty() {
		return CertID{}, errors.New("a reqCert is not a CertID")
	}
	size := 0
	switch {
	case bytes.Equal(oid, elementSHA1):
		id.Issuer.hash, size = crypto.SHA1, sha1.Size
	case bytes.Equal(oid, elementSHA256):
		id.Issuer.hash, size = crypto.SHA256, sha256.Size
	default:
		return id, nil
	}
	// Clients send the parameters as NULL or omit them (RFC 5754 §2).
	var null cryptobyte.String
	if !algorithm.Empty() && (!algorithm.ReadASN1(&null, asn1.NULL) || !null.Empty() || !algorithm.Empty()) {
		return CertID{}, errors.New("the parameters of a hash algorithm are neither absent nor NULL")
	}
	if len(name) != size || len(key) != size {
		return CertID{}, fmt.Errorf("issuerNameHash and issuerKeyHash have %d bytes in a CertID of this hash", size)
	}
	copy(id.Issuer.name[:], name)
	copy(id.Issuer.key[:], key)
	return id, nil
}

// readSerial reads an INTEGER into serial. It sets serial to zero if the number is not allowed for certificates.
func readSerial(from *cryptobyte.String, serial *pki.Serial) bool {
	whole := *from
	var content []byte
	if from.ReadASN1Integer(&content) && len(content) == pki.SerialSize { // serial numbers usually have this length
		*serial, _ = pki.SerialFromBytes(content) // zero if the first byte is over 0x7f: DER then needs 21 bytes
		return true
	}
	*from = whole
	number := new(big.Int)
	if !from.ReadASN1Integer(number) {
		return false
	}
	*serial, _ = pki.SerialFromInt(number)
	return true
}

// readObjectIdentifier reads an OBJECT IDENTIFIER into element, in DER. Equal identifiers have equal DER.
func readObjectIdentifier(from, element *cryptobyte.String) bool {
	if !from.ReadASN1Element(element, asn1.OBJECT_IDENTIFIER) {
		return false
	}
	for _, known := range [][]byte{elementSHA1, elementSHA256, elementNonce} {
		if bytes.Equal(*element, known) {
			return true
		}
	}
	var oid encoding_asn1.ObjectIdentifier
	copied := *element
	return copied.ReadASN1ObjectIdentifier(&oid)
}

// parseExtensions parses Extensions (RFC 5280 §4.1), and calls take for each extension. A repeated extension is an
// error.
func parseExtensions(wrapped cryptobyte.String, take func(cryptobyte.String, bool, cryptobyte.String) error) error {
	var list cryptobyte.String
	if !wrapped.ReadASN1(&list, asn1.SEQUENCE) || !wrapped.Empty() || list.Empty() {
		return errors.New("not a list of extensions")
	}
	var some [4]cryptobyte.String
	seen := some[:0]
	for !list.Empty() {
		var extension, oid, value cryptobyte.String
		critical := false
		if !list.ReadASN1(&extension, asn1.SEQUENCE) || !readObjectIdentifier(&extension, &oid) {
			return errors.New("not an extension")
		}
		if extension.PeekASN1Tag(asn1.BOOLEAN) && (!extension.ReadASN1Boolean(&critical) || !critical) {
			return errors.New("an extension encodes critical as FALSE, which DER omits")
		}
		if !extension.ReadASN1(&value, asn1.OCTET_STRING) || !extension.Empty() {
			return errors.New("not an extension")
		}
		if slices.ContainsFunc(seen, func(s cryptobyte.String) bool { return bytes.Equal(s, oid) }) {
			return fmt.Errorf("the extension %v is repeated", oidText(oid))
		}
		if seen = append(seen, oid); len(seen) > maxExtensions {
			return fmt.Errorf("a list of extensions has more than %d entries", maxExtensions)
		}
		if err := take(oid, critical, value); err != nil {
			return err
		}
	}
	return nil
}
