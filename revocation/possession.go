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

// These limits accept RSA keys of 8192 bits. Verifying such a signature takes less than a millisecond.
const (
	maxPublicKey = 2 << 10 // bytes
	maxSignature = 1 << 10
	maxRSA       = 8192 // bits
)

// VerifyCompromise verifies a signature over [pki.CompromiseStatement]. publicKey is the signer's SubjectPublicKeyInfo
// in DER. The signature is ECDSA with SHA-256 in DER, RSA PKCS #1 v1.5 with SHA-256, or Ed25519 (RFC 8032).
// VerifyCompromise returns the hash of the key. If the signature does not verify, it returns a [pki.Refusal].
func VerifyCompromise(trustDomain string, publicKey, signature []byte) (pki.KeyHash, error) {
	if len(publicKey) == 0 || len(publicKey) > maxPublicKey || len(signature) == 0 || len(signature) > maxSignature {
		return pki.KeyHash{}, pki.Refuse(pki.RuleRequest, "send a SubjectPublicKeyInfo in DER of 2 KiB at most, and a signature of 1 KiB at most",
			"the key has %d bytes and the signature %d", len(publicKey), len(signature))
	}
	key, err := x509.ParsePKIXPublicKey(publicKey)
	if err != nil {
		return pki.KeyHash{}, pki.Refuse(pki.RuleRequest, "send a SubjectPublicKeyInfo in DER (openssl pkey -pubout -outform DER)", "the public key does not parse")
	}
	if again, err := pki.MarshalKey(key); err != nil || !bytes.Equal(again, publicKey) {
		return pki.KeyHash{}, pki.Refuse(pki.RuleRequest, "send it as it is in certificates (openssl pkey -pubout -outform DER)", "the public key is not in canonical DER")
	}
	hash := pki.HashSPKI(publicKey)
	proven, known := proves(key, pki.CompromiseStatement(trustDomain, hash), signature)
	if !known {
		return pki.KeyHash{}, pki.Refuse(pki.RuleKeyType, "use ECDSA, RSA of 8192 bits at most, or Ed25519: no other key is certified here",
			"a signature by a key of this kind or size is not accepted")
	}
	if !proven {
		return pki.KeyHash{}, pki.Refuse(pki.RuleKeyPossession, "sign the statement for this key and trust domain with its private key, with SHA-256 unless the key is Ed25519",
			"the signature does not verify over the key's statement")
	}
	return hash, nil
}

// proves reports whether the key made the signature over the statement, and whether this type of key is supported.
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
