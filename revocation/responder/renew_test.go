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

// later moves the clock by parts of the staleness limit, with a responder that follows.
func (s *scene) later(t testing.TB, parts time.Duration, of time.Duration) {
	t.Helper()
	s.clock.advance(s.staleness * parts / of)
	s.current(t)
}

func TestAnswersThatAreAskedForAreRenewed(t *testing.T) {
	key := &countingKey{Signer: revtest.Key(t, "p256")}
	s := newScene(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
	first := s.post(t, der)
	if n := responder.RenewOnce(s.Responder); n != 0 {
		t.Errorf("%d answers are renewed at once", n)
	}
	s.later(t, 7, 16) // past the latest that any is due, to the second, and before any is too old
	if n := responder.RenewOnce(s.Responder); n != 1 {
		t.Fatalf("%d answers are renewed when one is due", n)
	}
	signed := key.signed()
	second := s.post(t, der)
	if key.signed() != signed || bytes.Equal(first, second) {
		t.Errorf("the caller after the renewal waits for a signature, or gets the old answer")
	}
	_, response := s.read(t, leaf, second)
	if !response.ThisUpdate.Equal(s.CurrentAt().Truncate(time.Second)) {
		t.Errorf("the renewed answer is of %v, and the status known as of %v", response.ThisUpdate, s.CurrentAt())
	}

	// Whoever comes once per limit never waits, and what nobody has asked for in two limits is left to end.
	for n := range 24 {
		s.later(t, 1, 8)
		responder.RenewOnce(s.Responder)
		signed := key.signed()
		if n%8 == 7 {
			if s.post(t, der); key.signed() != signed {
				t.Errorf("after %d eighths of the limit the caller waits for a signature", n+1)
			}
		}
	}
	for range 32 {
		s.later(t, 1, 8)
		responder.RenewOnce(s.Responder)
	}
	if n := responder.Kept(s.Responder); n != 0 {
		t.Errorf("%d answers are kept that nobody asks for", n)
	}

	// A change of status, and another delegate.
	s.want(t, "asked again", leaf, "good")
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	if n := responder.Kept(s.Responder); n != 0 {
		t.Errorf("%d answers are kept that a revocation has overtaken", n)
	}
	s.want(t, "revoked", leaf, "revoked")
	next := revtest.Key(t, "ed25519")
	if err := s.SetDelegate(s.ca.ID(), s.ca.Delegate(t, next, nil), next); err != nil {
		t.Fatal(err)
	}
	signed = key.signed()
	if n := responder.RenewOnce(s.Responder); n != 1 || key.signed() != signed {
		t.Errorf("%d answers are renewed after the delegate was, %d of them by the old one", n, key.signed()-signed)
	}
}

func TestNothingIsRenewedOnOldKnowledge(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	s.want(t, "known", leaf, "good")
	s.clock.advance(s.staleness * 3 / 8)
	if n := responder.RenewOnce(s.Responder); n != 0 {
		t.Errorf("%d answers are renewed though nothing newer is known", n)
	}
	s.clock.advance(s.staleness)
	if n := responder.RenewOnce(s.Responder); n != 0 || responder.Kept(s.Responder) != 0 {
		t.Errorf("%d answers are renewed past the limit, and %d are kept", n, responder.Kept(s.Responder))
	}
	s.want(t, "past the limit", leaf, tryLater)
}

// TestRevocationOvertakesARenewal signs "good" anew while the certificate is revoked.
func TestRevocationOvertakesARenewal(t *testing.T) {
	key := newGatedKey(t)
	s := newScene(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	go key.let(1)
	s.want(t, "before", leaf, "good")
	s.later(t, 7, 16)
	renewed := make(chan int, 1)
	go func() { renewed <- responder.RenewOnce(s.Responder) }()
	gate := <-key.started
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	if n := responder.Kept(s.Responder); n != 0 {
		t.Errorf("%d answers are kept when the revocation has returned", n)
	}
	close(gate)
	key.let(1) // the renewal finds out, and signs what is true
	<-renewed
	s.want(t, "from memory", leaf, "revoked") // or it would wait for the gate
}

// TestRenewRuns has Renew itself do it, in a time that is not the machine's.
func TestRenewRuns(t *testing.T) {
	key := &countingKey{Signer: revtest.Key(t, "p256")}
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, responder.Config{}, key)
		leaf, _ := s.issue(t)
		s.want(t, "first", leaf, "good")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Renew(ctx) }()
		signed := key.signed()
		for range 16 {
			wait(s.staleness / 16)
			s.later(t, 1, 16)
		}
		if n := key.signed() - signed; n < 2 || n > 4 {
			t.Errorf("an answer is renewed %d times within its limit", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRenewalsAgainstRevocations lets everything that touches kept answers run at once.
func TestRenewalsAgainstRevocations(t *testing.T) {
	s := newScene(t, responder.Config{Staleness: 2 * time.Second, MaxAge: time.Second}, revtest.Key(t, "p256"))
	responder.Keep(s.Responder, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		for ctx.Err() == nil {
			s.clock.advance(s.staleness / 64)
			s.current(t)
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
				t.Errorf("after the revocation returned: %s", got)
			}
		}
		close(ended)
	}
	cancel()
	others.Wait()
	responder.Kept(s.Responder) // counts
}
