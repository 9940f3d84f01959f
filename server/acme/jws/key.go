package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Key is a public key that is not weak.
type Key struct {
	SPKI       []byte   // SubjectPublicKeyInfo in DER (RFC 5280 §4.1.2.7)
	Thumbprint [32]byte // RFC 7638

	public    crypto.PublicKey
	kind      pki.KeyType
	algorithm jose.SignatureAlgorithm
}

const keyHint = "use a key of one of the types P-256, P-384, Ed25519 and RSA of 2048, 3072 or 4096 bits"

// ParseKey parses a JWK (RFC 7517 §4). It refuses private and secret keys, and the keys that package ca refuses.
func ParseKey(jwk []byte) (*Key, error) {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(jwk); err != nil || !k.Valid() {
		return nil, pki.Refuse(pki.RuleACMEPublicKey, keyHint, "the jwk is not a valid key")
	}
	if !k.IsPublic() {
		return nil, pki.Refuse(pki.RuleACMEPublicKey, "make a new key, because this one was sent, and send its public part only",
			"the jwk contains a private or secret key")
	}
	return newKey(k.Key)
}

// ParseSPKI parses a SubjectPublicKeyInfo in DER.
func ParseSPKI(der []byte) (*Key, error) {
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, pki.Refuse(pki.RuleACMEPublicKey, keyHint, "the key cannot be parsed")
	}
	return newKey(public)
}

func newKey(public crypto.PublicKey) (*Key, error) {
	kind, err := ca.TypeOf(public)
	if err != nil {
		detail := "the key is of another type"
		if r, ok := pki.AsRefusal(err); ok {
			detail = r.Detail
		}
		return nil, pki.Refuse(pki.RuleACMEPublicKey, keyHint, "%s", detail)
	}
	k := &Key{public: public, kind: kind}
	switch public.(type) {
	case *rsa.PublicKey:
		k.algorithm = jose.RS256
	case ed25519.PublicKey:
		k.algorithm = jose.EdDSA
	case *ecdsa.PublicKey:
		k.algorithm = jose.ES256
		if kind == pki.P384 {
			k.algorithm = jose.ES384
		}
	}
	if k.SPKI, err = pki.MarshalKey(public); err != nil {
		return nil, pki.Refuse(pki.RuleACMEPublicKey, keyHint, "the key cannot be encoded")
	}
	thumbprint, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil || len(thumbprint) != len(k.Thumbprint) {
		return nil, errors.Join(errors.New("compute the thumbprint of a key"), err)
	}
	k.Thumbprint = [32]byte(thumbprint)
	return k, nil
}

// fits reports whether the key can be used with an algorithm.
func (k *Key) fits(a jose.SignatureAlgorithm) bool { return k.algorithm == a }

// Equal reports whether two keys are the same.
func (k *Key) Equal(other *Key) bool { return k.Thumbprint == other.Thumbprint }

func join(list []jose.SignatureAlgorithm) string { return strings.Join(names(list), ", ") }
