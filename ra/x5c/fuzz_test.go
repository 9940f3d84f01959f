package x5c_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/x5c"
)

// small returns a source, and a device whose certificate has the given subject alternative name.
func small(t testing.TB, san []byte) (*x5c.Authenticator, ra.Presented) {
	t.Helper()
	rootKey, key := newKey(t), newKey(t)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true}
	root := certify(t, template, template, rootKey.Public(), rootKey)
	device := &x509.Certificate{Subject: pkix.Name{CommonName: "device"}}
	if san != nil {
		device.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}
	}
	a := newAuthenticator(t, x5c.Source{Name: "a", Roots: []*x509.Certificate{root}})
	return a, present(t, a, [][]byte{certificateDER(t, device, root, key.Public(), rootKey)}, key, now)
}

// FuzzIdentify changes evidence at a place. Only unchanged evidence may be accepted.
func FuzzIdentify(f *testing.F) {
	a, p := small(f, nil)
	valid := p.Evidence
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{1}, uint32(3))
	f.Add([]byte{0, 0, 0, 0}, uint32(len(valid)))
	f.Add(make([]byte, 100), uint32(1<<31))
	f.Fuzz(func(t *testing.T, edit []byte, at uint32) {
		changed := append([]byte(nil), valid...)
		differs := false
		for i, mask := range edit {
			if place := uint64(at) + uint64(i); place < uint64(len(changed)) {
				changed[place] ^= mask
				differs = differs || mask != 0
			} else {
				changed, differs = append(changed, mask), true
			}
		}
		for _, evidence := range [][]byte{changed, edit} {
			presented := p
			presented.Evidence = evidence
			_, err := a.Identify(t.Context(), presented)
			if _, refused := pki.AsRefusal(err); err != nil && !refused {
				t.Fatalf("got %v, want a refusal", err)
			}
			if err == nil && differs {
				t.Fatalf("the evidence %x is accepted", evidence)
			}
		}
	})
}

// FuzzAltName presents certificates with arbitrary bytes in the subject alternative name.
func FuzzAltName(f *testing.F) {
	for _, text := range []string{"", "\x30\x00", "\x30\x02\x88\x00", "\x30\x03\x82\x01a"} {
		f.Add([]byte(text))
	}
	f.Add([]byte("\x30\x1e\xa0\x1c\x06\x08\x2b\x06\x01\x05\x05\x07\x08\x04\xa0\x10\x30\x0e\x06\x06\x2b\x06\x01\x04\x01\x01\x04\x04\x53\x4e\x2d\x31"))
	f.Add([]byte("\x30\x15\xa0\x13\x06\x08\x2b\x06\x01\x05\x05\x07\x08\x03\xa0\x07\x30\x05\x0c\x03\x50\x49\x37"))
	f.Fuzz(func(t *testing.T, san []byte) {
		if len(san) > 4096 {
			return
		}
		a, p := small(t, san)
		claim, err := a.Identify(t.Context(), p)
		if _, refused := pki.AsRefusal(err); err != nil && !refused {
			t.Fatalf("got %v, want a refusal", err)
		}
		if serial, _ := claim.Facts["x5c.serial"].(string); !utf8.ValidString(serial) {
			t.Fatalf("the serial number %q is not UTF-8", serial)
		}
	})
}

// FuzzCRL loads arbitrary bytes.
func FuzzCRL(f *testing.F) {
	key := newKey(f)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	root := certify(f, template, template, key.Public(), key)
	list := must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: root.SerialNumber, ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: root.SerialNumber, RevocationTime: now}},
	}, root, key))(f)
	f.Add(list)
	f.Add(list[:len(list)/2])
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(_ *testing.T, content []byte) { _ = new(x5c.CRLs).Replace([][]byte{content}) })
}
