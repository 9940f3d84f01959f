package ra_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // for a signature that is refused
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

var (
	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidSubjectAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidSubjectKeyID      = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidBasicConstraints  = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage          = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidECDSAWithSHA1     = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	oidECDSAWithSHA256   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidSHA256WithRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidEd25519           = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// attribute is an attribute of a certification request (RFC 2986 §4.1).
type attribute struct {
	ID     asn1.ObjectIdentifier
	Values []any `asn1:"set"`
}

// handmade returns a request with any attributes, signed with any hash. crypto/x509 cannot create such a request.
func handmade(t *testing.T, hash crypto.Hash, algorithm asn1.ObjectIdentifier, attributes ...attribute) []byte {
	t.Helper()
	key := servertest.Key(t)
	return handmadeFor(t, key, servertest.Must(x509.MarshalPKIXPublicKey(key.Public()))(t), hash, algorithm, attributes...)
}

// longKey returns a request whose public key has an additional element, which encoding/asn1 ignores. So the same key has
// another hash.
func longKey(t *testing.T) []byte {
	t.Helper()
	key := servertest.Key(t)
	var spki asn1.RawValue
	servertest.Must(asn1.Unmarshal(servertest.Must(x509.MarshalPKIXPublicKey(key.Public()))(t), &spki))(t)
	long := servertest.Must(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: append(spki.Bytes, asn1.NullBytes...)}))(t)
	return handmadeFor(t, key, long, crypto.SHA256, oidECDSAWithSHA256)
}

func handmadeFor(t *testing.T, key *ecdsa.PrivateKey, spki []byte, hash crypto.Hash, algorithm asn1.ObjectIdentifier, attributes ...attribute) []byte {
	t.Helper()
	return assembled(t, 0, spki, algorithm, signedBy(t, key, hash), attributes...)
}

func signedBy(t *testing.T, key *ecdsa.PrivateKey, hash crypto.Hash) func(info []byte) []byte {
	t.Helper()
	return func(info []byte) []byte {
		h := hash.New()
		h.Write(info)
		return servertest.Must(ecdsa.SignASN1(rand.Reader, key, h.Sum(nil)))(t)
	}
}

// versioned returns a request with the given version. RFC 2986 defines only version 0.
func versioned(t *testing.T, version int) []byte {
	t.Helper()
	key := servertest.Key(t)
	spki := servertest.Must(x509.MarshalPKIXPublicKey(key.Public()))(t)
	return assembled(t, version, spki, oidECDSAWithSHA256, signedBy(t, key, crypto.SHA256))
}

// assembled returns a request (RFC 2986 §4) for a public key in DER, signed by sign.
func assembled(t *testing.T, version int, spki []byte, algorithm asn1.ObjectIdentifier, sign func(info []byte) []byte, attributes ...attribute) []byte {
	t.Helper()
	var list []byte
	for _, a := range attributes {
		list = append(list, servertest.Must(asn1.Marshal(a))(t)...)
	}
	info := servertest.Must(asn1.Marshal(struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        asn1.RawValue
		Attributes asn1.RawValue
	}{version, nil, asn1.RawValue{FullBytes: spki}, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: list}}))(t)
	signature := sign(info)
	return servertest.Must(asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: algorithm}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}))(t)
}

// neutral returns a request whose key is the neutral element of Ed25519. Its signature is valid for every message, and needs no
// private key.
func neutral(t *testing.T) []byte {
	t.Helper()
	point := append([]byte{1}, make([]byte, ed25519.PublicKeySize-1)...)
	spki := servertest.Must(x509.MarshalPKIXPublicKey(ed25519.PublicKey(point)))(t)
	return assembled(t, 0, spki, oidEd25519, func([]byte) []byte { return append(point, make([]byte, ed25519.PublicKeySize)...) })
}

// pointed returns a request for a P-256 key, with the point encoded by write.
func pointed(t *testing.T, write func(uncompressed []byte) []byte) []byte {
	t.Helper()
	key := servertest.Key(t)
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Point     asn1.BitString
	}
	servertest.Must(asn1.Unmarshal(servertest.Must(x509.MarshalPKIXPublicKey(key.Public()))(t), &spki))(t)
	point := write(spki.Point.Bytes)
	spki.Point = asn1.BitString{Bytes: point, BitLength: 8 * len(point)}
	return handmadeFor(t, key, servertest.Must(asn1.Marshal(spki))(t), crypto.SHA256, oidECDSAWithSHA256)
}

