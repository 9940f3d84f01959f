package acme_test

import (
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/servertest"
)

// A client that uses up nonces as fast as it can does not keep others from using theirs.
func TestNonceSetIsNeverFull(t *testing.T) {
	s := acme.NewNonceSet()
	next := func() uint64 { return servertest.Must(s.Next(t.Context()))(t) }
	use := func(number uint64) bool { return servertest.Must(s.Use(t.Context(), number))(t) }
	quiet := next()
	for range 1 << 20 {
		if !use(next()) {
			t.Fatal("a new nonce is refused")
		}
	}
	if !use(quiet) || use(quiet) {
		t.Error("the nonce of a quiet client is not accepted exactly once")
	}
}

// TestNonceSet compares a small set with a list of all nonces.
func TestNonceSet(t *testing.T) {
	const size = 128
	rapid.Check(t, func(t *rapid.T) {
		s := acme.NewSmallNonceSet(size)
		var used []bool
		for range rapid.IntRange(1, 600).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "next") {
				if n, err := s.Next(t.Context()); err != nil || n != uint64(len(used)) {
					t.Fatalf("nonce %d has the number %d", len(used), n)
				}
				used = append(used, false)
				continue
			}
			n := rapid.IntRange(max(0, len(used)-size-2), len(used)+1).Draw(t, "number")
			want := n < len(used) && n >= len(used)-size && !used[n]
			if have, err := s.Use(t.Context(), uint64(n)); err != nil || have != want {
				t.Fatalf("of %d nonces, number %d is new: %t, want %t", len(used), n, have, want)
			}
			if n < len(used) {
				used[n] = true
			}
		}
	})
}

func TestNonceSetIsUsedConcurrently(t *testing.T) {
	s := acme.NewNonceSet()
	number := servertest.Must(s.Next(t.Context()))(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	fresh := 0
	for range 50 {
		wg.Go(func() {
			if servertest.Must(s.Use(t.Context(), number))(t) {
				mu.Lock()
				defer mu.Unlock()
				fresh++
			}
			servertest.Must(s.Use(t.Context(), servertest.Must(s.Next(t.Context()))(t)))(t)
		})
	}
	wg.Wait()
	if fresh != 1 {
		t.Errorf("the nonce was new %d times", fresh)
	}
}
