package ocsp

import (
	"bytes"
	"crypto"
	"crypto/sha1" //nolint:gosec // RFC 5019 §2.1.1 has clients name issuers by SHA-1: it is an index here, and proves nothing
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

// The bounds of a request.
const (
	MaxRequestSize = 8 << 10 // octets of DER
	MaxIDs         = 16      // certificates asked about in one request
	MaxNonce       = 128     // octets (RFC 9654 §2.1)
	maxExtensions  = 32      // of a request, and of each certificate that it asks about
)

// IssuerHash names an issuer as a CertID does: by the hashes of its name and its key. IssuerHashes compare with ==
// and work as map keys; the zero value names no issuer.
type IssuerHash struct {
	hash      crypto.Hash
	name, key [sha256.Size]byte
}

// CertID names the certificate that is asked about (RFC 6960 §4.1.1).
type CertID struct {
	// Issuer is zero where it is named by another hash than SHA-1 and SHA-256.
	Issuer IssuerHash
	// Serial is zero where the number asked about is none that RFC 5280 lets a certificate have.
	Serial pki.Serial
	// Raw is the DER of the CertID, which the response repeats.
	Raw []byte
}

// Request asks for the status of 1 to MaxIDs certificates. It refers to the octets it was parsed from.
type Request struct {
	IDs   []CertID
	Nonce []byte // 1 to MaxNonce octets, or nil where there is none
}

var (
	oidSHA1   = encoding_asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256 = encoding_asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidNonce  = encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}

	// The same as elements, which are compared without reading them.
	elementSHA1, elementSHA256, elementNonce = objectIdentifier(oidSHA1), objectIdentifier(oidSHA256), objectIdentifier(oidNonce)
)

func objectIdentifier(oid encoding_asn1.ObjectIdentifier) []byte {
	var b cryptobyte.Builder
	b.AddASN1ObjectIdentifier(oid)
	der, _ := b.Bytes() // what is encoded is constant, and can be
	return der
}

// textOf is how people write an OBJECT IDENTIFIER.
func textOf(element cryptobyte.String) string {
	var oid encoding_asn1.ObjectIdentifier
	element.ReadASN1ObjectIdentifier(&oid)
	return oid.String()
}

// contextTag is the tag of an explicitly tagged field.
func contextTag(number uint8) asn1.Tag { return asn1.Tag(number).ContextSpecific().Constructed() }

// HashIssuers returns the two names by which requests ask about the certificates of a CA: by SHA-1 and by SHA-256.
func HashIssuers(issuer *x509.Certificate) ([2]IssuerHash, error) {
	key, err := publicKeyBits(issuer)
	if err != nil {
		return [2]IssuerHash{}, err
	}
	one, two := IssuerHash{hash: crypto.SHA1}, IssuerHash{hash: crypto.SHA256}
	name1, key1 := sha1.Sum(issuer.RawSubject), sha1.Sum(key) //nolint:gosec // an index, see the import
	copy(one.name[:], name1[:])
	copy(one.key[:], key1[:])
	two.name, two.key = sha256.Sum256(issuer.RawSubject), sha256.Sum256(key)
	return [2]IssuerHash{one, two}, nil
}

// publicKeyBits is the subject's public key without tag, length and unused bits: what RFC 6960 §4.1.1 and §4.2.1 hash.
func publicKeyBits(c *x509.Certificate) ([]byte, error) {
	outer := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	var info cryptobyte.String
	var bits []byte
	if !outer.ReadASN1(&info, asn1.SEQUENCE) || !info.SkipASN1(asn1.SEQUENCE) || !info.ReadASN1BitStringAsBytes(&bits) {
		return nil, errors.New("ocsp: the certificate has no readable public key")
	}
	return bits, nil
}

// ParseRequest reads an OCSPRequest in DER. Any error means malformedRequest (RFC 6960 §2.3).
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > MaxRequestSize {
		return nil, fmt.Errorf("ocsp: a request has at most %d octets, not %d", MaxRequestSize, len(der))
	}
	outer := cryptobyte.String(der)
	var request, tbs cryptobyte.String
	if !outer.ReadASN1(&request, asn1.SEQUENCE) || !outer.Empty() {
		return nil, errors.New("ocsp: not one DER sequence (RFC 6960 section 4.1.1)")
	}
	if !request.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil, errors.New("ocsp: no tbsRequest")
	}
	if !request.SkipOptionalASN1(contextTag(0)) || !request.Empty() {
		return nil, errors.New("ocsp: something other than a signature follows tbsRequest")
	}
	return parseTBS(tbs)
}

