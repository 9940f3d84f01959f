package crl

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // registers the hash functions of signatures
	_ "crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// signatureScheme describes how a key signs CRLs.
type signatureScheme struct {
	algorithm []byte      // AlgorithmIdentifier in DER
	hash      crypto.Hash // zero if the key signs the message instead of a digest
	maxSize   int         // maximum size of a signature, in bytes
}

// The signature algorithms for the types of keys, as in crypto/x509 (RFC 5758 §3.2, RFC 4055 §5, RFC 8410 §3).
var (
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSAWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidSHA256WithRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidEd25519         = asn1.ObjectIdentifier{1, 3, 101, 112}
)

func schemeOf(public crypto.PublicKey) (signatureScheme, error) {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return makeScheme(oidECDSAWithSHA256, false, crypto.SHA256, 2+2*(2+1+32))
		case elliptic.P384():
			return makeScheme(oidECDSAWithSHA384, false, crypto.SHA384, 2+2*(2+1+48))
		}
	case *rsa.PublicKey:
		return makeScheme(oidSHA256WithRSA, true, crypto.SHA256, key.Size())
	case ed25519.PublicKey:
		return makeScheme(oidEd25519, false, 0, ed25519.SignatureSize)
	}
	return signatureScheme{}, fmt.Errorf("a key of type %T cannot sign CRLs: use P-256, P-384, RSA or Ed25519", public)
}

func makeScheme(oid asn1.ObjectIdentifier, parameters bool, hash crypto.Hash, maxSize int) (signatureScheme, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if parameters {
			b.AddASN1NULL() // the parameters are NULL (RFC 4055 §5)
		}
	})
	algorithm, err := b.Bytes()
	return signatureScheme{algorithm, hash, maxSize}, err
}

// sign signs a digest, or a message if the key signs messages. It verifies the signature with the public key, so that a
// wrong signature from an HSM is never published.
func (s signatureScheme) sign(key crypto.Signer, public crypto.PublicKey, digest []byte, message io.Reader) ([]byte, error) {
	signed := digest
	if s.hash == 0 {
		var err error
		if signed, err = io.ReadAll(message); err != nil {
			return nil, err
		}
	}
	signature, err := key.Sign(rand.Reader, signed, s.hash)
	if err != nil {
		return nil, err
	}
	if len(signature) > s.maxSize || !s.verifies(public, signed, signature) {
		return nil, errors.New("the signature does not verify with the CA's certificate")
	}
	return signature, nil
}

func (s signatureScheme) verifies(public crypto.PublicKey, signed, signature []byte) bool {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, signed, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, s.hash, signed, signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, signed, signature)
	default:
		return false
	}
}
