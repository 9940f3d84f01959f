package acme

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/nonce"
)

// UsedNonces is a set of nonces that were used. It need not be durable, because the key of the nonces is not either. It
// is safe for concurrent use.
type UsedNonces interface {
	// Use adds a nonce to the set. It returns false if the set has it already, and an error if the set is full.
	Use(ctx context.Context, n pki.Nonce) (isNew bool, err error)
}

// nonces makes the nonces of requests (RFC 8555 §6.5), and accepts each of them once. It is safe for concurrent use.
type nonces struct {
	sealer *nonce.Sealer
	used   UsedNonces
}

var nonceBinding = nonce.Binding{Purpose: nonce.ACME, Kind: pki.EvidenceACME}

// newNonces returns nonces with a random key.
func newNonces(used UsedNonces) (*nonces, error) {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	sealer, err := nonce.FromKey(key, [16]byte{})
	return &nonces{sealer, used}, err
}

// next returns a nonce.
func (n *nonces) next(at time.Time) (string, error) {
	sealed, err := n.sealer.Seal(nonceBinding, nil, at)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

const nonceHint = "repeat the request with the nonce in the Replay-Nonce header of this response"

// use accepts a nonce once.
func (n *nonces) use(ctx context.Context, text string, at time.Time) error {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce is not from this server")
	}
	opened, _, err := n.sealer.Open(sealed, nonceBinding, at)
	if r, ok := pki.AsRefusal(err); ok && r.Rule == pki.RuleChallengeExpired {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce is older than %s", nonce.Lifetime)
	} else if err != nil {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce is not from this server, or from before its restart")
	}
	isNew, err := n.used.Use(ctx, opened)
	if err == nil && !isNew {
		return pki.Refuse(pki.RuleACMENonce, nonceHint, "the nonce was used before")
	}
	return err
}

// maxNonces is the maximum number of nonces in one of the two generations of a NonceSet. They take about 10 MiB.
const maxNonces = 1 << 18

// NonceSet is the set of used nonces of one process. It has two generations. When the newer one is as old as the
// lifetime of a nonce, all nonces in the older one have expired, and the newer one replaces it.
type NonceSet struct {
	clock func() time.Time

	mu         sync.Mutex
	since      time.Time // when newer was empty
	older      map[[16]byte]struct{}
	newer      map[[16]byte]struct{}
	maxInNewer int
}

// NewNonceSet returns an empty set.
func NewNonceSet(clock func() time.Time) *NonceSet {
	return &NonceSet{clock: clock, since: clock(), newer: map[[16]byte]struct{}{}, maxInNewer: maxNonces}
}

// Use implements [UsedNonces].
func (s *NonceSet) Use(_ context.Context, n pki.Nonce) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	if age := now.Sub(s.since); age < 0 { // the clock was set back, so that old nonces may be valid again: keep them
		s.since = now
	} else if age >= nonce.Lifetime {
		s.older, s.newer, s.since = s.newer, map[[16]byte]struct{}{}, now
	}
	_, isOlder := s.older[n.ID]
	_, isNewer := s.newer[n.ID]
	if isOlder || isNewer {
		return false, nil
	}
	if len(s.newer) >= s.maxInNewer {
		return false, delayed{pki.Refuse(pki.RuleOverloaded, "repeat the request after the delay",
			"the server has received too many requests within %s", nonce.Lifetime), nonceRetry}
	}
	s.newer[n.ID] = struct{}{}
	return true, nil
}

// nonceRetry is the delay after which a client should repeat a request that found the set full.
const nonceRetry = 30 * time.Second

// delayed is a refusal with the delay after which the request may succeed.
type delayed struct {
	*pki.Refusal
	after time.Duration
}

// Unwrap returns the refusal.
func (d delayed) Unwrap() error { return d.Refusal }

// Temporary reports that the same request may succeed later.
func (delayed) Temporary() bool { return true }

// RetryAfter returns the delay.
func (d delayed) RetryAfter() time.Duration { return d.after }
