package jwt_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

// machines is the storage of an OpenID provider by another project. The provider gives JWTs to machines.
type machines struct {
	*storage.Storage
	mu   sync.Mutex
	keys []providerKey // the last one signs
}

type providerKey struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   any
	public    any
}

func (k providerKey) ID() string                                  { return k.id }
func (k providerKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k providerKey) Algorithm() jose.SignatureAlgorithm          { return k.algorithm }
func (providerKey) Use() string                                   { return "sig" }
func (k providerKey) Key() any                                    { return k.private }

// publishedKey is a providerKey whose public part the provider publishes.
type publishedKey struct{ providerKey }

func (k publishedKey) Key() any { return k.public }

func (m *machines) add(k providerKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = append(m.keys, k)
}

func (m *machines) SigningKey(context.Context) (op.SigningKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys[len(m.keys)-1], nil
}

func (m *machines) KeySet(context.Context) ([]op.Key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []op.Key
	for _, k := range m.keys {
		all = append(all, publishedKey{k})
	}
	return all, nil
}

// jwtClient is a client whose access tokens are JWTs.
type jwtClient struct{ op.Client }

func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

func (m *machines) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	c, err := m.Storage.ClientCredentials(ctx, id, secret)
	return jwtClient{c}, err
}

func (*machines) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &oidc.JWTTokenRequest{Subject: id, Audience: []string{audience}, Scopes: scopes}, nil
}

func (*machines) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return map[string]any{"line": "berlin-3", "shift": 2}, nil
}

// TestRealProvider enrolls a machine with the access token of an OpenID provider, before and after the provider rotates
// its key.
func TestRealProvider(t *testing.T) {
	m := &machines{}
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	m.add(providerKey{"first", jose.RS256, rsaKey, rsaKey.Public()})
	var handler http.Handler
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		handler.ServeHTTP(w, r)
	}))
	server.StartTLS()
	t.Cleanup(server.Close)
	m.Storage = storage.NewStorage(storage.NewUserStore(server.URL))
	handler = must(op.NewProvider(&op.Config{CryptoKeyId: "key"}, m, op.StaticIssuer(server.URL)))(t)

	roots := (&provider{Server: server}).roots()
	w := newWorld(t, jwt.Source{
		Name: "provider", Issuer: server.URL, Audience: audience, Algorithms: []string{"RS256",
			"ES256"}, Keys: jwt.Keys{Discovery: true}, Roots: roots,
		Claims: []jwt.ClaimFact{{Fact: "jwt.line", Pointer: "/line", Type: ra.FactString}, {Fact: "jwt.shift",
			Pointer: "/shift", Type: ra.FactInt}},
	})
	w.AwaitFetch(server.URL)
	w.sleep(time.Since(now)) // the provider's tokens have the time of the machine
	claim, err := w.identify(t, requestToken(t, server))
	check(t, err)
	if claim.Subject != jwt.SubjectOf(server.URL,
		"sid1") || claim.Nonce.IsZero() || claim.Facts["jwt.line"] != "berlin-3" || claim.Facts["jwt.shift"] != int64(2) {
		t.Errorf("the claim is %+v", claim)
	}
	other := requestToken(t, server)
	if second, err := w.identify(t, other); err != nil || second.Nonce == claim.Nonce || second.Subject != claim.Subject {
		t.Errorf("the next token of the same machine: %+v, %v", second, err)
	}
	ecKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	m.add(providerKey{"second", jose.ES256, ecKey, ecKey.Public()})
	w.sleep(jwt.MinInterval)
	if _, err = w.identify(t, requestToken(t, server)); err != nil {
		mustBeTemporary(t, "the first token with a new key", err)
	}
	w.AwaitFetch(server.URL)
	for _, token := range []string{requestToken(t, server), other} {
		if _, err := w.identify(t, token); err != nil {
			t.Errorf("with two keys: %v", err)
		}
	}
	end := strings.LastIndexByte(other, '.')
	_, err = w.identify(t, other[:end-1]+"A"+other[end:])
	if _, refused := pki.AsRefusal(err); !refused {
		t.Errorf("a token that was changed: %v", err)
	}
}

// requestToken requests an access token with the client credentials of a machine.
func requestToken(t *testing.T, server *httptest.Server) string {
	t.Helper()
	form := strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode())
	req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/oauth/token", form))(t)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("sid1", "verysecret")
	resp := must(server.Client().Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Token string `json:"access_token"`
	}
	check(t, json.NewDecoder(resp.Body).Decode(&answer))
	if resp.StatusCode != http.StatusOK || answer.Token == "" {
		t.Fatalf("the provider answers with the status %d", resp.StatusCode)
	}
	return answer.Token
}
