package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet is the log of servers whose errors are expected.
var quiet = log.New(io.Discard, "", 0)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

const (
	issuerURL = "https://issuer.example"
	audience  = "brevet.fleet.example"
)

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// set is a set of claims, or the header of a token.
type set map[string]any

// with returns a copy with other values. A nil value removes a member.
func (s set) with(others set) set {
	s = maps.Clone(s)
	for name, value := range others {
		if s[name] = value; value == nil {
			delete(s, name)
		}
	}
	return s
}

// standard returns the claims of a valid token without an ID.
func standard() set {
	return set{
		"iss": issuerURL, "sub": "repo:octo-org/gateway", "aud": audience, "iat": now.Unix(), "nbf": now.Unix(),
		"exp": now.Add(time.Hour).Unix(),
	}
}

// signer makes tokens without the library that verifies them.
type signer struct {
	key crypto.Signer
	id  string
}

func newSigner(t testing.TB, id string) signer {
	t.Helper()
	return signer{must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), id}
}

func (s signer) algorithm() string {
	if _, ok := s.key.(ed25519.PrivateKey); ok {
		return "EdDSA"
	}
	return "ES256"
}

func (s signer) header() set { return set{"alg": s.algorithm(), "kid": s.id, "typ": "JWT"} }

func (s signer) token(t testing.TB, claims set) string {
	t.Helper()
	return s.sign(t, s.header(), encoded(t, claims))
}

func encoded(t testing.TB, s set) string {
	t.Helper()
	return string(must(json.Marshal(s))(t))
}

// sign signs a header and a payload, whatever they are.
func (s signer) sign(t testing.TB, header set, payload string) string {
	t.Helper()
	return s.signParts(t, base64url([]byte(encoded(t, header)))+"."+base64url([]byte(payload)))
}

func (s signer) signParts(t testing.TB, signed string) string {
	t.Helper()
	if key, ok := s.key.(ed25519.PrivateKey); ok {
		return signed + "." + base64url(ed25519.Sign(key, []byte(signed)))
	}
	digest := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.key.(*ecdsa.PrivateKey), digest[:])
	check(t, err)
	return signed + "." + base64url(rawSignature(r, v))
}

func rawSignature(r, s *big.Int) []byte {
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwks returns the public keys of signers as a JWK Set.
func jwks(t testing.TB, all ...signer) []byte {
	t.Helper()
	var keys jose.JSONWebKeySet
	for _, s := range all {
		keys.Keys = append(keys.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id, Use: "sig"})
	}
	return must(json.Marshal(keys))(t)
}

// sourceOf returns a source with the static keys of a signer.
func sourceOf(t testing.TB, s signer) jwt.Source {
	t.Helper()
	return jwt.Source{
		Name: "ci", Issuer: issuerURL, Audience: audience, Algorithms: []string{s.algorithm()},
		Keys: jwt.Keys{Static: jwks(t, s)},
	}
}

// records is what an authenticator logs.
type records struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *records) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// world is an authenticator with a clock that stands still.
type world struct {
	*jwt.Authenticator
	log records
	mu  sync.Mutex
	now time.Time
}

func newWorld(t testing.TB, sources ...jwt.Source) *world {
	t.Helper()
	w := &world{now: now}
	w.Authenticator = must(jwt.New(sources, w.clock, slog.New(slog.NewTextHandler(&w.log, nil))))(t)
	t.Cleanup(w.Close)
	w.Start(nil)
	return w
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) sleep(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) identify(t testing.TB, token string) (ra.Claim, error) {
	t.Helper()
	return w.Identify(t.Context(), ra.Presented{Evidence: []byte(token), At: w.clock()})
}

func mustRefuse(t testing.TB, what string, err error, want pki.Rule) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok || refusal.Rule != want {
		t.Errorf("%s: %v, want a refusal by %s", what, err, want)
		return
	}
	if refusal.Detail == "" || refusal.Hint == "" {
		t.Errorf("%s: the refusal has no detail or no hint: %v", what, err)
	}
}

// mustBeTemporary checks that an error is temporary, and says how long to wait.
func mustBeTemporary(t testing.TB, what string, err error) {
	t.Helper()
	if _, refused := pki.AsRefusal(err); refused || !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 {
		t.Errorf("%s: %v, want a temporary error", what, err)
	}
}
