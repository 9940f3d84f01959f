package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"math/big"

	"github.com/go-jose/go-jose/v4"
)

// hashOf returns the hash of an algorithm (RFC 7518 §3.1). EdDSA hashes by itself.
func hashOf(a jose.SignatureAlgorithm) crypto.Hash {
	switch a {
	case jose.ES384, jose.HS384:
		return crypto.SHA384
	case jose.HS512:
		return crypto.SHA512
	default:
		return crypto.SHA256
	}
}

// isSignature reports whether the key made a signature of a message with its algorithm (RFC 7518 §3.3 and §3.4, RFC 8037 §3.1).
func (k *Key) isSignature(message, signature []byte) bool {
	if public, ok := k.public.(ed25519.PublicKey); ok {
		return ed25519.Verify(public, message, signature)
	}
	h := hashOf(k.algorithm).New()
	_, _ = h.Write(message) // never fails
	digest := h.Sum(nil)
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		size := (public.Curve.Params().BitSize + 7) / 8
		if len(signature) != 2*size {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(public, digest, r, s)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, hashOf(k.algorithm), digest, signature) == nil
	default:
		return false
	}
}
