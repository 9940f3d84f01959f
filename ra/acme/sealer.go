package acme

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// hmacKeySize is the size of the HMAC key of an external key in bytes. The key must not be shorter than the hash (RFC 7518
// section 3.2), and clients may use HS512.
const hmacKeySize = 64

// Sealer seals the HMAC keys of external keys, so that a copy of the table alone does not contain them. It is safe for
// concurrent use.
type Sealer struct{ aead cipher.AEAD }

// NewSealer returns the Sealer for the sealing key of a store (see nonce.Store).
func NewSealer(key [32]byte) (*Sealer, error) {
	if key == ([32]byte{}) {
		return nil, errors.New("the sealing key is all zeros: the store was not created completely")
	}
	derived, err := hkdf.Key(sha256.New, key[:], nil, "brevet acme external key 1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of external keys: %w", err)
	}
	aead, err := chacha20poly1305.NewX(derived)
	if err != nil {
		return nil, fmt.Errorf("derive the key of external keys: %w", err)
	}
	return &Sealer{aead}, nil
}

// seal encrypts the HMAC key of an external key.
func (s *Sealer) seal(id ID, hmacKey []byte) []byte {
	random := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(hmacKey)+chacha20poly1305.Overhead)
	_, _ = rand.Read(random) // never fails
	return s.aead.Seal(random, random, hmacKey, id[:])
}

// open decrypts the result of seal for the same external key.
func (s *Sealer) open(id ID, sealed []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, fmt.Errorf("the sealed HMAC key of the external key %s is damaged", id)
	}
	hmacKey, err := s.aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], id[:])
	if err != nil {
		return nil, fmt.Errorf("open the HMAC key of the external key %s: %w", id, err)
	}
	return hmacKey, nil
}