func withAttributes(t *testing.T, attributes ...attribute) []byte {
	t.Helper()
	return handmade(t, crypto.SHA256, oidECDSAWithSHA256, attributes...)
}

// extensions returns one value of an extensionRequest attribute, with a DNS name for each name.
func extensions(t *testing.T, names ...string) any {
	t.Helper()
	var sans []asn1.RawValue
	for _, n := range names {
		sans = append(sans, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(n)})
	}
	return []pkix.Extension{{Id: oidSubjectAltName, Value: servertest.Must(asn1.Marshal(sans))(t)}}
}

// san adds a subject alternative name extension with one name of the given tag.
func san(t *testing.T, tag int, constructed bool, value []byte) func(*x509.CertificateRequest) {
	t.Helper()
	der := servertest.Must(asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: constructed, Bytes: value}}))(t)
	return extension(oidSubjectAltName, der)
}

func extension(id asn1.ObjectIdentifier, value []byte) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) {
		r.ExtraExtensions = append(r.ExtraExtensions, pkix.Extension{Id: id, Value: value})
	}
}

// exponent3 generates an RSA key of 3072 bits with the public exponent 3. crypto/rsa does not generate such keys.
func exponent3(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	one, three := big.NewInt(1), big.NewInt(3)
	for {
		p, q := servertest.Must(rand.Prime(rand.Reader, 1536))(t), servertest.Must(rand.Prime(rand.Reader, 1536))(t)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(three, phi)
		n := new(big.Int).Mul(p, q)
		if d == nil || n.BitLen() != 3072 {
			continue
		}
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 3}, D: d, Primes: []*big.Int{p, q}}
		key.Precompute()
		return key
	}
}

// exponent1 returns a request for an RSA key with the public exponent 1. The signature equals the padded digest.
func exponent1(t *testing.T) []byte {
	t.Helper()
	key := servertest.Must(rsa.GenerateKey(rand.Reader, 2048))(t).PublicKey
	key.E = 1
	return handmadeFor(t, servertest.Key(t), servertest.Must(x509.MarshalPKIXPublicKey(&key))(t), crypto.SHA256, oidECDSAWithSHA256)
}

// huge returns a request for an RSA key so large that verifying its signature takes long. The server must not verify it, so
// the signature is empty.
func huge(t *testing.T) []byte {
	t.Helper()
	n := new(big.Int).SetBit(big.NewInt(1), 16383, 1)
	spki := servertest.Must(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537}))(t)
	return handmadeFor(t, servertest.Key(t), spki, crypto.SHA256, oidSHA256WithRSA)
}

func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, template := servertest.Key(t), &x509.Certificate{SerialNumber: big.NewInt(1)}
	return servertest.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
}

// csrCase is a certification request that is refused.
type csrCase struct {
	name string
	csr  []byte
	rule pki.Rule
}

// malformedCases returns requests with a wrong encoding or proof of possession.
func malformedCases(t *testing.T) []csrCase {
	t.Helper()
	fine := servertest.CSR(t, servertest.Key(t))
	broken, truncated := bytes.Clone(fine), fine[:len(fine)-1]
	broken[len(broken)-1] ^= 1
	stranger := bytes.Clone(fine) // another key, with the signature of the first
	at := bytes.Index(stranger, []byte{0x00, 0x04}) + 2
	public := servertest.Must(servertest.Key(t).PublicKey.Bytes())(t)
	copy(stranger[at:], public[1:])
	return []csrCase{
		{"nothing", nil, pki.RuleCSR},
		{"a sentence", []byte("please sign this"), pki.RuleCSR},
		{"a key with an additional element", longKey(t), pki.RuleCSR},
		{"a certificate", selfSigned(t), pki.RuleCSR},
		{"16 KiB and one byte", make([]byte, 16<<10+1), pki.RuleCSR},
		{"another version", versioned(t, 1), pki.RuleCSR},
		{"trailing data", append(bytes.Clone(fine), 0), pki.RuleCSR},
		{"two requests", append(bytes.Clone(fine), fine...), pki.RuleCSR},
		{"truncated", truncated, pki.RuleCSR},
		{"an indefinite length", slices.Concat([]byte{0x30, 0x80}, fine[bytes.IndexByte(fine[1:], 0x30)+1:], []byte{0, 0}), pki.RuleCSR},
		{"a point that is on no curve", pointed(t, func(p []byte) []byte { p[len(p)-1] ^= 1; return p }), pki.RuleCSR},
		{"a compressed point", pointed(t, func(p []byte) []byte { return append([]byte{2 | p[64]&1}, p[1:33]...) }), pki.RuleCSR},
		{"a hybrid point", pointed(t, func(p []byte) []byte { p[0] = 6 | p[64]&1; return p }), pki.RuleCSR},
		{"the point at infinity", pointed(t, func([]byte) []byte { return []byte{0} }), pki.RuleCSR},
		{"a broken signature", broken, pki.RuleCSRSignature},
		{"another key's signature", stranger, pki.RuleCSRSignature},
		{"a SHA-1 signature", handmade(t, crypto.SHA1, oidECDSAWithSHA1), pki.RuleCSRSignature},
	}
}

