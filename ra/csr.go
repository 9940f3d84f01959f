package ra

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// MaxCSR is the maximum size of a certification request in bytes.
const MaxCSR = 16 << 10

// maxRSA is the maximum size of an RSA modulus in bits. It bounds the work of verifying a signature.
const maxRSA = 8192

// OIDChallengePassword is the attribute with which a CSR is linked to its connection (RFC 7030 §3.5, RFC 2985 §5.4.1).
var OIDChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
)

// csr is a certification request.
type csr struct {
	key     crypto.PublicKey
	keyHash pki.KeyHash
	request *x509.CertificateRequest
	names   nameCheck
	linked  bool // the attribute challengePassword was compared with the connection
}

// nameCheck says what the subject and the extensions of a CSR are compared with.
type nameCheck uint8

const (
	granted   nameCheck = iota // what the identity was granted
	unchanged                  // those of the certificate to renew; they were compared already
	ignored                    // nothing
)

// parseCSR parses a PKCS #10 request in DER and verifies its proof of possession (RFC 2986 §4.2).
func parseCSR(der []byte) (csr, error) {
	c, err := readCSR(der)
	if err == nil {
		err = c.verify()
	}
	if err != nil {
		return csr{}, err
	}
	return c, nil
}

// verify verifies the signature of the request with the public key in it.
func (c csr) verify() error {
	if err := c.request.CheckSignature(); err != nil {
		return pki.Refuse(pki.RuleCSRSignature, hintSignature,
			"the signature of the request, %s, does not verify with the key in it", c.request.SignatureAlgorithm)
	}
	return nil
}

// readCSR parses a PKCS #10 request in DER. It does not verify the signature.
func readCSR(der []byte) (csr, error) {
	if len(der) == 0 || len(der) > MaxCSR {
		return csr{}, pki.Refuse(pki.RuleCSR, hintDER+", of 16 KiB at most", "the certification request has %d bytes", len(der))
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil || req.Version != 0 || !signs(req.PublicKey) {
		return csr{}, diagnose(der, err)
	}
	if k, ok := req.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSA {
		return csr{}, pki.Refuse(pki.RuleKeyType, hintKey, "the key is RSA with %d bits", k.N.BitLen())
	} else if ok && k.E < 3 {
		return csr{}, pki.Refuse(pki.RuleKeyWeak, "use 65537", "the RSA exponent is %d", k.E) // with exponent 1, a signature needs no private key
	}
	if !slices.Contains(supportedSignatures, req.SignatureAlgorithm) {
		return csr{}, diagnoseSignature(der)
	}
	hash, err := pki.HashKey(req.PublicKey)
	if err != nil || hash != pki.HashSPKI(req.RawSubjectPublicKeyInfo) {
		// The certificate holds a new encoding of the key. If it differed from the request's, one key would have two hashes.
		return csr{}, pki.Refuse(pki.RuleCSR, hintDER+", whose public key has its one DER encoding", "the public key is not encoded in DER")
	}
	return csr{key: req.PublicKey, keyHash: hash, request: req}, nil
}

// KeyOfCSR returns the hash of the key in a PKCS #10 request in DER. It does not verify the signature.
func KeyOfCSR(der []byte) (pki.KeyHash, error) {
	c, err := readCSR(der)
	return c.keyHash, err
}

// signs reports whether key belongs to a signature algorithm, so that a signature can prove possession.
func signs(key crypto.PublicKey) bool {
	switch key.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	default:
		return false
	}
}

const hintContent = "ask for the key alone, or for exactly what the identity was registered with"

