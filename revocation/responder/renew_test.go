package responder_test

import (
	"bytes"
	"context"
	"crypto"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// advanceAndFollow advances the clock by the fraction parts/of of the validity, and reads the feed.
func (s *fixture) advanceAndFollow(t testing.TB, parts time.Duration, of time.Duration) {
	t.Helper()
	s.clock.advance(s.validity * parts / of)
	s.follow(t)
}

func TestUsedResponsesAreRenewed(t *testing.T) {
	key := &countingKey{Signer: revtest.Key(t, "p256")}
	s := newFixture(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
	first := s.post(t, der)
	if n := responder.RenewOnce(s.Responder); n != 0 {
		t.Errorf("%d responses are renewed at once, want none", n)
	}
	s.advanceAndFollow(t, 7, 16) // every response is due, but none is too old to be sent
	if n := responder.RenewOnce(s.Responder); n != 1 {
		t.Fatalf("%d responses are renewed, want the one that is due", n)
	}
	signed := key.signed()
	second := s.post(t, der)
	if key.signed() != signed || bytes.Equal(first, second) {
		t.Errorf("after the renewal a client waits for a signature, or gets the old response")
	}
	_, response := s.read(t, leaf, second)
	if !response.ThisUpdate.Equal(s.CurrentAt().Truncate(time.Second)) {
		t.Errorf("thisUpdate of the renewed response is %v, want %v", response.ThisUpdate, s.CurrentAt())
	}

	// If a client requests the response once per validity, it never waits for a signature. If no client requests
	// the response for twice the limit, it expires.
	for n := range 24 {
		s.advanceAndFollow(t, 1, 8)
		responder.RenewOnce(s.Responder)
		signed := key.signed()
		if n%8 == 7 {
			if s.post(t, der); key.signed() != signed {
				t.Errorf("after %d eighths of the limit the client waits for a signature", n+1)
			}
		}
	}
	for range 32 {
		s.advanceAndFollow(t, 1, 8)
		responder.RenewOnce(s.Responder)
	}
	if n := responder.CachedCount(s.Responder); n != 0 {
		t.Errorf("%d responses are cached that no client requests any more", n)
	}

	// A response is renewed after its certificate's status has changed, and after the delegate has changed.
	s.want(t, "asked again", leaf, "good")
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	if n := responder.CachedCount(s.Responder); n != 0 {
		t.Errorf("%d responses with the old status are cached after a revocation", n)
	}
	s.want(t, "revoked", leaf, "revoked")
	next := revtest.Key(t, "ed25519")
	if err := s.SetDelegate(s.ca.ID(), s.ca.Delegate(t, next, nil), next); err != nil {
		t.Fatal(err)
	}
	signed = key.signed()
	if n := responder.RenewOnce(s.Responder); n != 1 || key.signed() != signed {
		t.Errorf("%d responses are renewed after a change of delegate, %d of them signed by the old one", n, key.signed()-signed)
	}
}

func TestStaleStatusesRenewNothing(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	s.want(t, "known", leaf, "good")
	s.clock.advance(s.validity * 3 / 8)
	if n := responder.RenewOnce(s.Responder); n != 0 {
		t.Errorf("%d responses are renewed though the statuses are not newer", n)
	}
	s.clock.advance(s.validity)
	if n := responder.RenewOnce(s.Responder); n != 0 || responder.CachedCount(s.Responder) != 0 {
		t.Errorf("past the validity %d responses are renewed and %d are cached", n, responder.CachedCount(s.Responder))
	}
	s.want(t, "past the limit", leaf, tryLater)
}

// TestRevocationDuringRenewalWins revokes a certificate while a renewal signs "good" for it.
func TestRevocationDuringRenewalWins(t *testing.T) {
	key := newBlockingKey(t)
	s := newFixture(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	go key.allow(1)
	s.want(t, "before", leaf, "good")
	s.advanceAndFollow(t, 7, 16)
	renewed := make(chan int, 1)
	go func() { renewed <- responder.RenewOnce(s.Responder) }()
	gate := <-key.started
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	if n := responder.CachedCount(s.Responder); n != 0 {
		t.Errorf("%d responses are cached after Apply has returned", n)
	}
	close(gate)
	key.allow(1) // the renewal finds the change and signs "revoked"
	<-renewed
	s.want(t, "from the cache", leaf, "revoked") // comes from the cache: signing would block
}

// TestRenewRenewsPeriodically runs Renew in a synctest bubble.
func TestRenewRenewsPeriodically(t *testing.T) {
	key := &countingKey{Signer: revtest.Key(t, "p256")}
	synctest.Test(t, func(t *testing.T) {
		s := newFixture(t, responder.Config{}, key)
		leaf, _ := s.issue(t)
		s.want(t, "first", leaf, "good")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Renew(ctx) }()
		signed := key.signed()
		for range 16 {
			wait(s.validity / 16)
			s.advanceAndFollow(t, 1, 16)
		}
		if n := key.signed() - signed; n < 2 || n > 4 {
			t.Errorf("a response is renewed %d times within the validity, want 2 to 4", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestConcurrentRenewalsAndRevocations runs requests, renewals, evictions and revocations at the same time.
func TestConcurrentRenewalsAndRevocations(t *testing.T) {
	s := newFixture(t, responder.Config{Validity: 2 * time.Second, MaxAge: time.Second}, revtest.Key(t, "p256"))
	responder.LimitCache(s.Responder, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		for ctx.Err() == nil {
			s.clock.advance(s.validity / 64)
			s.follow(t)
			responder.RenewOnce(s.Responder)
			runtime.Gosched()
		}
	})
	for range 2 {
		others.Go(func() {
			for ctx.Err() == nil {
				leaf, _ := s.issue(t)
				s.want(t, "issued", leaf, "good")
			}
		})
	}
	for range 30 {
		leaf, ref := s.issue(t)
		s.want(t, "issued", leaf, "good")
		der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
		ended := make(chan struct{})
		others.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
					s.post(t, der)
				}
			}
		})
		if _, err := s.book.Apply(ctx, revokeNow(ref, s.clock.now())); err != nil {
			t.Fatal(err)
		}
		s.change(t, ref, pki.Revoked, pki.Superseded)
		for range 10 {
			if got := s.status(t, leaf); got != "revoked" && got != tryLater {
				t.Errorf("after Apply has returned, a revoked certificate is %s", got)
			}
		}
		close(ended)
	}
	cancel()
	others.Wait()
	responder.CachedCount(s.Responder) // checks the cache for consistency
}
