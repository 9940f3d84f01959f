package file

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzCeremonyFiles passes arbitrary files to every reader of the package. A reader returns either a complete object,
// or an error that names the file.
func FuzzCeremonyFiles(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), SubjectKeyId: []byte{1}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageCRLSign,
	}
	add := func(kind string, der []byte, err error) {
		if err != nil {
			f.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		f.Add(der)
		f.Add(text)
		f.Add(append([]byte("a letter before\n"), append(text, text...)...))
		f.Add(pem.EncodeToMemory(&pem.Block{Type: kind, Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: der}))
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	add("CERTIFICATE", der, err)
	der, err = x509.CreateCertificateRequest(nil, &x509.CertificateRequest{}, key)
	add("CERTIFICATE REQUEST", der, err)
	der, err = x509.CreateRevocationList(nil, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Unix(0, 0), NextUpdate: time.Unix(1, 0)}, template, key)
	add("X509 CRL", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	add("PRIVATE KEY", der, err)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		check := func(what string, raw []byte, err error) {
			switch {
			case err == nil && len(raw) == 0:
				t.Errorf("an empty %s is accepted", what)
			case err != nil && !strings.Contains(err.Error(), path):
				t.Errorf("%s: %v does not name the file", what, err)
			case err == nil && !bytes.Contains(data, raw) && !bytes.Contains(data, []byte("-----BEGIN ")):
				t.Errorf("the %s that was read is not in the file", what)
			}
		}
		if c, err := ReadCertificate(path); err != nil {
			check("certificate", nil, err)
		} else {
			check("certificate", c.Raw, nil)
		}
		if r, err := ReadRequest(path); err != nil {
			check("request", nil, err)
		} else {
			check("request", r.Raw, nil)
		}
		if l, err := ReadCRL(path); err != nil {
			check("CRL", nil, err)
		} else {
			check("CRL", l.Raw, nil)
		}
	})
}
