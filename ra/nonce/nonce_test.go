package nonce_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/nonce"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func sealer(t testing.TB, key, epoch byte) *nonce.Sealer {
	t.Helper()
	s, err := nonce.FromKey([32]byte{key}, [16]byte{epoch})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func requestID(t testing.TB, first byte) pki.RequestID {
	t.Helper()
	id, err := pki.RequestIDFromBytes(append([]byte{first}, make([]byte, 15)...))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func binding(t testing.TB) nonce.Binding {
	t.Helper()
	return nonce.Binding{Purpose: nonce.Enroll, Kind: pki.EvidenceX5C, Request: requestID(t, 1), Key: pki.HashSPKI([]byte("key"))}
}

func seal(t testing.TB, s *nonce.Sealer, b nonce.Binding, payload []byte) []byte {
	t.Helper()
	sealed, err := s.Seal(b, payload, now)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// store is a Store with the key, or an error.
type store struct {
	key byte
	err error
}

func (s store) SealingKey(context.Context) ([32]byte, error) { return [32]byte{s.key}, s.err }

func TestServersOfOneStoreOpenEachOthersChallenges(t *testing.T) {
	first, err := nonce.New(t.Context(), store{key: 1}, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	second, err := nonce.New(t.Context(), store{key: 1}, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	b, seen := binding(t), map[[16]byte]bool{}
	for size := range nonce.MaxPayload + 1 {
		payload := bytes.Repeat([]byte{byte(size)}, size)
		sealed := seal(t, first, b, payload)
		n, got, err := second.Open(sealed, b, now.Add(nonce.Lifetime-time.Millisecond))
		if err != nil || !bytes.Equal(got, payload) || !n.ExpiresAt.Equal(now.Add(nonce.Lifetime)) || seen[n.ID] {
			t.Fatalf("a payload of %d bytes: %v, %x, %v", size, n, got, err)
		}
		seen[n.ID] = true
		if len(sealed) > nonce.MaxSealed || size > 16 && bytes.Contains(sealed, payload) {
			t.Errorf("the sealed challenge of %d bytes shows its payload, or is over MaxSealed", len(sealed))
		}
	}
}

func TestStoreWithoutKey(t *testing.T) {
	lost := errors.New("the disk is gone")
	if _, err := nonce.New(t.Context(), store{err: lost}, [16]byte{}); !errors.Is(err, lost) {
		t.Errorf("got %v, want the error of the store", err)
	}
	if _, err := nonce.New(t.Context(), store{}, [16]byte{}); err == nil || !strings.Contains(err.Error(), "zeros") {
		t.Errorf("got %v for a key of zeros", err)
	}
}

func TestPayloadIsBounded(t *testing.T) {
	if _, err := sealer(t, 1, 1).Seal(binding(t), make([]byte, nonce.MaxPayload+1), now); err == nil {
		t.Error("a payload over the maximum is sealed")
	}
}

func TestOpenRefuses(t *testing.T) {
	s, b := sealer(t, 1, 1), binding(t)
	sealed := seal(t, s, b, []byte("payload"))
	with := func(edit func(*nonce.Binding)) nonce.Binding {
		c := b
		edit(&c)
		return c
	}
	for name, c := range map[string]struct {
		sealer *nonce.Sealer
		sealed []byte
		b      nonce.Binding
		at     time.Time
		rule   pki.Rule
	}{
		"valid":               {s, sealed, b, now, ""},
		"another CA":          {sealer(t, 2, 1), sealed, b, now, pki.RuleChallengeInvalid},
		"another log epoch":   {sealer(t, 1, 2), sealed, b, now, pki.RuleChallengeInvalid},
		"another purpose":     {s, sealed, with(func(b *nonce.Binding) { b.Purpose++ }), now, pki.RuleChallengeInvalid},
		"another kind":        {s, sealed, with(func(b *nonce.Binding) { b.Kind++ }), now, pki.RuleChallengeInvalid},
		"another request":     {s, sealed, with(func(b *nonce.Binding) { b.Request = requestID(t, 2) }), now, pki.RuleEvidenceKey},
		"no request":          {s, sealed, with(func(b *nonce.Binding) { b.Request = pki.RequestID{} }), now, pki.RuleEvidenceKey},
		"another key":         {s, sealed, with(func(b *nonce.Binding) { b.Key = pki.HashSPKI(nil) }), now, pki.RuleEvidenceKey},
		"no key":              {s, sealed, with(func(b *nonce.Binding) { b.Key = pki.KeyHash{} }), now, pki.RuleEvidenceKey},
		"expired":             {s, sealed, b, now.Add(nonce.Lifetime), pki.RuleChallengeExpired},
		"expired long ago":    {s, sealed, b, now.AddDate(100, 0, 0), pki.RuleChallengeExpired},
		"empty":               {s, nil, b, now, pki.RuleChallengeInvalid},
		"extended":            {s, append(bytes.Clone(sealed), 0), b, now, pki.RuleChallengeInvalid},
		"over the maximum":    {s, make([]byte, nonce.MaxSealed+1), b, now, pki.RuleChallengeInvalid},
		"all zeros":           {s, make([]byte, len(sealed)), b, now, pki.RuleChallengeInvalid},
		"twice the challenge": {s, append(bytes.Clone(sealed), sealed...), b, now, pki.RuleChallengeInvalid},
	} {
		_, _, err := c.sealer.Open(c.sealed, c.b, c.at)
		refusal, _ := pki.AsRefusal(err)
		if c.rule == "" && err != nil || c.rule != "" && (refusal == nil || refusal.Rule != c.rule || refusal.Hint == "") {
			t.Errorf("%s: got %v, want a refusal by %q", name, err, c.rule)
		}
	}
	for i := range sealed {
		for bit := range 8 {
			sealed[i] ^= 1 << bit
			if _, _, err := s.Open(sealed, b, now); err == nil {
				t.Errorf("the challenge with bit %d of byte %d changed is accepted", bit, i)
			}
			sealed[i] ^= 1 << bit
		}
		if _, _, err := s.Open(sealed[:i], b, now); err == nil {
			t.Errorf("the first %d bytes of the challenge are accepted", i)
		}
	}
}

// A challenge that was requested before key and request were known serves for all of them.
func TestUnboundChallenge(t *testing.T) {
	s, b := sealer(t, 1, 1), binding(t)
	sealed := seal(t, s, nonce.Binding{Purpose: b.Purpose, Kind: b.Kind}, nil)
	if _, _, err := s.Open(sealed, b, now); err != nil {
		t.Error(err)
	}
}

// FuzzOpen opens arbitrary bytes, and a challenge that is changed at a place. Only the unchanged challenge may be
// accepted.
func FuzzOpen(f *testing.F) {
	s, b := sealer(f, 1, 1), binding(f)
	sealed := seal(f, s, b, []byte("payload"))
	f.Add([]byte{}, uint16(0), uint8(b.Kind))
	f.Add([]byte{1}, uint16(23), uint8(b.Kind))
	f.Add([]byte{0}, uint16(1<<15), uint8(b.Kind+1))
	f.Add(make([]byte, nonce.MaxSealed), uint16(1<<15), uint8(1))
	f.Fuzz(func(t *testing.T, edit []byte, at uint16, kind uint8) {
		challenge := bytes.Clone(sealed)
		for i, mask := range edit {
			if place := int(at) + i; place < len(challenge) {
				challenge[place] ^= mask
			} else {
				challenge = append(challenge, mask)
			}
		}
		c := b
		c.Kind = pki.EvidenceKind(kind)
		for _, challenge := range [][]byte{challenge, edit} {
			n, payload, err := s.Open(challenge, c, now)
			if err == nil && (!bytes.Equal(challenge, sealed) || c != b) {
				t.Fatalf("the challenge %x is accepted for evidence of the kind %s", challenge, c.Kind)
			}
			if _, refused := pki.AsRefusal(err); err != nil && (!refused || !n.IsZero() || payload != nil) {
				t.Fatalf("got %v, %x with the error %v", n, payload, err)
			}
		}
	})
}
