package acme_test

import (
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/server/acme"
)

// A nonce is used once as long as it is valid, whichever way the clock is set.
func TestNonceSet(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := acme.NewSmallNonceSet(func() time.Time { return now }, 10)
	use := func(id byte) (bool, error) {
		return s.Use(t.Context(), pki.Nonce{ID: [16]byte{id}, ExpiresAt: now.Add(nonce.Lifetime)})
	}
	if isNew, err := use(1); !isNew || err != nil {
		t.Fatalf("a new nonce: %t, %v", isNew, err)
	}
	for range 3 {
		if isNew, err := use(1); isNew || err != nil {
			t.Errorf("a used nonce after some time: %t, %v", isNew, err)
		}
		now = now.Add(nonce.Lifetime/3 - time.Second)
	}
	now = now.Add(-time.Hour)
	if isNew, _ := use(1); isNew {
		t.Error("a used nonce is new after the clock was set back")
	}
	for id := byte(2); ; id++ {
		if _, err := use(id); err != nil {
			refusal, ok := pki.AsRefusal(err)
			if id != 11 || !ok || refusal.Rule != pki.RuleOverloaded || pki.RetryAfter(err) <= 0 {
				t.Errorf("nonce %d: %v", id, err)
			}
			break
		}
	}
	now = now.Add(nonce.Lifetime)
	if isNew, err := use(20); !isNew || err != nil {
		t.Errorf("a new nonce after the generation: %t, %v", isNew, err)
	}
	if isNew, _ := use(10); isNew {
		t.Error("a nonce of the older generation is new")
	}
	now = now.Add(nonce.Lifetime)
	if isNew, _ := use(10); !isNew {
		t.Error("a nonce that has expired long ago is still in the set")
	}
}

func TestNonceSetIsUsedConcurrently(t *testing.T) {
	s := acme.NewNonceSet(time.Now)
	var wg sync.WaitGroup
	var mu sync.Mutex
	fresh := 0
	for range 50 {
		wg.Go(func() {
			isNew, err := s.Use(t.Context(), pki.Nonce{ID: [16]byte{1}})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if isNew {
				fresh++
			}
		})
	}
	wg.Wait()
	if fresh != 1 {
		t.Errorf("the nonce was new %d times", fresh)
	}
}
