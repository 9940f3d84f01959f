package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
)

// VerifyStatement reports whether the key made the signature over a statement, such as an [X5CStatement]. The type of the
// key determines the algorithm, as in TLS 1.3 (RFC 8446 §4.2.3), so that the device's secure element needs no other. For
// RSA, PKCS #1 v1.5 is accepted too, because some secure elements make no other signature.
func VerifyStatement(key crypto.PublicKey, statement, signature []byte) bool {
	digest := sha256.Sum256(statement)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P384() {
			long := sha512.Sum384(statement)
			return ecdsa.VerifyASN1(key, long[:], signature)
		}
		return ecdsa.VerifyASN1(key, digest[:], signature)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(key, crypto.SHA256, digest[:], signature, nil) == nil ||
			rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, statement, signature)
	default:
		return false
	}
}
