package revtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// CA is a certification authority for a test.
type CA struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// ID returns the CA's issuer ID.
func (ca CA) ID() pki.IssuerID { return pki.IssuerOf(ca.Certificate) }

// Ref returns the reference of a certificate that the CA issued.
func (ca CA) Ref(t testing.TB, leaf *x509.Certificate) pki.CertRef {
	t.Helper()
	serial, err := pki.SerialFromInt(leaf.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	return pki.CertRef{Issuer: ca.ID(), Serial: serial}
}

// Key generates a key of the kind p256, p384, rsa or ed25519.
func Key(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no key of kind %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Serial returns a new serial number.
func Serial(t testing.TB) pki.Serial {
	t.Helper()
	var random [pki.SerialRandomSize]byte
	_, _ = rand.Read(random[:])
	serial, err := pki.MakeSerial(time.Now(), random)
	if err != nil {
		t.Fatal(err)
	}
	return serial
}

// NewRoot returns a self-signed CA that can sign CA certificates.
func NewRoot(t testing.TB, name, keyKind string) CA {
	t.Helper()
	key := Key(t, keyKind)
	template := caTemplate(t, name)
	return CA{sign(t, template, template, key, key), key}
}

// Intermediate returns an issuing CA below ca, with path length 0.
func (ca CA) Intermediate(t testing.TB, name, keyKind string) CA {
	t.Helper()
	key := Key(t, keyKind)
	template := caTemplate(t, name)
	template.MaxPathLenZero = true
	return CA{sign(t, template, ca.Certificate, key, ca.Key), key}
}

func caTemplate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: Serial(t).Int(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// Leaf issues a client certificate that is valid for a day.
func (ca CA) Leaf(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	return ca.LeafWith(t, name, nil)
}

// LeafWith issues a client certificate with additional extensions, like Leaf.
func (ca CA) LeafWith(t testing.TB, name string, extensions []pkix.Extension) *x509.Certificate {
	t.Helper()
	now := time.Now()
	return sign(t, &x509.Certificate{
		ExtraExtensions: extensions,
		SerialNumber:    Serial(t).Int(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Certificate, Key(t, "p256"), ca.Key)
}

// Delegate issues a certificate for the key of an OCSP responder. If edit is not nil, it may change the template.
func (ca CA) Delegate(t testing.TB, key crypto.Signer, edit func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: Serial(t).Int(), Subject: pkix.Name{CommonName: "OCSP responder"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(7 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}},
	}
	if edit != nil {
		edit(template)
	}
	return sign(t, template, ca.Certificate, key, ca.Key)
}

func sign(t testing.TB, template, parent *x509.Certificate, subject, issuer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, subject.Public(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// PEMFile writes certificates to a temporary file.
func PEMFile(t testing.TB, certificates ...*x509.Certificate) string {
	t.Helper()
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return File(t, "certificates.pem", text)
}

// KeyFile writes a private key to a temporary file.
func KeyFile(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return File(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// File writes data to a temporary file.
func File(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
