package responder_test

import (
	"crypto"
	"encoding/base64"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// A countingMeter counts the responses with each outcome.
type countingMeter struct {
	mu    sync.Mutex
	count map[responder.Outcome]int
}

func (m *countingMeter) Answered(o responder.Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count[o]++
}

func TestEveryResponseIsCounted(t *testing.T) {
	m := &countingMeter{count: map[responder.Outcome]int{}}
	s := newFixture(t, responder.Config{Meter: m}, revtest.Key(t, "p256"))
	good, _ := s.issue(t)
	revoked, ref := s.issue(t)
	s.Apply(pki.StatusChange{Ref: ref, NotAfter: revoked.NotAfter, Status: pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: s.clock.now(), Version: 2}})
	stranger := revtest.NewRoot(t, "Stranger", "p256")
	get := func(der []byte) { s.get(t, "/ocsp/"+base64.URLEncoding.EncodeToString(der)) }
	for range 2 { // the second response comes from the cache
		get(request(t, good, s.ca.Certificate, crypto.SHA256))
		get(request(t, revoked, s.ca.Certificate, crypto.SHA1))
	}
	get(request(t, s.ca.Leaf(t, "unknown"), s.ca.Certificate, crypto.SHA1))
	get(request(t, good, stranger.Certificate, crypto.SHA1))
	get([]byte("not a request"))
	s.get(t, "/ocsp/!")
	s.clock.advance(time.Hour)
	get(request(t, good, s.ca.Certificate, crypto.SHA1))
	want := map[responder.Outcome]int{
		responder.Good: 2, responder.Revoked: 2, responder.Unknown: 1, responder.Unauthorized: 1, responder.Malformed: 2, responder.TryLater: 1,
	}
	if !maps.Equal(m.count, want) {
		t.Errorf("counted %v, want %v", m.count, want)
	}
}
