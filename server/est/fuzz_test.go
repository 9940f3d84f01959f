package est

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// FuzzDecode decodes arbitrary bodies. What is accepted must be the same in lines, and encode must give it back.
func FuzzDecode(f *testing.F) {
	for _, body := range []string{"", "MA==", "MA==\r\n", " M A\t= =", "MA", "MB==", "MA===", "-----BEGIN X", "--x", "0\x82", "MDAw\nMDAw", "\xff"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		der, err := decode(body)
		if err != nil {
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleESTBody || r.Hint == "" || der != nil {
				t.Fatalf("%q: %x, %v", body, der, err)
			}
			return
		}
		if again, err := decode(encode(der)); err != nil || !bytes.Equal(again, der) {
			t.Fatalf("%q reads as %x, and that in lines as %x, %v", body, der, again, err)
		}
	})
}

// FuzzReadCSR reads arbitrary CSRs, and checks whether they are linked to a connection that has no binding.
func FuzzReadCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	valid, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid)
	f.Add(valid[:len(valid)/2])
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		c, ok := readCSR(der)
		if !ok {
			return
		}
		linked, err := checkLinking(c, nil)
		if linked || (err == nil) != (len(c.passwords) == 0) {
			t.Fatalf("%x with %d passwords: linked is %v, %v", der, len(c.passwords), linked, err)
		}
		if q, err := x509.ParseCertificateRequest(der); err == nil && !bytes.Equal(q.RawSubjectPublicKeyInfo, c.spki) {
			t.Fatalf("%x has the key %x, want %x", der, c.spki, q.RawSubjectPublicKeyInfo)
		}
	})
}
