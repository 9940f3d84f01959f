package ra

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// fuzzKey is a fixed key, so that the seeds of one process are valid in another.
var fuzzKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// fuzzIdentity returns the identity that all requests are checked for.
func fuzzIdentity(t testing.TB) Identity {
	t.Helper()
	id, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/1")
	if err != nil {
		t.Fatal(err)
	}
	return Identity{
		ID: id, Kind: pki.Device, Profile: "device", DNSNames: []string{"one.fleet.example"},
		IPAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	}
}

// fuzzRequests returns certification requests that are accepted, and some for names or extensions that are not granted.
func fuzzRequests(t testing.TB) [][]byte {
	t.Helper()
	id := fuzzIdentity(t)
	foreign := &url.URL{Scheme: "spiffe", Host: "fleet.example", Path: "/brevet/server"}
	var requests [][]byte
	for _, template := range []*x509.CertificateRequest{
		{},
		{URIs: []*url.URL{id.ID.URL()}, DNSNames: []string{"ONE.fleet.example"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}},
		{Subject: pkix.Name{CommonName: "device/1"}},
		{Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: ca.OIDUserID, Value: "device/1"}}}},
		{ExtraExtensions: []pkix.Extension{{Id: oidSubjectKeyID, Value: []byte{4, 1, 1}}}},
		{Subject: pkix.Name{CommonName: "device/1", Organization: []string{"x"}}},
		{URIs: []*url.URL{foreign}},
		{EmailAddresses: []string{"a@fleet.example"}, DNSNames: []string{"*.fleet.example"}},
		{ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}},
	} {
		der, err := x509.CreateCertificateRequest(nil, template, fuzzKey) // Ed25519 needs no random bytes
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, der)
	}
	return requests
}

// checkParse parses a request as Enroll and Renew do. It fails unless the request is refused with a rule, or requests only granted
// names.
func checkParse(t *testing.T, der []byte, id Identity) {
	t.Helper()
	c, err := parseCSR(der)
	if err == nil {
		if again, herr := pki.HashKey(c.key); herr != nil || again != c.keyHash {
			t.Fatalf("the hash of the key is %s, and %s after encoding it again: %v", c.keyHash, again, herr)
		}
		err = c.checkContent(id)
	}
	if err != nil {
		if r, ok := pki.AsRefusal(err); !ok || r.Rule == "" || r.Detail == "" || r.Hint == "" {
			t.Fatalf("%v is not a refusal with rule, detail and hint", err)
		}
		return
	}
	asked := slices.Concat(c.request.DNSNames, c.request.EmailAddresses)
	for _, u := range c.request.URIs {
		asked = append(asked, u.String())
	}
	for _, ip := range c.request.IPAddresses {
		asked = append(asked, ip.String())
	}
	for _, name := range asked {
		granted := func(have string) bool { return strings.EqualFold(have, name) }
		if !slices.ContainsFunc([]string{id.ID.String(), "one.fleet.example", "192.0.2.1", "2001:db8::1"}, granted) {
			t.Fatalf("a request for %q is accepted", name)
		}
	}
	for _, e := range c.request.Extensions {
		if !e.Id.Equal(oidSubjectAltName) && !e.Id.Equal(oidSubjectKeyID) {
			t.Fatalf("a request for the extension %s is accepted", e.Id)
		}
	}
}

func FuzzCSR(f *testing.F) {
	id := fuzzIdentity(f)
	for _, der := range fuzzRequests(f) {
		f.Add(der)
		f.Add(append(slices.Clone(der), 0))
		f.Add(der[:len(der)/2])
	}
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, der []byte) { checkParse(t, der, id) })
}

// FuzzSignedCSR fuzzes the subject and the attributes, and signs the result. A change that FuzzCSR makes is already refused
// because of its signature.
func FuzzSignedCSR(f *testing.F) {
	id := fuzzIdentity(f)
	for _, der := range fuzzRequests(f) {
		request := cryptobyte.String(der)
		var info, subject, attributes cryptobyte.String
		if !request.ReadASN1(&request, cryptobyte_asn1.SEQUENCE) || !request.ReadASN1(&info, cryptobyte_asn1.SEQUENCE) ||
			!info.SkipASN1(cryptobyte_asn1.INTEGER) || !info.ReadASN1Element(&subject, cryptobyte_asn1.SEQUENCE) ||
			!info.SkipASN1(cryptobyte_asn1.SEQUENCE) || !info.ReadAnyASN1Element(&attributes, nil) {
			f.Fatal("a seed does not parse")
		}
		f.Add([]byte(subject), []byte(attributes))
	}
	f.Fuzz(func(t *testing.T, subject, attributes []byte) { checkParse(t, signedCSR(t, subject, attributes), id) })
}

// signedCSR returns a signed request (RFC 2986 §4) with a subject and attributes in DER.
func signedCSR(t *testing.T, subject, attributes []byte) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(fuzzKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	sequence := func(parts ...[]byte) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
		der, err := b.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	info := sequence([]byte{2, 1, 0}, subject, spki, attributes)
	signature, err := fuzzKey.Sign(nil, info, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	algorithm := []byte{0x30, 5, 6, 3, 0x2b, 0x65, 0x70} // id-Ed25519 (RFC 8410 §3)
	return sequence(info, algorithm, append([]byte{3, byte(len(signature) + 1), 0}, signature...))
}