// keyCases returns requests whose key is refused.
func keyCases(t *testing.T) []csrCase {
	t.Helper()
	onCurve := func(c elliptic.Curve) []byte {
		return servertest.CSR(t, servertest.Must(ecdsa.GenerateKey(c, rand.Reader))(t))
	}
	ofBits := func(n int) []byte { return servertest.CSR(t, servertest.Must(rsa.GenerateKey(rand.Reader, n))(t)) }
	return []csrCase{
		{"RSA-1024", ofBits(1024), pki.RuleKeyType},
		{"RSA-2047", ofBits(2047), pki.RuleKeyType},
		{"RSA-2048, not in the profile", ofBits(2048), pki.RuleKeyType},
		{"RSA with exponent 1", exponent1(t), pki.RuleKeyWeak},
		{"RSA with exponent 3", servertest.CSR(t, exponent3(t)), pki.RuleKeyWeak},
		{"RSA-16384", huge(t), pki.RuleKeyType},
		{"an Ed25519 key that is the neutral element", neutral(t), pki.RuleKeyWeak},
		{"P-224", onCurve(elliptic.P224()), pki.RuleKeyType},
		{"P-521", onCurve(elliptic.P521()), pki.RuleKeyType},
	}
}

// contentCases returns requests for subjects, names or extensions that were not granted.
func contentCases(t *testing.T) []csrCase {
	t.Helper()
	asking := func(edits ...func(*x509.CertificateRequest)) []byte {
		return servertest.CSR(t, servertest.Key(t), edits...)
	}
	var names []string
	for i := range 10_000 {
		names = append(names, fmt.Sprintf("h%d.test", i))
	}
	uri := func(text string) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) { r.URIs = append(r.URIs, servertest.Must(url.Parse(text))(t)) }
	}
	subject := func(n pkix.Name) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) { r.Subject = n }
	}
	cases := []csrCase{
		{name: "a DNS name", csr: asking(func(r *x509.CertificateRequest) { r.DNSNames = []string{"other.fleet.example"} })},
		{name: "its own DNS name and another", csr: asking(func(r *x509.CertificateRequest) { r.DNSNames = []string{"pump.fleet.example", "a.fleet.example"} })},
		{name: "a wildcard", csr: asking(func(r *x509.CertificateRequest) { r.DNSNames = []string{"*.fleet.example"} })},
		{name: "an IP address", csr: asking(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 99)} })},
		{name: "an email address", csr: asking(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@fleet.example"} })},
		{name: "the server's URI in capitals", csr: asking(uri("spiffe://fleet.example/BREVET/server"))},
		{name: "the server's URI, escaped", csr: asking(uri("spiffe://fleet.example/%62revet/server"))},
		{name: "the server's URI with dots", csr: asking(uri("spiffe://fleet.example/device/../brevet/server"))},
		{name: "the server's URI in another case of scheme and host", csr: asking(uri("SPIFFE://FLEET.example/brevet/server"))},
		{name: "an operator's URI beside its own", csr: asking(uri("spiffe://fleet.example/device/pump"), uri("spiffe://fleet.example/brevet/operator/alice"))},
		{name: "a look-alike of its own URI", csr: asking(uri("spiffe://fleet.example/device/p\u0443mp"))},
		{name: "its own URI with a NUL", csr: asking(san(t, 6, false, []byte("spiffe://fleet.example/device/pump%00")))},
		{name: "its own DNS name with a trailing dot", csr: asking(san(t, 2, false, []byte("pump.fleet.example.")))},
		{name: "a common name with a NUL", csr: asking(subject(pkix.Name{CommonName: "device/pump\x00"}))},
		{name: "a common name with a right-to-left override", csr: asking(subject(pkix.Name{CommonName: "device/pump\u202e"}))},
		{name: "the server's URI with a double slash", csr: asking(uri("spiffe://fleet.example//brevet/server"))},
		{name: "the server's URI with a trailing slash", csr: asking(uri("spiffe://fleet.example/brevet/server/"))},
		{name: "the server's URI with an escaped slash", csr: asking(uri("spiffe://fleet.example/brevet%2fserver"))},
		{name: "the server's common name", csr: asking(subject(pkix.Name{CommonName: "brevet/server"}))},
		{name: "a look-alike of the server's common name", csr: asking(subject(pkix.Name{CommonName: "br\u0435vet/server"}))},
		{name: "another identity's URI", csr: asking(uri("spiffe://fleet.example/device/other"))},
		{name: "the server's URI", csr: asking(uri("spiffe://fleet.example/brevet/server"))},
		{name: "a kind of URI", csr: asking(uri("https://fleet.example"))},
		{name: "a thousand names", csr: asking(func(r *x509.CertificateRequest) { r.DNSNames = names[:1000] })},
		{name: "trailing data in its names", csr: asking(extension(oidSubjectAltName, []byte{0x30, 0, 0}))},
		{name: "a directory name", csr: asking(san(t, 4, true, []byte{0x30, 0}))},
		{name: "an otherName", csr: asking(san(t, 0, true, []byte{0x06, 1, 0x2a, 0xa0, 2, 0x05, 0}))},
		{name: "a registered ID", csr: asking(san(t, 8, false, []byte{0x2a}))},
		{name: "CA:TRUE", csr: asking(extension(oidBasicConstraints, []byte{0x30, 3, 1, 1, 0xff}))},
		{name: "CA:FALSE", csr: asking(extension(oidBasicConstraints, []byte{0x30, 0}))},
		{name: "a key usage", csr: asking(extension(oidKeyUsage, []byte{3, 2, 1, 6}))},
		{name: "another subject", csr: asking(subject(pkix.Name{CommonName: "device/other"}))},
		{name: "another user identifier", csr: asking(subject(userID("device/other")))},
		{name: "its user identifier twice", csr: asking(subject(pkix.Name{ExtraNames: slices.Repeat(userID("device/pump").ExtraNames, 2)}))},
		{name: "its user identifier and a common name", csr: asking(subject(pkix.Name{CommonName: "bank.example", ExtraNames: userID("device/pump").ExtraNames}))},
		{name: "its path as organization", csr: asking(subject(pkix.Name{Organization: []string{"device/pump"}}))},
		{name: "a user identifier that is not a string", csr: asking(subject(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: ca.OIDUserID, Value: 7}}}))},
		{name: "an organization", csr: asking(subject(pkix.Name{Organization: []string{"Fleet"}}))},
		{name: "its name and an organization", csr: asking(subject(pkix.Name{CommonName: "device/pump", Organization: []string{"Fleet"}}))},
		{name: "a challenge password", csr: withAttributes(t, attribute{oidChallengePassword, []any{"secret"}})},
		{name: "a structured attribute", csr: withAttributes(t, attribute{asn1.ObjectIdentifier{1, 2, 3}, []any{[]pkix.AttributeTypeAndValue{{Type: oidKeyUsage, Value: "x"}}}})},
		{name: "extensions in a second value", csr: withAttributes(t, attribute{oidExtensionRequest, []any{extensions(t), extensions(t, "b.example")}})},
		{name: "extensions in a second attribute", csr: withAttributes(t, attribute{oidExtensionRequest, []any{extensions(t)}}, attribute{oidExtensionRequest, []any{[]pkix.Extension{{Id: oidKeyUsage, Value: []byte{3, 2, 1, 6}}}}})},
	}
	for i := range cases {
		cases[i].rule = pki.RuleCSRContent
	}
	return append(cases, csrCase{"ten thousand names", asking(func(r *x509.CertificateRequest) { r.DNSNames = names }), pki.RuleCSR})
}

