package responder_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
	"go.uber.org/goleak"
	xocsp "golang.org/x/crypto/ocsp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A clock shows the time that a test sets.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// A fixture is a responder for one issuing CA, with a delegate. It reads its statuses from the book.
type fixture struct {
	*responder.Responder
	handler  http.Handler
	root, ca revtest.CA
	key      crypto.Signer
	delegate *x509.Certificate
	book     *revtest.Book
	clock    *clock
	validity time.Duration
}

func newFixture(t testing.TB, config responder.Config, key crypto.Signer) *fixture {
	t.Helper()
	root := revtest.NewRoot(t, "Root", "p256")
	s := &fixture{root: root, ca: root.Intermediate(t, "Issuing CA", "p256"), key: key, book: revtest.NewBook(), clock: &clock{at: time.Now()}}
	config.Clock, config.Log = s.clock.now, slog.New(slog.DiscardHandler)
	s.validity = config.Validity
	if s.validity == 0 {
		s.validity = responder.DefaultValidity
	}
	r, err := responder.New(config)
	if err != nil {
		t.Fatal(err)
	}
	s.Responder, s.handler = r, r.Handler()
	for _, ca := range []revtest.CA{s.root, s.ca} {
		if err := r.AddIssuer(ca.Certificate); err != nil {
			t.Fatal(err)
		}
	}
	s.delegate = s.ca.Delegate(t, key, nil)
	if err := r.SetDelegate(s.ca.ID(), s.delegate, key); err != nil {
		t.Fatal(err)
	}
	s.follow(t)
	return s
}

// follow reads the feed to its end. After that, the statuses are current at the time of the clock.
func (s *fixture) follow(t testing.TB) {
	t.Helper()
	if err := responder.FollowOnce(s.Responder, s.book); err != nil {
		t.Fatal(err)
	}
}

func (s *fixture) issue(t testing.TB) (*x509.Certificate, pki.CertRef) {
	t.Helper()
	leaf := s.ca.Leaf(t, "device")
	ref := s.ca.Ref(t, leaf)
	s.Apply(s.book.Issue(ref, leaf.NotAfter))
	return leaf, ref
}

// change notifies the responder of a new status of a certificate, like the authority.
func (s *fixture) change(t testing.TB, ref pki.CertRef, state pki.State, reason pki.Reason) {
	t.Helper()
	old, ok := s.Status(ref)
	if !ok {
		t.Fatalf("%v is not known", ref.Serial)
	}
	s.Apply(pki.StatusChange{Ref: ref, NotAfter: s.clock.now().Add(time.Hour), Status: pki.Status{
		State: state, Reason: reason, RevokedAt: s.clock.now().Truncate(time.Second), Version: old.Version + 1,
	}})
}

func request(t testing.TB, leaf, issuer *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := xocsp.CreateRequest(leaf, issuer, &xocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// post sends an OCSP request by POST and returns the response in DER.
func (s *fixture) post(t testing.TB, der []byte) []byte {
	t.Helper()
	return s.postFrom(t, "192.0.2.1:1", der)
}

// postFrom does the same as post, from a remote address.
func (s *fixture) postFrom(t testing.TB, remote string, der []byte) []byte {
	t.Helper()
	q := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/ocsp", bytes.NewReader(der))
	q.RemoteAddr = remote
	q.Header.Set("Content-Type", "application/ocsp-request")
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, q)
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/ocsp-response" {
		t.Fatalf("HTTP %d %s: %s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	return w.Body.Bytes()
}

// get sends a GET request and returns the HTTP response.
func (s *fixture) get(t testing.TB, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	q := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, q)
	return w
}

func pathOf(der []byte) string { return "/ocsp/" + base64.RawURLEncoding.EncodeToString(der) }

// status requests the OCSP status of a certificate. It returns the status, or the refusal.
func (s *fixture) status(t testing.TB, leaf *x509.Certificate) string {
	t.Helper()
	text, _ := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	return text
}

// read parses a response and returns its status or its refusal.
func (s *fixture) read(t testing.TB, leaf *x509.Certificate, der []byte) (string, *xocsp.Response) {
	t.Helper()
	response, err := xocsp.ParseResponseForCert(der, leaf, s.ca.Certificate)
	var refusal xocsp.ResponseError
	if errors.As(err, &refusal) {
		return refusal.Status.String(), nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return []string{"good", "revoked", "unknown"}[response.Status], response
}

func (s *fixture) want(t testing.TB, what string, leaf *x509.Certificate, want string) {
	t.Helper()
	if got := s.status(t, leaf); got != want {
		t.Errorf("%s: the responder says %s, want %s", what, got, want)
	}
}

const (
	tryLater     = "try later"
	unauthorized = "unauthorized"
	malformed    = "malformed"
)
