package responder_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
	xocsp "golang.org/x/crypto/ocsp"
	"pgregory.net/rapid"
)

func TestStatusInResponse(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	s.want(t, "issued", leaf, "good")
	s.want(t, "not issued", s.ca.Leaf(t, "stranger"), "unknown")
	s.change(t, ref, pki.Hold, pki.CertificateHold)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA256)))
	if response.Status != xocsp.Revoked || response.RevocationReason != xocsp.CertificateHold {
		t.Errorf("on hold: %+v", response)
	}
	s.change(t, ref, pki.Good, 0)
	s.want(t, "released", leaf, "good")
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	s.want(t, "revoked", leaf, "revoked")
	if status, ok := s.Status(ref); !ok || status.State != pki.Revoked || status.Reason != pki.KeyCompromise || status.Version != 4 {
		t.Errorf("Status = %+v, %v", status, ok)
	}
	if status, ok := s.Status(pki.CertRef{Issuer: s.ca.ID(), Serial: revtest.Serial(t)}); ok {
		t.Errorf("Status of what was never issued = %+v", status)
	}

	// CAs that the responder does not know.
	other := revtest.NewRoot(t, "Other Root", "p256")
	stranger := other.Leaf(t, "stranger")
	if got, _ := s.read(t, stranger, s.post(t, request(t, stranger, other.Certificate, crypto.SHA1))); got != unauthorized {
		t.Errorf("a certificate of an unknown CA: %s, want %s", got, unauthorized)
	}
	if got, _ := s.read(t, s.ca.Certificate, s.post(t, request(t, s.ca.Certificate, s.root.Certificate, crypto.SHA1))); got != unauthorized {
		t.Errorf("a certificate of an offline root: %s, want %s", got, unauthorized)
	}
	// An issuing CA that has no delegate yet.
	young := s.root.Intermediate(t, "Young CA", "p256")
	if err := s.AddIssuer(young.Certificate); err != nil {
		t.Fatal(err)
	}
	child := young.Leaf(t, "device")
	if got, _ := s.read(t, child, s.post(t, request(t, child, young.Certificate, crypto.SHA1))); got != tryLater {
		t.Errorf("a CA without delegate: %s, want %s", got, tryLater)
	}
}

