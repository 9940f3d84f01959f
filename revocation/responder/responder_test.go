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

func TestWhatIsSaidOfCertificates(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
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

	// CAs that are not answered for.
	other := revtest.NewRoot(t, "Other Root", "p256")
	stranger := other.Leaf(t, "stranger")
	if got, _ := s.read(t, stranger, s.post(t, request(t, stranger, other.Certificate, crypto.SHA1))); got != unauthorized {
		t.Errorf("another CA's: %s, want %s", got, unauthorized)
	}
	if got, _ := s.read(t, s.ca.Certificate, s.post(t, request(t, s.ca.Certificate, s.root.Certificate, crypto.SHA1))); got != unauthorized {
		t.Errorf("an offline root's: %s, want %s", got, unauthorized)
	}
	// An issuing CA whose delegate is yet to come.
	young := s.root.Intermediate(t, "Young CA", "p256")
	if err := s.AddIssuer(young.Certificate); err != nil {
		t.Fatal(err)
	}
	child := young.Leaf(t, "device")
	if got, _ := s.read(t, child, s.post(t, request(t, child, young.Certificate, crypto.SHA1))); got != tryLater {
		t.Errorf("a CA without delegate: %s, want %s", got, tryLater)
	}
}

func TestKnowledgeGrowsOld(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	known := s.clock.now().Truncate(time.Second)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if !response.ThisUpdate.Equal(known) || !response.NextUpdate.Equal(known.Add(s.staleness)) {
		t.Errorf("the answer is of %v, until %v; the status was known at %v", response.ThisUpdate, response.NextUpdate, known)
	}
	s.clock.advance(s.staleness - 2*time.Second)
	s.want(t, "just within the limit", leaf, "good")
	s.clock.advance(3 * time.Second)
	s.want(t, "past the limit", leaf, tryLater)
	s.change(t, ref, pki.Revoked, pki.Superseded)
	s.want(t, "revoked past the limit", leaf, tryLater)
	s.current(t)
	s.want(t, "current again", leaf, "revoked")

	// A clock that was set back knows nothing until the next look at the feed.
	s.clock.advance(-10 * time.Minute)
	s.want(t, "in the past", leaf, tryLater)
	s.current(t)
	s.want(t, "current in the past", leaf, "revoked")

	fresh, err := responder.New(responder.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if at := fresh.CurrentAt(); !at.IsZero() {
		t.Errorf("a responder that knows nothing is current at %v", at)
	}
}

func TestRevocationAfterTheLastLook(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	s.clock.advance(20 * time.Second)
	s.change(t, ref, pki.Revoked, pki.Superseded)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if response.ThisUpdate.Before(response.RevokedAt) || response.ThisUpdate.After(s.clock.now()) {
		t.Errorf("revoked at %v, said to be known at %v", response.RevokedAt, response.ThisUpdate)
	}
	// The clock is set back to before the revocation, which is then no less in force.
	s.clock.advance(-10 * time.Minute)
	s.current(t)
	_, response = s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if response.Status != xocsp.Revoked || response.RevokedAt.After(s.clock.now()) || response.ThisUpdate.After(s.clock.now()) {
		t.Errorf("status %d, revoked at %v, at %v", response.Status, response.RevokedAt, s.clock.now())
	}
}

func TestDelegateEnds(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	end := s.delegate.NotAfter
	s.clock.advance(end.Sub(s.clock.now()) - time.Minute)
	s.current(t)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if response.NextUpdate.After(end) {
		t.Errorf("an answer outlives its delegate: %v, %v", response.NextUpdate, end)
	}
	s.clock.advance(2 * time.Minute)
	s.current(t)
	s.want(t, "with an expired delegate", leaf, tryLater)
	next := revtest.Key(t, "rsa")
	renewed := s.ca.Delegate(t, next, func(c *x509.Certificate) { c.NotAfter = end.Add(24 * time.Hour) })
	if err := s.SetDelegate(s.ca.ID(), renewed, next); err != nil {
		t.Fatal(err)
	}
	s.want(t, "with another delegate", leaf, "good")
}

func TestDelegatesThatAreRefused(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
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
		t.Error("another CA's delegate is taken")
	}
	namesake := revtest.NewRoot(t, "Root", "p256").Intermediate(t, "Issuing CA", "p256")
	if err := s.SetDelegate(s.ca.ID(), namesake.Delegate(t, key, nil), key); err == nil {
		t.Error("a namesake's delegate is taken")
	}
	if err := s.SetDelegate(s.ca.ID(), s.ca.Delegate(t, key, nil), revtest.Key(t, "p256")); err == nil {
		t.Error("another key is taken")
	}
	if err := s.SetDelegate(namesake.ID(), namesake.Delegate(t, key, nil), key); err == nil {
		t.Error("a delegate of a CA that is not here is taken")
	}
	if err := s.AddIssuer(s.ca.Leaf(t, "leaf")); err == nil {
		t.Error("a leaf is taken for a CA")
	}
	leaf, _ := s.issue(t)
	s.want(t, "after all of that", leaf, "good")
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for _, c := range []responder.Config{
		{MaxAge: -1}, {Staleness: -1}, {MaxAge: time.Minute, Staleness: time.Minute}, {MaxAge: 1, Staleness: time.Second},
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
		// The statuses of each certificate, by version; then in any order, some of them more than once.
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
		heard := rapid.Permutation(append(slices.Clone(all), all[:again]...)).Draw(r, "heard")
		for len(heard) > 0 {
			n := rapid.IntRange(1, len(heard)).Draw(r, "at once")
			fresh.Apply(heard[:n]...)
			heard = heard[n:]
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

func TestRevocationOvertakesASigningInFlight(t *testing.T) {
	key := newGatedKey(t)
	s := newScene(t, responder.Config{}, key)
	leaf, ref := s.issue(t)
	answered := make(chan string, 1)
	go func() { answered <- s.status(t, leaf) }()
	gate := <-key.started // "good" is being signed
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	close(gate)
	select {
	case gate = <-key.started: // and now "revoked"
		close(gate)
	case got := <-answered:
		t.Fatalf("an answer that was signed before the revocation says %s after it", got)
	}
	if got := <-answered; got != "revoked" {
		t.Errorf("an answer after the revocation says %s", got)
	}
	s.want(t, "from the cache", leaf, "revoked") // or it would wait for the gate
}

func TestRevocationsAgainstQuestions(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	for range 8 {
		leaf, ref := s.issue(t)
		der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
		stop := make(chan struct{})
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
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
				t.Errorf("after the revocation returned: %s", got)
			}
		}
		close(stop)
		asking.Wait()
	}
}

func TestAnswersAreSignedOnce(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	der := request(t, leaf, s.ca.Certificate, crypto.SHA1)
	first := s.post(t, der)
	if !bytes.Equal(first, s.post(t, der)) || !bytes.Equal(first, s.get(t, pathOf(der)).Body.Bytes()) {
		t.Error("the same question is signed again")
	}
	if bytes.Equal(first, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA256))) {
		t.Error("a question by SHA-256 gets an answer by SHA-1")
	}
	for range 5 {
		s.clock.advance(s.staleness / 10)
		s.current(t)
		if now := s.clock.now(); s.expiry(t, leaf, der).Sub(now) < s.staleness/2-time.Second {
			t.Errorf("an answer ends within half the limit, though the status is known as of now")
		}
	}
	second := s.post(t, der)
	if bytes.Equal(first, second) {
		t.Error("an answer is never renewed")
	}
	s.change(t, ref, pki.Hold, pki.CertificateHold)
	if bytes.Equal(second, s.post(t, der)) {
		t.Error("an answer survives a change of status")
	}
	unknown := request(t, s.ca.Leaf(t, "stranger"), s.ca.Certificate, crypto.SHA1)
	if bytes.Equal(s.post(t, unknown), s.post(t, unknown)) {
		t.Error("an answer about what was never issued is kept")
	}
}

func TestKeptAnswersAreBounded(t *testing.T) {
	s := newScene(t, responder.Config{}, revtest.Key(t, "p256"))
	responder.Keep(s.Responder, 1)
	asked := 0
	for ; responder.Kept(s.Responder) == asked; asked++ {
		if asked > responder.Shards {
			t.Fatalf("%d answers are kept in %d shards of one each", asked, responder.Shards)
		}
		leaf, _ := s.issue(t)
		s.want(t, "issued", leaf, "good")
		s.want(t, "asked again", leaf, "good")
	}
	s.clock.advance(s.staleness)
	responder.RenewOnce(s.Responder)
	if n := responder.Kept(s.Responder); n != 0 {
		t.Errorf("%d answers are kept past their end", n)
	}
}

func (s *scene) expiry(t testing.TB, leaf *x509.Certificate, der []byte) time.Time {
	t.Helper()
	_, response := s.read(t, leaf, s.post(t, der))
	return response.NextUpdate
}
