package jwt_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

// provider is an OpenID provider with HTTPS. It serves a configuration and keys, and a test can replace both.
type provider struct {
	*httptest.Server
	mu      sync.Mutex
	handler map[string]http.HandlerFunc
}

func newProvider(t testing.TB, keys ...signer) *provider {
	t.Helper()
	p := &provider{handler: map[string]http.HandlerFunc{}}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		handler := p.handler[r.URL.Path]
		p.mu.Unlock()
		if handler == nil {
			http.NotFound(w, r)
			return
		}
		handler(w, r)
	}))
	p.Config.ErrorLog = quiet
	p.StartTLS()
	t.Cleanup(p.Close)
	p.serves("/.well-known/openid-configuration", encoded(t, set{"issuer": p.URL, "jwks_uri": p.URL + "/keys"}))
	p.serves("/keys", string(jwks(t, keys...)))
	return p
}

func (p *provider) handle(path string, handler http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handler[path] = handler
}

func (p *provider) serves(path, body string) {
	p.handle(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
}

// roots returns the certificate of the provider's server.
func (p *provider) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(p.Certificate())
	return roots
}

func (p *provider) source() jwt.Source {
	return jwt.Source{
		Name: "provider", Issuer: p.URL, Audience: audience, Algorithms: []string{"ES256"}, Keys: jwt.Keys{Discovery: true},
		Roots: p.roots(),
	}
}

func (p *provider) claims() set { return standard().with(set{"iss": p.URL}) }

// TestKeysAreRotated checks that the first token with a new key is not refused, and that a removed key is no longer
// used.
func TestKeysAreRotated(t *testing.T) {
	first, second := newSigner(t, "key-1"), newSigner(t, "key-2")
	p := newProvider(t, first)
	w := newWorld(t, p.source())
	old, fresh := first.token(t, p.claims()), second.token(t, p.claims())
	if _, err := w.identify(t, old); err != nil {
		t.Fatalf("a token at the start: %v", err)
	}
	_, err := w.identify(t, fresh)
	mustRefuse(t, "an unknown key, directly after a fetch", err, pki.RuleEvidenceUntrusted)
	p.serves("/keys", string(jwks(t, second)))
	w.sleep(jwt.MinInterval)
	_, err = w.identify(t, fresh)
	if err != nil { // the fetch may have ended already
		mustBeTemporary(t, "the first token with a new key", err)
	}
	w.AwaitFetch(p.URL)
	if _, err := w.identify(t, fresh); err != nil {
		t.Errorf("a token with the new key: %v", err)
	}
	_, err = w.identify(t, old)
	mustRefuse(t, "a token with the removed key", err, pki.RuleEvidenceUntrusted)
}

// TestBadProviders has one line for each way in which a provider can fail. It checks that there is a temporary error if
// there are no keys, and that the last keys are used otherwise.
func TestBadProviders(t *testing.T) {
	s := newSigner(t, "key-1")
	other := newProvider(t, s)
	const configuration, keys = "/.well-known/openid-configuration", "/keys"
	text := func(path, body string) func(*provider) { return func(p *provider) { p.serves(path, body) } }
	redirect := func(path, to string) func(*provider) {
		return func(p *provider) {
			p.handle(path, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
		}
	}
	var many []signer
	for i := range jwt.MaxKeys + 1 {
		many = append(many, signer{s.key, fmt.Sprintf("key-%d", i)})
	}
	one := strings.TrimSuffix(strings.TrimPrefix(string(jwks(t, s)), `{"keys":[`), `]}`)
	for what, c := range map[string]struct {
		breaks func(*provider)
		want   string // in the error
	}{
		"1 GB of keys":            {endless(keys), "over 1 MiB"},
		"1 GB of configuration":   {endless(configuration), "over 1 MiB"},
		"10,000 keys":             {text(keys, `{"keys":[`+strings.Repeat(`{"kty":"EC"},`, 9999)+one+`]}`), "10000 keys"},
		"one key too many":        {text(keys, string(jwks(t, many...))), "101 keys"},
		"no keys":                 {text(keys, `{"keys":[]}`), "none of the 0 keys"},
		"keys that are not JSON":  {text(keys, `<html>`), "not a JSON object"},
		"keys without a list":     {text(keys, `{"keys":{}}`), "no list of keys"},
		"an error":                {func(p *provider) { p.handle(keys, http.NotFound) }, "404"},
		"a redirect to a host":    {redirect(keys, other.URL+keys), "redirect to another host"},
		"a redirect to loopback":  {redirect(keys, "http://127.0.0.1:1/keys"), "redirect to another host"},
		"a redirect to a file":    {redirect(keys, "file:///etc/passwd"), "redirect to another host"},
		"a redirect of the first": {redirect(configuration, other.URL+configuration), "redirect to another host"},
		"endless redirects":       {redirect(keys, keys), "more than 3 redirects"},
		"the issuer of another": {text(configuration, encoded(t, set{"issuer": other.URL, "jwks_uri": other.URL + keys})),
			"that of the issuer"},
		"keys without HTTPS": {func(p *provider) {
			p.serves(configuration, encoded(t, set{"issuer": p.URL, "jwks_uri": "http://127.0.0.1:1/keys"}))
		}, "does not use HTTPS"},
		"keys in a file": {func(p *provider) {
			p.serves(configuration, encoded(t, set{"issuer": p.URL, "jwks_uri": "file:///keys"}))
		}, "not a URL of a server"},
		"a location twice": {func(p *provider) { p.serves(configuration, `{"jwks_uri":"x","jwks_uri":"y"}`) },
			"a member twice"},
		"large headers": {func(p *provider) { p.handle(keys, largeHeaders) }, "header"},
		"a connection that is shut": {func(p *provider) {
			p.handle(keys, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		}, "EOF"},
	} {
		t.Run(what, func(t *testing.T) {
			p := newProvider(t, s)
			good := newWorld(t, p.source())
			token := s.token(t, p.claims())
			if _, err := good.identify(t, token); err != nil {
				t.Fatal(err)
			}
			c.breaks(p)
			good.sleep(jwt.KeepFor - jwt.MinInterval)
			good.Refresh(p.URL)
			good.AwaitFetch(p.URL)
			if _, err := identifyAt(t, good, token); err != nil {
				t.Errorf("with the last keys: %v", err)
			}
			if !strings.Contains(good.log.String(),
				"fetching the keys of a JWT source failed") || !strings.Contains(good.log.String(), c.want) {
				t.Errorf("the log does not contain %q: %s", c.want, good.log.String())
			}
			bad := newWorld(t, p.source())
			_, err := bad.identify(t, token)
			mustBeTemporary(t, "without keys", err)
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("without keys: %v, want %q", err, c.want)
			}
		})
	}
}

// identifyAt presents a token at the time at which it was made.
func identifyAt(t *testing.T, w *world, token string) (ra.Claim, error) {
	t.Helper()
	return w.Identify(t.Context(), ra.Presented{Evidence: []byte(token), At: now})
}

// endless makes a provider send bytes until the connection ends.
func endless(path string) func(*provider) {
	return func(p *provider) {
		p.handle(path, func(w http.ResponseWriter, _ *http.Request) {
			chunk := []byte(strings.Repeat(" ", 1<<16))
			for range 1 << 14 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		})
	}
}

func largeHeaders(w http.ResponseWriter, _ *http.Request) {
	for i := range 100 {
		w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
	}
}

// TestHangingProvider checks that a caller with keys does not wait for a provider that hangs.
func TestHangingProvider(t *testing.T) {
	s := newSigner(t, "key-1")
	p := newProvider(t, s)
	w := newWorld(t, p.source())
	token := s.token(t, p.claims())
	if _, err := w.identify(t, token); err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	p.handle("/keys", func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	})
	w.sleep(jwt.KeepFor - jwt.MinInterval)
	w.Refresh(p.URL)
	<-begun
	if _, err := identifyAt(t, w, token); err != nil {
		t.Errorf("while the provider hangs: %v", err)
	}
	w.Close() // ends the request, and with it the handler
}