func TestRefusedCSRs(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	outer, nobody := t, w.Caller(t, nil)
	pump := w.Enrolled(t, "device", "device/pump", granted)
	for _, c := range append(append(malformedCases(t), keyCases(t)...), contentCases(t)...) {
		t.Run(c.name, func(t *testing.T) {
			token := w.Token(t, pump.ID, true)
			certificates := rows(t, w, "certificates")
			_, err := nobody.Enroll(t.Context(), &brevetv1.EnrollRequest{RequestId: servertest.RequestID(), Evidence: servertest.TokenEvidence(token), Csr: c.csr})
			servertest.Refused(t, err, codes.InvalidArgument, c.rule)
			_, err = pump.Renew(t.Context(), &brevetv1.RenewRequest{RequestId: servertest.RequestID(), Csr: c.csr})
			servertest.Refused(t, err, codes.InvalidArgument, c.rule)
			if n, intents := rows(t, w, "certificates"), rows(t, w, "intents"); n != certificates || intents != 0 {
				t.Errorf("%d certificates and %d intents are on record, want %d and 0", n, intents, certificates)
			}
			w.Status(t, pump.Certificate, "good")         // the token did not revoke it
			next := w.Enroll(t, token, servertest.Key(t)) // the token is not spent
			pump = w.Holder(outer, next.Certificate.Raw, next.Key)
		})
	}
}

