package acme

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/nonce"
)

// UsedNonces numbers nonces, and remembers which were used, for one server or for several. It need not be durable. It is
// safe for concurrent use.
type UsedNonces interface {
	// Next returns the number of a new nonce.
	Next(ctx context.Context) (uint64, error)
	// Use marks a nonce as used. It returns false if the nonce was used before, or is one of the oldest.
	Use(ctx context.Context, number uint64) (isNew bool, err error)
}

// nonces makes the nonces of requests (RFC 8555 §6.5), and accepts each of them once. It is safe for concurrent use.
type nonces struct {
	sealer *nonce.Sealer
	used   UsedNonces
}

var nonceBinding = nonce.Binding{Purpose: nonce.ACME, Kind: pki.EvidenceACME}

// newNonces returns nonces. If the sealer is nil, their key is random, so that no nonce is accepted after a restart.
func newNonces(used UsedNonces, sealer *nonce.Sealer) (*nonces, error) {
	if sealer != nil {
		return &nonces{sealer, used}, nil
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	sealer, err := nonce.FromKey(key, [16]byte{})
	return &nonces{sealer, used}, err
}

// next returns a nonce.
func (n *nonces) next(ctx context.Context, at time.Time) (string, error) {
	number, err := n.used.Next(ctx)
	if err != nil {
		return "", err
	}
	sealed, err := n.sealer.Seal(nonceBinding, binary.BigEndian.AppendUint64(nil, number), at)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

const nonceHint = "repeat the request with the nonce in the Replay-Nonce header of this response"

// use accepts a nonce once.
func (n *nonces) use(ctx context.Context, text string, at time.Time) error {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce is not from this CA")
	}
	_, number, err := n.sealer.Open(sealed, nonceBinding, at)
	if r, ok := pki.AsRefusal(err); ok && r.Rule == pki.RuleChallengeExpired {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce is older than %s", nonce.Lifetime)
	} else if err != nil {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce is not from this CA, or from before a restart")
	}
	isNew, err := n.used.Use(ctx, binary.BigEndian.Uint64(number))
	if err == nil && !isNew {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce was used before, or the server has handed out too many since")
	}
	return err
}

// window is how many of the newest nonces a NonceSet accepts. They take 2 MiB. A server hands out fewer within
// nonce.Lifetime: 55,000 requests a second would be needed to make a nonce invalid before it expires.
const window = 1 << 24

// NonceSet is the set of used nonces of one process. It has a bit for each of the newest nonces, so that no client can fill
// it. It is safe for concurrent use.
type NonceSet struct {
	mu   sync.Mutex
	next uint64   // the number of the next nonce
	used []uint64 // a bit for each of the newest nonces, at its number modulo the size
}

// NewNonceSet returns an empty set.
func NewNonceSet() *NonceSet { return newNonceSet(window) }

// newNonceSet returns an empty set for the newest n nonces. n is a multiple of 64.
func newNonceSet(n int) *NonceSet { return &NonceSet{used: make([]uint64, n/64)} }

// place returns the word and the bit of a number.
func (s *NonceSet) place(number uint64) (word *uint64, bit uint64) {
	return &s.used[number/64%uint64(len(s.used))], 1 << (number % 64)
}

// Next implements [UsedNonces].
func (s *NonceSet) Next(context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	number := s.next
	word, bit := s.place(number)
	*word &^= bit // was the bit of the oldest nonce, which is not accepted any more
	s.next++
	return number, nil
}

// Use implements [UsedNonces].
func (s *NonceSet) Use(_ context.Context, number uint64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := uint64(len(s.used)) * 64
	if number >= s.next || s.next-number > size {
		return false, nil
	}
	word, bit := s.place(number)
	isNew := *word&bit == 0
	*word |= bit
	return isNew, nil
}
