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

// The kinds of keys that a device makes for itself, and then those that only the server makes, for relying parties that ask
// for it.
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

// String returns the name that profiles have for it.
func (t KeyType) String() string {
	if int(t) >= len(keyTypeNames) {
		return fmt.Sprintf("key(%d)", uint8(t))
	}
	return keyTypeNames[t]
}

// ParseKeyType reads what a device makes: P-256, P-384 or Ed25519.
func ParseKeyType(text string) (KeyType, error) {
	for t, name := range keyTypeNames[:RSA2048] {
		if name == text {
			return KeyType(t), nil
		}
	}
	return 0, fmt.Errorf("enroll: %q is not a type of key: use P-256, P-384 or Ed25519", text)
}

// UnmarshalText reads a configuration's value as ParseKeyType does.
func (t *KeyType) UnmarshalText(text []byte) (err error) {
	*t, err = ParseKeyType(string(text))
	return err
}

// newKey makes a key pair.
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

// newCSR proves possession of the key and asks for nothing else: what the certificate says is the server's to decide.
func newCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("enroll: make the certification request: %w", err)
	}
	return der, nil
}
