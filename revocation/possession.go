package revocation

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"

	"github.com/brevet-pki/brevet/pki"
)

// Bounds on what proves possession of a key: those of RSA keys of 8192 bits, which take some fractions of a millisecond.
const (
	maxPublicKey = 2 << 10 // octets
	maxSignature = 1 << 10
	maxRSA       = 8192 // bits
)

// VerifyCompromise returns the hash of a public key, in DER, whose holder has signed pki.CompromiseStatement: with SHA-256 by
// ECDSA, in DER, or by RSA as in PKCS #1 v1.5, or by Ed25519 (RFC 8032). What does not prove that is refused.
func VerifyCompromise(trustDomain string, publicKey, signature []byte) (pki.KeyHash, error) {
	if len(publicKey) == 0 || len(publicKey) > maxPublicKey || len(signature) == 0 || len(signature) > maxSignature {
		return pki.KeyHash{}, pki.Refuse(pki.RuleRequest, "send a SubjectPublicKeyInfo in DER of 2 KiB at most, and a signature of 1 KiB at most",
			"the key has %d octets and the signature %d", len(publicKey), len(signature))
	}
	key, err := x509.ParsePKIXPublicKey(publicKey)
	if err != nil {
		return pki.KeyHash{}, pki.Refuse(pki.RuleRequest, "send a SubjectPublicKeyInfo in DER (openssl pkey -pubout -outform DER)", "the public key is not one")
	}
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(again, publicKey) {
		return pki.KeyHash{}, pki.Refuse(pki.RuleRequest, "send it as certificates have it (openssl pkey -pubout -outform DER)", "the public key is encoded in another way")
	}
	hash := pki.HashSPKI(publicKey)
	proven, known := proves(key, pki.CompromiseStatement(trustDomain, hash), signature)
	if !known {
		return pki.KeyHash{}, pki.Refuse(pki.RuleKeyType, "use ECDSA, RSA of 8192 bits at most, or Ed25519: no other key is certified here",
			"a key of this kind or size proves nothing")
	}
	if !proven {
		return pki.KeyHash{}, pki.Refuse(pki.RuleKeyPossession, "sign the statement of this key and trust domain with its private key, with SHA-256 where the key is not Ed25519's",
			"the signature is not one of the key over its statement")
	}
	return hash, nil
}

// proves reports whether a signature is one of a key, and whether that kind of key is known.
func proves(key crypto.PublicKey, statement, signature []byte) (proven, known bool) {
	digest := sha256.Sum256(statement)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], signature), true
	case *rsa.PublicKey:
		if key.N.BitLen() > maxRSA {
			return false, false
		}
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil, true
	case ed25519.PublicKey:
		return ed25519.Verify(key, statement, signature), true
	default:
		return false, false
	}
}
