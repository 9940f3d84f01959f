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
)

// KeyType says what keys an Agent makes. The zero value is P-256.
type KeyType uint8

// The types of keys that a device generates, followed by those that only the server generates, for relying parties that
// require RSA.
const (
	P256 KeyType = iota
	P384
	Ed25519
	RSA2048
	RSA3072
	RSA4096
)

var keyTypeNames = [...]string{
	P256: "P-256", P384: "P-384", Ed25519: "Ed25519", RSA2048: "RSA-2048", RSA3072: "RSA-3072", RSA4096: "RSA-4096",
}

// String returns the key type's name in profiles.
func (t KeyType) String() string {
	if int(t) >= len(keyTypeNames) {
		return fmt.Sprintf("key(%d)", uint8(t))
	}
	return keyTypeNames[t]
}

// ParseKeyType parses the name of a key type that a device can generate: P-256, P-384 or Ed25519.
func ParseKeyType(text string) (KeyType, error) {
	for t, name := range keyTypeNames[:RSA2048] {
		if name == text {
			return KeyType(t), nil
		}
	}
	return 0, fmt.Errorf("enroll: %q is not a type of key: use P-256, P-384 or Ed25519", text)
}

// UnmarshalText parses a configuration value with ParseKeyType.
func (t *KeyType) UnmarshalText(text []byte) (err error) {
	*t, err = ParseKeyType(string(text))
	return err
}

// newKey generates a key pair.
func (t KeyType) newKey() (crypto.Signer, error) {
	switch t {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, fmt.Errorf("enroll: no such type of key: %s", t)
	}
}

// newCSR returns a PKCS #10 request that proves possession of the key. It contains no names, because the server decides
// them.
func newCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("enroll: make the certification request: %w", err)
	}
	return der, nil
}