func TestStaleStatusesGetTryLater(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	known := s.clock.now().Truncate(time.Second)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if !response.ThisUpdate.Equal(known) || !response.NextUpdate.Equal(known.Add(s.validity)) {
		t.Errorf("thisUpdate is %v and nextUpdate %v; the status was known at %v", response.ThisUpdate, response.NextUpdate, known)
	}
	s.clock.advance(s.validity - 2*time.Second)
	s.want(t, "just within the limit", leaf, "good")
	s.clock.advance(3 * time.Second)
	s.want(t, "past the limit", leaf, tryLater)
	s.change(t, ref, pki.Revoked, pki.Superseded)
	s.want(t, "revoked past the limit", leaf, tryLater)
	s.follow(t)
	s.want(t, "current again", leaf, "revoked")

	// After the clock was set back, responses are tryLater until the feed is read again.
	s.clock.advance(-10 * time.Minute)
	s.want(t, "in the past", leaf, tryLater)
	s.follow(t)
	s.want(t, "current in the past", leaf, "revoked")

	fresh, err := responder.New(responder.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if at := fresh.CurrentAt(); !at.IsZero() {
		t.Errorf("a new responder is current at %v", at)
	}
}

func TestThisUpdateIsNotBeforeRevocation(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	s.clock.advance(20 * time.Second)
	s.change(t, ref, pki.Revoked, pki.Superseded)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if response.ThisUpdate.Before(response.RevokedAt) || response.ThisUpdate.After(s.clock.now()) {
		t.Errorf("revoked at %v, but thisUpdate is %v", response.RevokedAt, response.ThisUpdate)
	}
	// The certificate stays revoked if the clock is set back to before the revocation.
	s.clock.advance(-10 * time.Minute)
	s.follow(t)
	_, response = s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if response.Status != xocsp.Revoked || response.RevokedAt.After(s.clock.now()) || response.ThisUpdate.After(s.clock.now()) {
		t.Errorf("status %d, revoked at %v, at %v", response.Status, response.RevokedAt, s.clock.now())
	}
}

func TestResponsesEndWithTheirDelegate(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	end := s.delegate.NotAfter
	s.clock.advance(end.Sub(s.clock.now()) - time.Minute)
	s.follow(t)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if response.NextUpdate.After(end) {
		t.Errorf("nextUpdate is %v, after the end of the delegate at %v", response.NextUpdate, end)
	}
	s.clock.advance(2 * time.Minute)
	s.follow(t)
	s.want(t, "with an expired delegate", leaf, tryLater)
	next := revtest.Key(t, "rsa")
	renewed := s.ca.Delegate(t, next, func(c *x509.Certificate) { c.NotAfter = end.Add(24 * time.Hour) })
	if err := s.SetDelegate(s.ca.ID(), renewed, next); err != nil {
		t.Fatal(err)
	}
	s.want(t, "with another delegate", leaf, "good")
}

func TestUnsuitableDelegatesAreRefused(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	key := revtest.Key(t, "p256")
	now := s.clock.now()
	for name, edit := range map[string]func(*x509.Certificate){
		"no OCSPSigning": func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"any usage":      func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"no nocheck":     func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"expired":        func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) },
		"yet to come":    func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) },
		"key usage":      func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement },
		"a CA":           func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
	} {
		if err := s.SetDelegate(s.ca.ID(), s.ca.Delegate(t, key, edit), key); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if err := s.SetDelegate(s.ca.ID(), s.root.Delegate(t, key, nil), key); err == nil {
		t.Error("the delegate of another CA is accepted")
	}
	namesake := revtest.NewRoot(t, "Root", "p256").Intermediate(t, "Issuing CA", "p256")
	if err := s.SetDelegate(s.ca.ID(), namesake.Delegate(t, key, nil), key); err == nil {
		t.Error("the delegate of another CA with the same name is accepted")
	}
	if err := s.SetDelegate(s.ca.ID(), s.ca.Delegate(t, key, nil), revtest.Key(t, "p256")); err == nil {
		t.Error("a key that does not match the certificate is accepted")
	}
	if err := s.SetDelegate(namesake.ID(), namesake.Delegate(t, key, nil), key); err == nil {
		t.Error("a delegate of an unknown CA is accepted")
	}
	if err := s.AddIssuer(s.ca.Leaf(t, "leaf")); err == nil {
		t.Error("AddIssuer accepts a leaf certificate")
	}
	leaf, _ := s.issue(t)
	s.want(t, "after the refused delegates", leaf, "good")
}

func TestInvalidConfigIsRefused(t *testing.T) {
	for _, c := range []responder.Config{
		{MaxAge: -1}, {Validity: -1}, {MaxAge: time.Minute, Validity: time.Minute}, {MaxAge: 1, Validity: time.Second},
	} {
		if _, err := responder.New(c); err == nil {
			t.Errorf("%+v: want an error", c)
		}
	}
}

func TestHighestVersionWins(t *testing.T) {
	root := revtest.NewRoot(t, "Root", "p256")
	serials := []pki.Serial{revtest.Serial(t), revtest.Serial(t), revtest.Serial(t)}
	at := time.Now().Truncate(time.Second).UTC()
	rapid.Check(t, func(r *rapid.T) {
		fresh, err := responder.New(responder.Config{})
		if err != nil {
			r.Fatal(err)
		}
		// Create statuses with increasing versions for each certificate. Apply them in random order, some of them
		// twice.
		var all []pki.StatusChange
		newest := map[pki.Serial]pki.Status{}
		for _, serial := range serials {
			for v := range rapid.IntRange(0, 5).Draw(r, "versions") {
				status := pki.Status{State: pki.Good, Version: uint64(v) + 1}
				if rapid.Bool().Draw(r, "revoked") {
					status.State, status.Reason, status.RevokedAt = pki.Revoked, pki.Reason(v%6), at.Add(time.Duration(v)*time.Second)
				}
				all = append(all, pki.StatusChange{Ref: pki.CertRef{Issuer: root.ID(), Serial: serial}, NotAfter: at.Add(time.Hour), Status: status})
				newest[serial] = status
			}
		}
		again := rapid.IntRange(0, len(all)).Draw(r, "again")
		received := rapid.Permutation(append(slices.Clone(all), all[:again]...)).Draw(r, "received")
		for len(received) > 0 {
			n := rapid.IntRange(1, len(received)).Draw(r, "at once")
			fresh.Apply(received[:n]...)
			received = received[n:]
		}
		for _, serial := range serials {
			got, ok := fresh.Status(pki.CertRef{Issuer: root.ID(), Serial: serial})
			want, known := newest[serial]
			if ok != known || got != want {
				r.Fatalf("%v: %+v, %v; want %+v, %v", serial, got, ok, want, known)
			}
		}
	})
}

