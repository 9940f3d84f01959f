package nonce

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// Lifetime is how long a challenge is valid.
	Lifetime = 5 * time.Minute
	// MaxPayload is the maximum size of a payload in bytes.
	MaxPayload = 1 << 10
	// MaxSealed is the maximum size of a sealed challenge in bytes.
	MaxSealed = minSealed + MaxPayload

	minSealed = chacha20poly1305.NonceSizeX + fixedSize + chacha20poly1305.Overhead
	fixedSize = 16 + 8 + 16 + 32 // the nonce's ID, the expiry in milliseconds, the request ID, the key's hash
)

// Store has the key from which challenges are sealed.
type Store interface {
	// SealingKey returns 32 random bytes that were made with the store. Every server that uses the store gets the same.
	// It is safe for concurrent use.
	SealingKey(ctx context.Context) ([32]byte, error)
}

// Purpose is what a challenge is used for. A challenge for one purpose is never accepted for another.
type Purpose uint8

// The purposes.
const (
	Enroll Purpose = 1 // challenges for evidence in enrollments
	ACME   Purpose = 2 // nonces of signed ACME requests (RFC 8555 §6.5)
)

// Binding is what a challenge belongs to.
type Binding struct {
	Purpose Purpose
	Kind    pki.EvidenceKind
	// Request is the ID of the request that will contain the response. If it was zero in Seal, the challenge serves for
	// any request.
	Request pki.RequestID
	// Key is the hash of the key to certify. If it was zero in Seal, the challenge serves for any key.
	Key pki.KeyHash
}

// Sealer seals and opens challenges. It is safe for concurrent use.
type Sealer struct{ aead cipher.AEAD }

// New returns the Sealer of a store. epoch is the log epoch: after a restore has forked the log, earlier challenges are
// refused, because their consumed nonces may be missing in the restored store.
func New(ctx context.Context, s Store, epoch [16]byte) (*Sealer, error) {
	key, err := s.SealingKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	return FromKey(key, epoch)
}

// FromKey returns a Sealer without a store.
func FromKey(key [32]byte, epoch [16]byte) (*Sealer, error) {
	if key == ([32]byte{}) {
		return nil, errors.New("the sealing key is all zeros: the store was not created completely")
	}
	derived, err := hkdf.Key(sha256.New, key[:], epoch[:], "brevet challenge 1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of challenges: %w", err)
	}
	aead, err := chacha20poly1305.NewX(derived)
	if err != nil {
		return nil, fmt.Errorf("derive the key of challenges: %w", err)
	}
	return &Sealer{aead}, nil
}

// Seal returns a challenge that belongs to b and is valid from at. Open returns its payload, which only servers can
// read.
func (s *Sealer) Seal(b Binding, payload []byte, at time.Time) ([]byte, error) {
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("the payload of a challenge has %d bytes, and may have %d", len(payload), MaxPayload)
	}
	sealed := make([]byte, chacha20poly1305.NonceSizeX, minSealed+len(payload))
	_, _ = rand.Read(sealed) // never fails
	content := make([]byte, 16, fixedSize+len(payload))
	_, _ = rand.Read(content)
	expiry := at.Add(Lifetime).UnixMilli()
	content = binary.BigEndian.AppendUint64(content, uint64(expiry))
	content = append(content, b.Request.Bytes()...)
	content = append(content, b.Key.Bytes()...)
	content = append(content, payload...)
	return s.aead.Seal(sealed, sealed, content, b.context()), nil
}

// Open returns the nonce and the payload of a challenge. It refuses a challenge that does not belong to b, or is
// expired.
func (s *Sealer) Open(sealed []byte, b Binding, at time.Time) (pki.Nonce, []byte, error) {
	if len(sealed) < minSealed || len(sealed) > MaxSealed {
		return pki.Nonce{}, nil, refuseInvalid(b)
	}
	random, sealed := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
	content, err := s.aead.Open(nil, random, sealed, b.context())
	if err != nil {
		return pki.Nonce{}, nil, refuseInvalid(b)
	}
	nonce := pki.Nonce{
		ID:        [16]byte(content[:16]),
		ExpiresAt: time.UnixMilli(int64(binary.BigEndian.Uint64(content[16:24]))).UTC(), //nolint:gosec // reverses Seal
	}
	if !at.Before(nonce.ExpiresAt) {
		return pki.Nonce{}, nil, pki.Refuse(pki.RuleChallengeExpired,
			"get a new challenge for the same request ID, and respond within "+Lifetime.String(),
			"the challenge expired at %s, and the server's time is %s",
			nonce.ExpiresAt.Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	if request := [16]byte(content[24:40]); request != [16]byte{} && request != [16]byte(b.Request.Bytes()) {
		return pki.Nonce{}, nil, pki.Refuse(pki.RuleEvidenceKey,
			"send the request ID with which the challenge was requested", "the challenge was made for another request")
	}
	if key := [32]byte(content[40:72]); key != [32]byte{} && key != [32]byte(b.Key.Bytes()) {
		return pki.Nonce{}, nil, pki.Refuse(pki.RuleEvidenceKey,
			"send a CSR with the key for which the challenge was requested", "the challenge was made for another key")
	}
	return nonce, content[fixedSize:], nil
}

// context returns the part of the binding that is authenticated with the challenge and is not in it.
func (b Binding) context() []byte { return []byte{byte(b.Purpose), byte(b.Kind)} }

func refuseInvalid(b Binding) error {
	return pki.Refuse(pki.RuleChallengeInvalid,
		"get a challenge for evidence of the kind "+b.Kind.String()+" (CreateChallenge), and send it back unchanged",
		"the challenge is damaged, or it is from another CA or for another use")
}
