package ra

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// must returns the value of a call that must succeed.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A CSR for a renewal may leave names out, and may contain those of the certificate in any encoding of their strings.
func TestNamesOfReenrollments(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	id := must(url.Parse("spiffe://fleet.example/device/1"))(t)
	subject := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: ca.OIDUserID, Value: "device/1"}}}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: subject, URIs: []*url.URL{id}, DNSNames: []string{"a.example", "b.example"},
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	before := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	certificate := must(x509.ParseCertificate(before))(t)
	extension := func(oid asn1.ObjectIdentifier) pkix.Extension {
		for _, e := range certificate.Extensions {
			if e.Id.Equal(oid) {
				return pkix.Extension{Id: oid, Value: e.Value}
			}
		}
		t.Fatalf("the certificate has no extension %s", oid)
		return pkix.Extension{}
	}
	oidKeyUsage := asn1.ObjectIdentifier{2, 5, 29, 15}
	for name, c := range map[string]struct {
		request x509.CertificateRequest
		allowed bool
	}{
		"nothing":              {x509.CertificateRequest{}, true},
		"the subject":          {x509.CertificateRequest{Subject: subject}, true},
		"the names":            {x509.CertificateRequest{Subject: subject, URIs: template.URIs, DNSNames: template.DNSNames}, true},
		"names in other order": {x509.CertificateRequest{URIs: template.URIs, DNSNames: []string{"b.example", "a.example"}}, true},
		"all extensions": {x509.CertificateRequest{
			ExtraExtensions: []pkix.Extension{extension(oidKeyUsage), extension(oidSubjectAltName)},
		}, true},
		"another subject": {x509.CertificateRequest{Subject: pkix.Name{CommonName: "device/1"}}, false},
		"more attributes": {x509.CertificateRequest{
			Subject: pkix.Name{Organization: []string{"Acme"}, ExtraNames: subject.ExtraNames},
		}, false},
		"fewer names":       {x509.CertificateRequest{URIs: template.URIs, DNSNames: []string{"a.example"}}, false},
		"more names":        {x509.CertificateRequest{URIs: template.URIs, DNSNames: []string{"a.example", "b.example", "c.example"}}, false},
		"another name":      {x509.CertificateRequest{URIs: template.URIs, DNSNames: []string{"a.example", "c.example"}}, false},
		"another key usage": {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: oidKeyUsage, Value: []byte{3, 2, 1, 6}}}}, false},
		"a CA": {x509.CertificateRequest{
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}},
		}, false},
	} {
		c.request.SignatureAlgorithm = x509.ECDSAWithSHA256
		read := must(parseCSR(must(x509.CreateCertificateRequest(rand.Reader, &c.request, key))(t)))(t)
		err := read.checkBefore(before)
		if r, _ := pki.AsRefusal(err); (err == nil) != c.allowed || err != nil && (r == nil || r.Rule != pki.RuleCSRContent) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			err = read.checkContent(Identity{}) // what the identity has now does not matter
		}
		if (err == nil) != c.allowed {
			t.Errorf("%s: %v", name, err)
		}
		read.names = ignored
		if err := read.checkBefore(before); err != nil {
			t.Errorf("%s, with accept_names: %v", name, err)
		}
	}
}