func TestRevocationDuringSigningWins(t *testing.T) {
	key := newBlockingKey(t)
	s := newFixture(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	answered := make(chan string, 1)
	go func() { answered <- s.status(t, leaf) }()
	gate := <-key.started // the responder is signing "good"
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	close(gate)
	select {
	case gate = <-key.started: // the responder is signing again, now "revoked"
		close(gate)
	case got := <-answered:
		t.Fatalf("a response signed before the revocation is sent after it: %s", got)
	}
	if got := <-answered; got != "revoked" {
		t.Errorf("a response sent after the revocation says %s", got)
	}
	s.want(t, "from the cache", leaf, "revoked") // comes from the cache: signing would block
}

func TestConcurrentRequestsAndRevocations(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	for range 8 {
		leaf, ref := s.issue(t)
		der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
		stop := make(chan struct{})
		var requests sync.WaitGroup
		for range 4 {
			requests.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						s.get(t, pathOf(der))
					}
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		s.change(t, ref, pki.Revoked, pki.Superseded)
		for range 20 {
			if got, _ := s.read(t, leaf, s.get(t, pathOf(der)).Body.Bytes()); got != "revoked" {
				t.Errorf("after Apply has returned, a revoked certificate is %s", got)
			}
		}
		close(stop)
		requests.Wait()
	}
}

func TestResponsesAreCached(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
	first := s.post(t, der)
	if !bytes.Equal(first, s.post(t, der)) || !bytes.Equal(first, s.get(t, pathOf(der)).Body.Bytes()) {
		t.Error("an equal request is signed again")
	}
	if bytes.Equal(first, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA256))) {
		t.Error("a request with a SHA-256 CertID gets the response for the SHA-1 one")
	}
	for range 5 {
		s.clock.advance(s.validity / 10)
		s.follow(t)
		if now := s.clock.now(); s.expiry(t, leaf, der).Sub(now) < s.validity/2-time.Second {
			t.Errorf("a response expires within half the validity, though the statuses are current")
		}
	}
	second := s.post(t, der)
	if bytes.Equal(first, second) {
		t.Error("the response was not renewed")
	}
	s.change(t, ref, pki.Hold, pki.CertificateHold)
	if bytes.Equal(second, s.post(t, der)) {
		t.Error("the old response is sent after a change of status")
	}
	unknown := request(t, s.ca.Leaf(t, "stranger"), s.ca.Certificate, crypto.SHA1)
	if bytes.Equal(s.post(t, unknown), s.post(t, unknown)) {
		t.Error("a response about a certificate that was never issued is cached")
	}
}

func TestCacheIsBounded(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	responder.LimitCache(s.Responder, 1)
	requested := 0
	for ; responder.CachedCount(s.Responder) == requested; requested++ {
		if requested > responder.Shards {
			t.Fatalf("%d responses are cached in %d shards with a limit of one each", requested, responder.Shards)
		}
		leaf, _ := s.issue(t)
		s.want(t, "issued", leaf, "good")
		s.want(t, "requested again", leaf, "good")
	}
	s.clock.advance(s.validity)
	responder.RenewOnce(s.Responder)
	if n := responder.CachedCount(s.Responder); n != 0 {
		t.Errorf("%d expired responses are cached", n)
	}
}

func (s *fixture) expiry(t testing.TB, leaf *x509.Certificate, der []byte) time.Time {
	t.Helper()
	_, response := s.read(t, leaf, s.post(t, der))
	return response.NextUpdate
}
