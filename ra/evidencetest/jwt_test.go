package evidencetest_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/evidencetest"
	"github.com/brevet-pki/brevet/ra/jwt"
)

// jwtSample is a pod with the token of its service account.
func jwtSample(t testing.TB) evidencetest.Sample {
	public, private, err := ed25519.GenerateKey(nil)
	keys := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "key"}}}))(t)
	a := must(jwt.New([]jwt.Source{{
		Name: "cluster", Issuer: "https://kubernetes.default.svc", Audience: "brevet", Algorithms: []string{"EdDSA"},
		Keys: jwt.Keys{Static: keys}, Kubernetes: &jwt.Kubernetes{},
	}}, func() time.Time { return now }, slog.New(slog.DiscardHandler)))(t)
	t.Cleanup(a.Close)
	expires := now.Add(time.Hour)
	claims := must(json.Marshal(map[string]any{
		"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:prod:web", "aud": []string{"brevet"},
		"iat": now.Unix(), "exp": expires.Unix(), "jti": "9c5f35ae", "kubernetes.io": map[string]any{
			"namespace": "prod", "serviceaccount": map[string]any{"name": "web"},
			"pod": map[string]any{"name": "web-0", "uid": "c0a8"}, "node": map[string]any{"name": "node-7"},
		},
	}))(t)
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"EdDSA","kid":"key"}`)) + "." + encode(claims)
	token := signed + "." + encode(ed25519.Sign(private, []byte(signed)))
	return evidencetest.Sample{
		Kind: pki.EvidenceJWT, Authenticator: a, At: now, Expired: expires.Add(time.Minute),
		Key: pki.HashSPKI([]byte("key")), Bearer: true,
		Make: func(testing.TB, evidencetest.Request) []byte { return must([]byte(token), err)(t) },
	}
}
