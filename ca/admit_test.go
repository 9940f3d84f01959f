package ca_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Above the limit, requests that may wait do so. They end with a temporary error if their context ends or the server
// stops.
func TestRequestsThatMayWaitAreQueued(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.signer.before = func([]byte) error { <-hold; return nil }
	a := w.open(t, w.store.CA())
	mayWait := func() ca.Request {
		req := w.request(t)
		req.MayWait = true
		return req
	}
	var wg sync.WaitGroup
	for range 1050 {
		req := mayWait()
		wg.Go(func() {
			if _, err := issue(context.Background(), a, req); err != nil {
				t.Error(err)
			}
		})
	}
	for a.InFlight() < 1024 {
		time.Sleep(time.Millisecond)
	}
	if _, err := issue(t.Context(), a, w.request(t)); !refusedAs(err, pki.RuleOverloaded) {
		t.Errorf("a request that does not wait: %v, want %s", err, pki.RuleOverloaded)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := issue(canceled, a, mayWait()); !errors.Is(err, context.Canceled) || !pki.IsTemporary(err) {
		t.Errorf("a request with a canceled context: %v", err)
	}
	close(hold)
	wg.Wait()
	closeAuthority(t, a)
	if _, err := issue(t.Context(), a, mayWait()); !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 {
		t.Errorf("a request after Close: %v, want a temporary error with a delay", err)
	}
}

// Close does not wait for requests that wait for a slot.
func TestCloseEndsWaitingRequests(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.signer.before = func([]byte) error { <-hold; return nil }
	a := w.open(t, w.store.CA())
	ends := make(chan error, 1025)
	for range 1025 {
		req := w.request(t)
		req.MayWait = true
		go func() {
			_, err := issue(context.Background(), a, req)
			ends <- err
		}()
	}
	for a.InFlight() < 1024 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan struct{})
	go func() { closeAuthority(t, a); close(closed) }()
	if err := <-ends; !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 { // the test holds all other requests
		t.Errorf("the waiting request: %v, want a temporary error with a delay", err)
	}
	close(hold)
	for range 1024 {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	<-closed
}

func refusedAs(err error, rule pki.Rule) bool {
	refusal, ok := pki.AsRefusal(err)
	return ok && refusal.Rule == rule
}