// checkContent refuses a request for names or extensions that were not granted to the identity. The certificate never
// takes them from the request, but the refusal tells the client that it would not get what it requested.
func (c csr) checkContent(id Identity) error {
	switch c.names {
	case ignored:
		return nil
	case unchanged:
		return c.checkAttributes()
	}
	refuse := func(detail string, args ...any) error {
		return pki.Refuse(pki.RuleCSRContent, hintContent, detail, args...)
	}
	if err := c.checkSubject(id); err != nil {
		return err
	}
	for _, e := range c.request.Extensions {
		if e.Id.Equal(oidSubjectKeyID) {
			continue // has no effect: the CA computes the subject key identifier
		}
		if !e.Id.Equal(oidSubjectAltName) {
			return refuse("the request asks for the extension %s", e.Id)
		}
		if !knownNames(e.Value) {
			return refuse("the request asks for a kind of name that is never granted")
		}
	}
	for _, u := range c.request.URIs {
		if u.String() != id.ID.String() {
			return refuse("the request asks for a URI that is not %s", id.ID)
		}
	}
	for _, n := range c.request.DNSNames {
		if !slices.ContainsFunc(id.DNSNames, func(have string) bool { return strings.EqualFold(have, n) }) {
			return refuse("the request asks for a DNS name that %s was not granted", id.ID)
		}
	}
	for _, ip := range c.request.IPAddresses {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok || !slices.Contains(id.IPAddresses, addr.Unmap()) {
			return refuse("the request asks for an IP address that %s was not granted", id.ID)
		}
	}
	if len(c.request.EmailAddresses) > 0 {
		return refuse("the request asks for an email address")
	}
	return c.checkAttributes()
}

// checkSubject allows an empty subject, and a subject whose only attribute is a UID or common name with the identity's
// path. It allows both attributes, whichever the profile uses.
func (c csr) checkSubject(id Identity) error {
	names := c.request.Subject.Names
	if len(names) == 0 {
		return nil
	}
	if n := names[0]; len(names) == 1 && n.Value == id.ID.Path() && (n.Type.Equal(ca.OIDUserID) || n.Type.Equal(ca.OIDCommonName)) {
		return nil
	}
	return pki.Refuse(pki.RuleCSRContent, "leave the subject empty, or use UID="+id.ID.Path(), "the request asks for another subject")
}

// checkAttributes allows only extensionRequest attributes, each with a single value (RFC 2986 §4.1), and the
// challengePassword of a CSR that is linked to its connection. It parses the DER itself, because crypto/x509 ignores
// unknown attributes and additional values.
func (c csr) checkAttributes() error {
	refuse := func(detail string, args ...any) error {
		return pki.Refuse(pki.RuleCSRContent, hintContent, detail, args...)
	}
	info := cryptobyte.String(c.request.RawTBSCertificateRequest)
	var attributes cryptobyte.String
	if !info.ReadASN1(&info, cryptobyte_asn1.SEQUENCE) || !info.SkipASN1(cryptobyte_asn1.INTEGER) ||
		!info.SkipASN1(cryptobyte_asn1.SEQUENCE) || !info.SkipASN1(cryptobyte_asn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attributes, nil, cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() {
		return refuse("the request's attributes cannot be read")
	}
	for !attributes.Empty() {
		var attribute, values cryptobyte.String
		var id asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, cryptobyte_asn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&id) ||
			!attribute.ReadASN1(&values, cryptobyte_asn1.SET) || !attribute.Empty() {
			return refuse("an attribute of the request cannot be read")
		}
		if id.Equal(OIDChallengePassword) && c.linked {
			continue
		}
		if !id.Equal(oidExtensionRequest) {
			return refuse("the request has the attribute %s", id)
		}
		if !values.SkipASN1(cryptobyte_asn1.SEQUENCE) || !values.Empty() {
			return refuse("an attribute of the request does not have exactly one value")
		}
	}
	return nil
}

// knownNames reports whether a subject alternative name holds only the kinds of names that checkContent compares: email
// addresses, DNS names, URIs and IP addresses (RFC 5280 §4.2.1.6). crypto/x509 ignores other kinds.
func knownNames(san []byte) bool {
	var names cryptobyte.String
	value := cryptobyte.String(san)
	if !value.ReadASN1(&names, cryptobyte_asn1.SEQUENCE) || !value.Empty() {
		return false
	}
	for !names.Empty() {
		var name cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return false
		}
		switch tag {
		case cryptobyte_asn1.Tag(1).ContextSpecific(), cryptobyte_asn1.Tag(2).ContextSpecific(),
			cryptobyte_asn1.Tag(6).ContextSpecific(), cryptobyte_asn1.Tag(7).ContextSpecific():
		default:
			return false
		}
	}
	return true
}
