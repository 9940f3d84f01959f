package responder_test

import (
	"bytes"
	"context"
	"crypto"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// A blockingKey lets a test act while the responder signs. Each signature sends a channel to started, and blocks until
// the test closes that channel.
type blockingKey struct {
	crypto.Signer
	started chan chan struct{}
}

func newBlockingKey(t testing.TB) *blockingKey {
	return &blockingKey{revtest.Key(t, "p256"), make(chan chan struct{})}
}

func (k *blockingKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	gate := make(chan struct{})
	k.started <- gate
	<-gate
	return k.Signer.Sign(random, digest, opts)
}

// allow lets the next n signatures complete.
func (k *blockingKey) allow(n int) {
	for range n {
		close(<-k.started)
	}
}

// A countingKey counts the signatures that it makes.
type countingKey struct {
	crypto.Signer
	n atomic.Int64
}

func (k *countingKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.n.Add(1)
	return k.Signer.Sign(random, digest, opts)
}

func (k *countingKey) signed() int64 { return k.n.Load() }

func revokeNow(ref pki.CertRef, at time.Time) revocation.Change {
	return revocation.Change{Action: revocation.Revoke, Certificate: ref, At: at, Reason: pki.Superseded}
}

// waitFor waits until a condition holds.
func waitFor(reached func() bool) {
	for !reached() {
		runtime.Gosched()
	}
}

// TestFloodFromOneHostGetsTryLater fills one host's share of the signing queue with three kinds of requests. Further
// requests of that host must get tryLater. Another host must get its responses, each after one response to the first
// host.
func TestFloodFromOneHostGetsTryLater(t *testing.T) {
	key := newBlockingKey(t)
	s := newFixture(t, responder.Config{}, key)
	kept, _ := s.issue(t)
	leaf, _ := s.issue(t)
	go key.allow(1)
	s.want(t, "before the flood", kept, "good")

	entry := singleRequest(t, request(t, leaf, s.ca.Certificate, crypto.SHA1))
	stranger := s.ca.Leaf(t, "stranger")
	flood := [][]byte{composeRequest(t, 32, entry), composeRequest(t, -1, entry, entry), request(t, stranger, s.ca.Certificate, crypto.SHA1)}
	var waiting sync.WaitGroup
	var answered atomic.Int64
	signing := responder.SigningSlots(s.Responder)
	const queued = responder.MaxWaiting / 2
	for n := range signing + queued {
		waiting.Go(func() {
			s.post(t, flood[n%len(flood)])
			answered.Add(1)
		})
	}
	var gates []chan struct{}
	for range signing {
		gates = append(gates, <-key.started)
	}
	waitFor(func() bool { return responder.WaitingUncached(s.Responder) == queued })
	for n, der := range flood {
		if got, _ := s.read(t, leaf, s.post(t, der)); got != tryLater {
			t.Errorf("one more request of kind %d gets %s, want tryLater", n, got)
		}
	}
	s.want(t, "a cached response", kept, "good")
	go key.allow(1)
	s.want(t, "a response to be cached", leaf, "good")
	if n := answered.Load(); n != 0 {
		t.Errorf("%d requests of the flood get a response before any is signed", n)
	}
	const others = 3
	var served sync.WaitGroup
	for range others {
		served.Go(func() {
			if got, _ := s.read(t, leaf, s.postFrom(t, "[2001:db8::1]:1", flood[0])); got != "good" {
				t.Errorf("another host during the flood gets %s, want good", got)
			}
		})
	}
	waitFor(func() bool { return responder.WaitingUncached(s.Responder) == queued+others })
	for _, gate := range gates {
		close(gate)
	}
	key.allow(2 * others)
	served.Wait()
	key.allow(queued - others)
	waiting.Wait()
	go key.allow(1)
	if got, _ := s.read(t, leaf, s.post(t, flood[0])); got != "good" {
		t.Errorf("after the flood: %s", got)
	}
}

// TestDisconnectedClientLeavesQueue disconnects a client while its request waits in the signing queue.
func TestDisconnectedClientLeavesQueue(t *testing.T) {
	key := newBlockingKey(t)
	s := newFixture(t, responder.Config{}, key)
	server := httptest.NewServer(s.handler)
	defer server.Close()
	leaf, _ := s.issue(t)
	other, _ := s.issue(t)
	var requests sync.WaitGroup
	var gates []chan struct{}
	for range responder.SigningSlots(s.Responder) { // fill all slots for cached responses
		filler, _ := s.issue(t)
		requests.Go(func() { s.want(t, "the filler", filler, "good") })
		gates = append(gates, <-key.started)
	}
	client := &http.Client{Transport: &http.Transport{}}
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/ocsp", bytes.NewReader(request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/ocsp-request")
	requests.Go(func() {
		if answer, err := client.Do(q); err == nil {
			answer.Body.Close()
			t.Errorf("a client that has disconnected gets HTTP %d", answer.StatusCode)
		}
	})
	waitFor(func() bool { return responder.WaitingCached(s.Responder) == 1 })
	hangUp()
	waitFor(func() bool { return responder.WaitingCached(s.Responder) == 0 })
	for _, gate := range gates {
		close(gate)
	}
	requests.Wait()
	go key.allow(2)
	s.want(t, "the same request afterwards", leaf, "good")
	s.want(t, "another one", other, "good")
}

// TestConcurrentEqualRequestsAreSignedOnce sends equal requests at the same time.
func TestConcurrentEqualRequestsAreSignedOnce(t *testing.T) {
	key := newBlockingKey(t)
	s := newFixture(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	var requests sync.WaitGroup
	for range 20 {
		requests.Go(func() { s.want(t, "one of many", leaf, "good") })
	}
	key.allow(1) // a second signature would block forever
	requests.Wait()

	// Now revoke the certificate while one request signs and the others wait for its response.
	s.clock.advance(s.validity / 2)
	s.follow(t)
	for range 20 {
		requests.Go(func() { s.want(t, "one of many", leaf, "revoked") })
	}
	gate := <-key.started
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	close(gate)
	key.allow(1)
	requests.Wait()
}
