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

// Above the bound, patient requests wait, and end as temporary errors where their callers or the server give up.
func TestPatientRequestsWait(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.signer.before = func([]byte) error { <-hold; return nil }
	a := w.open(t, w.store.CA())
	patient := func() ca.Request {
		req := w.request(t)
		req.MayWait = true
		return req
	}
	var wg sync.WaitGroup
	for range 1050 {
		req := patient()
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
	given, giveUp := context.WithCancel(t.Context())
	giveUp()
	if _, err := issue(given, a, patient()); !errors.Is(err, context.Canceled) || !pki.IsTemporary(err) {
		t.Errorf("a request whose caller gave up: %v", err)
	}
	close(hold)
	wg.Wait()
	shut(t, a)
	if _, err := issue(t.Context(), a, patient()); !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 {
		t.Errorf("a request after the end: %v, want a temporary error with a delay", err)
	}
}

// A server that stops does not wait for those who wait.
func TestCloseSendsThePatientAway(t *testing.T) {
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
	go func() { shut(t, a); close(closed) }()
	if err := <-ends; !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 { // all others are held
		t.Errorf("who waited: %v, want a temporary error with a delay", err)
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