// TestRedirectsOnTheHost checks that a redirect to another path of the provider works.
func TestRedirectsOnTheHost(t *testing.T) {
	s := newSigner(t, "key-1")
	p := newProvider(t, s)
	p.serves("/moved", string(jwks(t, s)))
	p.handle("/keys", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/moved", http.StatusFound) })
	if _, err := newWorld(t, p.source()).identify(t, s.token(t, p.claims())); err != nil {
		t.Error(err)
	}
}

// TestUnknownServer checks that a provider is verified.
func TestUnknownServer(t *testing.T) {
	s := newSigner(t, "key-1")
	p := newProvider(t, s)
	source := p.source()
	source.Roots = x509.NewCertPool()
	_, err := newWorld(t, source).identify(t, s.token(t, p.claims()))
	mustBeTemporary(t, "a server with an unknown certificate", err)
}

// TestKeysAreTakenOver checks what happens to keys if the sources change while the provider is down.
func TestKeysAreTakenOver(t *testing.T) {
	s := newSigner(t, "key-1")
	p := newProvider(t, s)
	before := newWorld(t, p.source())
	token := s.token(t, p.claims())
	if _, err := before.identify(t, token); err != nil {
		t.Fatal(err)
	}
	p.handle("/keys", http.NotFound)
	changed, moved := p.source(), p.source()
	changed.Algorithms = append(changed.Algorithms, "RS256")
	moved.Roots = x509.NewCertPool()
	for what, source := range map[string]jwt.Source{"another algorithm": changed, "other roots": moved} {
		after := must(jwt.New([]jwt.Source{source}, before.clock, slog.New(slog.DiscardHandler)))(t)
		t.Cleanup(after.Close)
		after.Start(before.Authenticator)
		_, err := after.Identify(t.Context(), ra.Presented{Evidence: []byte(token), At: now})
		if what == "other roots" {
			mustBeTemporary(t, what, err)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestManyTokensFetchOnce checks that many tokens with unknown keys cause one request.
func TestManyTokensFetchOnce(t *testing.T) {
	s, stranger := newSigner(t, "key-1"), newSigner(t, "key-2")
	p := newProvider(t, s)
	w := newWorld(t, p.source())
	if _, err := w.identify(t, s.token(t, p.claims())); err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int32
	p.handle("/keys", func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		_ = json.NewEncoder(w).Encode(set{"keys": []any{json.RawMessage(jwks(t, s))}})
	})
	w.sleep(jwt.MinInterval)
	token := stranger.token(t, p.claims())
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			if _, err := w.Identify(context.Background(), ra.Presented{Evidence: []byte(token), At: now}); err == nil {
				t.Error("a token with an unknown key is accepted")
			}
		})
	}
	callers.Wait()
	w.AwaitFetch(p.URL)
	if n := requests.Load(); n != 1 {
		t.Errorf("50 tokens caused %d requests for keys, want 1", n)
	}
}
