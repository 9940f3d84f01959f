package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/enroll/tpm"
)

// factoryFiles are the two files of a factory certificate.
type factoryFiles struct {
	certificate, key string // contents
	mode             os.FileMode
}

// made are the files that a manufacturer makes for a device, with an intermediate CA.
func made(t *testing.T) factoryFiles {
	t.Helper()
	ca, key := newTestCA(t), testKey(t)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "camera"}, NotAfter: time.Now().Add(time.Hour)}
	device := testSign(t, template, ca.issuer, key.Public(), ca.issuerKey)
	return factoryFiles{string(encodeCertificates([]*x509.Certificate{device, ca.issuer})), pkcs8(t, key), 0o600}
}

func pkcs8(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return inPEM("PRIVATE KEY", der)
}

func inPEM(name string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: name, Bytes: der}))
}

// read writes the files, and reads them as the agent does.
func (f factoryFiles) read(t *testing.T) (Evidence, error) {
	t.Helper()
	dir := t.TempDir()
	certificate, key := filepath.Join(dir, "idevid.pem"), filepath.Join(dir, "idevid.key")
	for path, text := range map[string]string{certificate: f.certificate, key: f.key} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f.key != "" {
		if err := os.Chmod(key, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := ReadFactoryCertificate(certificate, key, tpm.New(filepath.Join(dir, "no-tpm")))
	if err != nil {
		return nil, err
	}
	return FactoryCertificate(pair)
}

func TestFactoryFiles(t *testing.T) {
	good := made(t)
	key := testKey(t).(*ecdsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	selfSigned := func(key crypto.Signer) string {
		return inPEM("CERTIFICATE", factoryPair(t, key).Certificate[0])
	}
	device, issuer, _ := strings.Cut(good.certificate, "-----END CERTIFICATE-----\n")
	device += "-----END CERTIFICATE-----\n"
	for name, c := range map[string]struct {
		files factoryFiles
		says  string // part of the error; empty for success
	}{
		"PKCS #8":             {good, ""},
		"without issuers":     {factoryFiles{device, good.key, 0o600}, ""},
		"of a group":          {factoryFiles{good.certificate, good.key, 0o640}, ""},
		"SEC 1":               {factoryFiles{selfSigned(key), inPEM("EC PARAMETERS", []byte{6, 0}) + inPEM("EC PRIVATE KEY", sec1), 0o600}, ""},
		"PKCS #1":             {factoryFiles{selfSigned(large), inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(large)), 0o600}, ""},
		"key of another":      {factoryFiles{good.certificate, pkcs8(t, key), 0o600}, "does not belong to the factory certificate"},
		"key for every user":  {factoryFiles{good.certificate, good.key, 0o644}, "every user can access"},
		"key with passphrase": {factoryFiles{good.certificate, inPEM("ENCRYPTED PRIVATE KEY", []byte{1}), 0o600}, "has a passphrase"},
		"legacy passphrase": {factoryFiles{good.certificate, "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,00\n\nAQ==\n-----END RSA PRIVATE KEY-----\n", 0o600},
			"has a passphrase"},
		"key missing":            {factoryFiles{good.certificate, "", 0}, "idevid.key: no such file"},
		"key that is none":       {factoryFiles{good.certificate, "secret", 0o600}, "holds no private key in PEM"},
		"key cut off":            {factoryFiles{good.certificate, inPEM("EC PRIVATE KEY", sec1[:20]), 0o600}, "does not parse"},
		"key of another type":    {factoryFiles{good.certificate, inPEM("PUBLIC KEY", []byte{1}), 0o600}, "a PUBLIC KEY is not a private key"},
		"only parameters":        {factoryFiles{good.certificate, inPEM("EC PARAMETERS", []byte{6, 0}), 0o600}, "holds no private key in PEM"},
		"malformed TPM key":      {factoryFiles{good.certificate, inPEM(tpm.PEMType, []byte{1}), 0o644}, "key file does not parse"},
		"certificate missing":    {factoryFiles{"", good.key, 0o600}, "idevid.pem: no such file"},
		"certificate empty":      {factoryFiles{"\n", good.key, 0o600}, "holds no certificate"},
		"certificate is a key":   {factoryFiles{good.key, good.key, 0o600}, "must contain only certificates"},
		"issuer first":           {factoryFiles{issuer + device, good.key, 0o600}, "put the device's certificate first"},
		"issuer of another":      {factoryFiles{device + selfSigned(key), good.key, 0o600}, "put the device's certificate first"},
		"certificates too large": {factoryFiles{strings.Repeat(device, 800), good.key, 0o600}, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := c.files.read(t)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if err == nil && len(e.Subject()) != 64 {
				t.Errorf("the subject is %q", e.Subject())
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error contains the key: %v", err)
			}
		})
	}
}

// The key is a link to a FIFO, or to a directory: reading does not wait.
func TestFactoryKeyIsARegularFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if err := os.Symlink(dir, path); err != nil {
		t.Fatal(err)
	}
	if _, err := readFactoryKey(path, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a link to a directory: %v", err)
	}
}