// PlainCertID returns where the CertID is in a request that has one and no extensions, as most requests are, and the serial
// number in it. It looks at no more than that takes: only who finds the octets to be those of a CertID that ParseRequest
// returned before knows that they are one, and then that ParseRequest would return it again, and no nonce.
func PlainCertID(der []byte) (id []byte, serial pki.Serial, ok bool) {
	// OCSPRequest, tbsRequest, requestList and Request begin with two octets each, and end together.
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
	// A version is only there when it is not v1, DER leaves out defaults, and there is no other version.
	if tbs.PeekASN1Tag(contextTag(0)) {
		return nil, errors.New("ocsp: only version 1 is known, and DER leaves that out")
	}
	var list, wrapped cryptobyte.String
	var extended bool
	if !tbs.SkipOptionalASN1(contextTag(1)) || !tbs.ReadASN1(&list, asn1.SEQUENCE) {
		return nil, errors.New("ocsp: no requestList")
	}
	if !tbs.ReadOptionalASN1(&wrapped, &extended, contextTag(2)) || !tbs.Empty() {
		return nil, errors.New("ocsp: something other than extensions follows requestList")
	}
	q := &Request{}
	for !list.Empty() {
		if len(q.IDs) == MaxIDs {
			return nil, fmt.Errorf("ocsp: a request asks about at most %d certificates", MaxIDs)
		}
		id, err := parseSingle(&list)
		if err != nil {
			return nil, err
		}
		q.IDs = append(q.IDs, id)
	}
	if len(q.IDs) == 0 {
		return nil, errors.New("ocsp: the request asks about no certificate")
	}
	if extended {
		return q, parseExtensions(wrapped, q.takeExtension)
	}
	return q, nil
}

// takeExtension keeps the nonce; others do not change what is answered.
func (q *Request) takeExtension(oid cryptobyte.String, critical bool, value cryptobyte.String) error {
	switch {
	case bytes.Equal(oid, elementNonce):
		var nonce cryptobyte.String
		if !value.ReadASN1(&nonce, asn1.OCTET_STRING) || !value.Empty() || len(nonce) < 1 || len(nonce) > MaxNonce {
			return fmt.Errorf("ocsp: a nonce is an OCTET STRING of 1 to %d octets (RFC 9654 section 2.1)", MaxNonce)
		}
		q.Nonce = nonce
		return nil
	case critical:
		return fmt.Errorf("ocsp: the critical extension %v is not known here", textOf(oid))
	}
	return nil
}

// refuseCritical is for extensions of single requests, of which none is known.
func refuseCritical(oid cryptobyte.String, critical bool, _ cryptobyte.String) error {
	if critical {
		return fmt.Errorf("ocsp: the critical extension %v is not known here", textOf(oid))
	}
	return nil
}

func parseSingle(list *cryptobyte.String) (CertID, error) {
	var single, raw, wrapped cryptobyte.String
	var extended bool
	if !list.ReadASN1(&single, asn1.SEQUENCE) || !single.ReadASN1Element(&raw, asn1.SEQUENCE) ||
		!single.ReadOptionalASN1(&wrapped, &extended, contextTag(0)) || !single.Empty() {
		return CertID{}, errors.New("ocsp: an entry of requestList is no Request")
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
		return CertID{}, errors.New("ocsp: a reqCert is no CertID")
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
	// The parameters are absent or NULL (RFC 5754 §2); clients send either.
	var null cryptobyte.String
	if !algorithm.Empty() && (!algorithm.ReadASN1(&null, asn1.NULL) || !null.Empty() || !algorithm.Empty()) {
		return CertID{}, errors.New("ocsp: a hash algorithm has no parameters but NULL")
	}
	if len(name) != size || len(key) != size {
		return CertID{}, fmt.Errorf("ocsp: issuerNameHash and issuerKeyHash have %d octets in a CertID of this hash", size)
	}
	copy(id.Issuer.name[:], name)
	copy(id.Issuer.key[:], key)
	return id, nil
}

// readSerial reads an INTEGER. One that no certificate has leaves the serial number zero.
func readSerial(from *cryptobyte.String, serial *pki.Serial) bool {
	whole := *from
	var octets []byte
	if from.ReadASN1Integer(&octets) && len(octets) == pki.SerialSize { // as all have that were made since 2004
		*serial, _ = pki.SerialFromBytes(octets) // zero where the first octet is over 0x7f, which is too long
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

// readObjectIdentifier reads an OBJECT IDENTIFIER as an element, of which there is one for each.
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

// parseExtensions reads Extensions (RFC 5280 §4.1) and hands each to take. None may come twice.
func parseExtensions(wrapped cryptobyte.String, take func(cryptobyte.String, bool, cryptobyte.String) error) error {
	var list cryptobyte.String
	if !wrapped.ReadASN1(&list, asn1.SEQUENCE) || !wrapped.Empty() || list.Empty() {
		return errors.New("ocsp: not a list of extensions")
	}
	var some [4]cryptobyte.String
	seen := some[:0]
	for !list.Empty() {
		var extension, oid, value cryptobyte.String
		critical := false
		if !list.ReadASN1(&extension, asn1.SEQUENCE) || !readObjectIdentifier(&extension, &oid) {
			return errors.New("ocsp: not an extension")
		}
		if extension.PeekASN1Tag(asn1.BOOLEAN) && (!extension.ReadASN1Boolean(&critical) || !critical) {
			return errors.New("ocsp: DER leaves out a criticality of FALSE")
		}
		if !extension.ReadASN1(&value, asn1.OCTET_STRING) || !extension.Empty() {
			return errors.New("ocsp: not an extension")
		}
		if slices.ContainsFunc(seen, func(s cryptobyte.String) bool { return bytes.Equal(s, oid) }) {
			return fmt.Errorf("ocsp: the extension %v comes twice", textOf(oid))
		}
		if seen = append(seen, oid); len(seen) > maxExtensions {
			return fmt.Errorf("ocsp: a request has at most %d extensions in one place", maxExtensions)
		}
		if err := take(oid, critical, value); err != nil {
			return err
		}
	}
	return nil
}
