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

// A gatedKey lets its test act while it signs: every signature sends its gate on started, and waits until that is closed.
type gatedKey struct {
	crypto.Signer
	started chan chan struct{}
}

func newGatedKey(t testing.TB) *gatedKey {
	return &gatedKey{revtest.Key(t, "p256"), make(chan chan struct{})}
}

func (k *gatedKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	gate := make(chan struct{})
	k.started <- gate
	<-gate
	return k.Signer.Sign(random, digest, opts)
}

// let passes that many signatures.
func (k *gatedKey) let(n int) {
	for range n {
		close(<-k.started)
	}
}

// A countingKey counts its signatures.
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

// waitFor waits until others have got so far.
func waitFor(reached func() bool) {
	for !reached() {
		runtime.Gosched()
	}
}

// TestFloodIsTurnedAway has one host fill what it may of the budget of answers that are signed in flight, with three kinds of
// them. Another host gets its answers, each after one of the flood.
func TestFloodIsTurnedAway(t *testing.T) {
	key := newGatedKey(t)
	s := newScene(t, responder.Config{}, key)
	kept, _ := s.issue(t)
	leaf, _ := s.issue(t)
	go key.let(1)
	s.want(t, "before the flood", kept, "good")

	entry := singleRequest(t, request(t, leaf, s.ca.Certificate, crypto.SHA1))
	stranger := s.ca.Leaf(t, "stranger")
	flood := [][]byte{compose(t, 32, entry), compose(t, -1, entry, entry), request(t, stranger, s.ca.Certificate, crypto.SHA1)}
	var waiting sync.WaitGroup
	var answered atomic.Int64
	signing := responder.Signing(s.Responder)
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
	waitFor(func() bool { return responder.Waiting(s.Responder) == queued })
	for n, der := range flood {
		if got, _ := s.read(t, leaf, s.post(t, der)); got != tryLater {
			t.Errorf("one more of kind %d: %s", n, got)
		}
	}
	s.want(t, "what was signed before", kept, "good")
	go key.let(1)
	s.want(t, "what is signed for the first time, to be kept", leaf, "good")
	if n := answered.Load(); n != 0 {
		t.Errorf("%d of the flood are answered while none is signed", n)
	}
	const others = 3
	var served sync.WaitGroup
	for range others {
		served.Go(func() {
			if got, _ := s.read(t, leaf, s.postFrom(t, "[2001:db8::1]:1", flood[0])); got != "good" {
				t.Errorf("another host, beside the flood: %s", got)
			}
		})
	}
	waitFor(func() bool { return responder.Waiting(s.Responder) == queued+others })
	for _, gate := range gates {
		close(gate)
	}
	key.let(2 * others)
	served.Wait()
	key.let(queued - others)
	waiting.Wait()
	go key.let(1)
	if got, _ := s.read(t, leaf, s.post(t, flood[0])); got != "good" {
		t.Errorf("after the flood: %s", got)
	}
}

// TestWhoeverHangsUpWaitsNoMore has a client go while its answer waits to be signed.
func TestWhoeverHangsUpWaitsNoMore(t *testing.T) {
	key := newGatedKey(t)
	s := newScene(t, responder.Config{}, key)
	server := httptest.NewServer(s.handler)
	defer server.Close()
	leaf, _ := s.issue(t)
	other, _ := s.issue(t)
	var asking sync.WaitGroup
	var gates []chan struct{}
	for range responder.Signing(s.Responder) { // fill the places of answers that are kept
		filler, _ := s.issue(t)
		asking.Go(func() { s.want(t, "before it", filler, "good") })
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
	asking.Go(func() {
		if answer, err := client.Do(q); err == nil {
			answer.Body.Close()
			t.Errorf("a client that has gone gets HTTP %d", answer.StatusCode)
		}
	})
	waitFor(func() bool { return responder.WaitingToKeep(s.Responder) == 1 })
	hangUp()
	waitFor(func() bool { return responder.WaitingToKeep(s.Responder) == 0 })
	for _, gate := range gates {
		close(gate)
	}
	asking.Wait()
	go key.let(2)
	s.want(t, "the same question afterwards", leaf, "good")
	s.want(t, "another one", other, "good")
}

// TestOneSignsForAll has many ask the same at once.
func TestOneSignsForAll(t *testing.T) {
	key := newGatedKey(t)
	s := newScene(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	var asking sync.WaitGroup
	for range 20 {
		asking.Go(func() { s.want(t, "one of many", leaf, "good") })
	}
	key.let(1) // a second signature would wait for ever
	asking.Wait()

	// A revocation while one signs and the others wait for it.
	s.clock.advance(s.staleness / 2)
	s.current(t)
	for range 20 {
		asking.Go(func() { s.want(t, "one of many", leaf, "revoked") })
	}
	gate := <-key.started
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	close(gate)
	key.let(1)
	asking.Wait()
}
