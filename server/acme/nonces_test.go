package acme_test

import (
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/server/acme"
)

// A client that uses up nonces as fast as it can does not keep others from using theirs.
func TestNonceSetIsNeverFull(t *testing.T) {
	s := acme.NewNonceSet()
	quiet := s.Next()
	for range 1 << 20 {
		if !s.Use(s.Next()) {
			t.Fatal("a new nonce is refused")
		}
	}
	if !s.Use(quiet) || s.Use(quiet) {
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
				if n := s.Next(); n != uint64(len(used)) {
					t.Fatalf("nonce %d has the number %d", len(used), n)
				}
				used = append(used, false)
				continue
			}
			n := rapid.IntRange(max(0, len(used)-size-2), len(used)+1).Draw(t, "number")
			want := n < len(used) && n >= len(used)-size && !used[n]
			if have := s.Use(uint64(n)); have != want {
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
	number := s.Next()
	var wg sync.WaitGroup
	var mu sync.Mutex
	fresh := 0
	for range 50 {
		wg.Go(func() {
			if s.Use(number) {
				mu.Lock()
				defer mu.Unlock()
				fresh++
			}
			s.Use(s.Next())
		})
	}
	wg.Wait()
	if fresh != 1 {
		t.Errorf("the nonce was new %d times", fresh)
	}
}
