package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
)

// CheckKeyType returns an error if devices do not generate keys of this type. Devices generate P-256, P-384 and Ed25519
// keys. The server also generates RSA keys, for relying parties that require them.
func CheckKeyType(t pki.KeyType) error {
	switch t {
	case pki.P256, pki.P384, pki.Ed25519:
		return nil
	default:
		return fmt.Errorf("%q is not a type of key: use P-256, P-384 or Ed25519", string(t))
	}
}

// newKey generates a key pair.
func newKey(t pki.KeyType) (crypto.Signer, error) {
	switch t {
	case pki.P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case pki.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case pki.Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case pki.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case pki.RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case pki.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, fmt.Errorf("no such type of key: %q", string(t))
	}
}

// newCSR returns a PKCS #10 request that proves possession of the key. It contains no names, because the server decides
// them.
func newCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make the certification request: %w", err)
	}
	return der, nil
}