// TestKeytoolCSR enrolls with a request of keytool -certreq -dname CN=java/1. It contains a subject key identifier.
func TestKeytoolCSR(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	csr := servertest.Must(base64.StdEncoding.DecodeString(string(servertest.Must(os.ReadFile("testdata/keytool.csr.b64"))(t))))(t)
	req := &brevetv1.EnrollRequest{RequestId: servertest.RequestID(), Evidence: servertest.TokenEvidence(w.Token(t, w.Register(t, "device", "java/1"), false)), Csr: csr}
	der := servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t).GetCredential().GetCertificate()
	asked := servertest.Must(x509.ParseCertificateRequest(csr))(t)
	c := servertest.Must(x509.ParseCertificate(der))(t)
	if subjectOf(t, c) != "UID = java/1" || len(asked.Extensions) != 1 || bytes.Contains(asked.Extensions[0].Value, c.SubjectKeyId) {
		t.Errorf("the certificate has the subject %s and the key identifier %x", c.Subject, c.SubjectKeyId)
	}
}

// userID returns a subject whose only attribute is a user identifier (RFC 4519 §2.39).
func userID(text string) pkix.Name {
	return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: ca.OIDUserID, Value: text}}}
}

// subjectOf returns the subject of a certificate in the format of OpenSSL.
func subjectOf(t *testing.T, c *x509.Certificate) string {
	t.Helper()
	cmd := exec.Command("openssl", "x509", "-inform", "DER", "-noout", "-subject")
	cmd.Stdin = bytes.NewReader(c.Raw)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl x509: %v: run deploy/setup.sh --test", err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), "subject="))
}

func granted(r *brevetv1.CreateIdentityRequest) {
	r.Spec.Names = servertest.Names([]string{"pump.fleet.example"}, []string{"192.0.2.7"})
}

func TestCSRsForGrantedNames(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	asking := func(edits ...func(*x509.CertificateRequest)) []byte {
		return servertest.CSR(t, servertest.Key(t), edits...)
	}
	id := w.Register(t, "device", "device/3", granted)
	for i, csr := range [][]byte{
		asking(),
		asking(func(r *x509.CertificateRequest) { r.Subject.CommonName = "device/3" }),
		asking(func(r *x509.CertificateRequest) { r.Subject = userID("device/3") }),
		asking(extension(oidSubjectKeyID, []byte{4, 2, 1, 2})), // keytool always requests one
		asking(extension(oidSubjectKeyID, []byte("no octet string"))),
		asking(func(r *x509.CertificateRequest) { r.DNSNames = []string{"PUMP.fleet.example"} }),
		asking(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 7)} }),
		asking(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{servertest.Must(url.Parse(id))(t)} }),
		withAttributes(t),
		pointed(t, func(p []byte) []byte { return p }),
		versioned(t, 0),
		withAttributes(t, attribute{oidExtensionRequest, []any{extensions(t, "pump.fleet.example")}}),
	} {
		req := &brevetv1.EnrollRequest{RequestId: servertest.RequestID(), Evidence: servertest.TokenEvidence(w.Token(t, id, i > 0)), Csr: csr}
		der := servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t).GetCredential().GetCertificate()
		c := servertest.Must(x509.ParseCertificate(der))(t)
		if subjectOf(t, c) != "UID = device/3" || len(c.DNSNames) != 1 || c.DNSNames[0] != "pump.fleet.example" || len(c.IPAddresses) != 1 || len(c.URIs) != 1 {
			t.Errorf("request %d: the certificate names %s, %v, %v, %v", i, c.Subject, c.DNSNames, c.IPAddresses, c.URIs)
		}
	}
}
