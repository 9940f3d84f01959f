package jwt_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

const (
	keysPath   = "/openid/v1/jwks"
	reviewPath = "/apis/authentication.k8s.io/v1/tokenreviews"
)

// apiServer is an HTTPS server with two resources of a Kubernetes API server: the keys of service-account tokens, and
// TokenReviews. It knows the tokens of running pods, and requires a credential.
type apiServer struct {
	*provider
	credential string // path of the file with the credential
	mu         sync.Mutex
	password   string
	running    map[string]string // the TokenReview's status for each token
	reviews    int
}

func newAPIServer(t *testing.T, s signer) *apiServer {
	t.Helper()
	k := &apiServer{provider: newProvider(t, s), credential: filepath.Join(t.TempDir(), "token"),
		running: map[string]string{}}
	k.rotate(t, "first")
	keys := jwks(t, s)
	k.handle(keysPath, func(w http.ResponseWriter, r *http.Request) {
		if k.allowed(w, r) {
			_, _ = w.Write(keys)
		}
	})
	k.handle(reviewPath, k.review)
	return k
}

// rotate replaces the credential of the server, and its file.
func (k *apiServer) rotate(t *testing.T, password string) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.password = password
	check(t, os.WriteFile(k.credential, []byte(password+"\n"), 0o600))
}

func (k *apiServer) allowed(w http.ResponseWriter, r *http.Request) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Header.Get("Authorization") == "Bearer "+k.password {
		return true
	}
	http.Error(w, `{"kind":"Status","code":401}`, http.StatusUnauthorized)
	return false
}

func (k *apiServer) review(w http.ResponseWriter, r *http.Request) {
	if !k.allowed(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	var request struct {
		APIVersion, Kind string
		Spec             struct {
			Token     string
			Audiences []string
		}
	}
	if err != nil || json.Unmarshal(body,
		&request) != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" ||
		request.APIVersion != "authentication.k8s.io/v1" || request.Kind != "TokenReview" ||
		len(request.Spec.Audiences) != 1 {
		http.Error(w, string(body), http.StatusBadRequest)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reviews++
	status, ok := k.running[request.Spec.Token]
	if !ok {
		status = `{"user":{},"error":"[invalid bearer token, service account token has been invalidated]"}`
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w,
		`{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","metadata":{"creationTimestamp":null},`+
			`"spec":{"token":`+encodedText(request.Spec.Token)+`,"audiences":["`+request.Spec.Audiences[0]+`"]},`+
			`"status":`+status+`}`)
}

func encodedText(s string) string {
	b, _ := json.Marshal(s) // a string always has an encoding
	return string(b)
}

func (k *apiServer) runs(token, status string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running[token] = status
}

func (k *apiServer) stops(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.running, token)
}

func (k *apiServer) source(review, verify bool) jwt.Source {
	s := k.provider.source()
	s.Name, s.Issuer, s.Keys.Discovery, s.Keys.Cluster = "cluster", "https://kubernetes.default.svc", false, verify
	s.Kubernetes = &jwt.Kubernetes{Server: k.URL, Credential: k.credential, Review: review}
	return s
}

// podClaims returns the claims of a projected service-account token.
func podClaims() set {
	return set{
		"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:prod:web", "aud": []string{audience},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Unix() + 3607, "jti": "9c5f35ae-5b1b-4bd4-b0ee-5a3b5f4c8c70",
		"kubernetes.io": set{
			"namespace": "prod", "serviceaccount": set{"name": "web", "uid": "2f1c"}, "warnafter": now.Unix() + 3607,
			"pod": set{"name": "web-0", "uid": "c0a8"}, "node": set{"name": "node-7", "uid": "77aa"},
		},
	}
}

// podStatus is the status with which an API server accepts the token of podClaims.
const podStatus = `{"authenticated":true,"user":{"username":"system:serviceaccount:prod:web","uid":"2f1c",` +
	`"groups":["system:serviceaccounts","system:serviceaccounts:prod","system:authenticated"],"extra":{` +
	`"authentication.kubernetes.io/credential-id":["JTI=9c5f35ae-5b1b-4bd4-b0ee-5a3b5f4c8c70"],` +
	`"authentication.kubernetes.io/node-name":["node-7"],"authentication.kubernetes.io/node-uid":["77aa"],` +
	`"authentication.kubernetes.io/pod-name":["web-0"],"authentication.kubernetes.io/pod-uid":["c0a8"]}},` +
	`"audiences":["` + audience + `"]}`

// TestServiceAccountTokens checks tokens with and without the help of the cluster. Both ways give the same facts.
func TestServiceAccountTokens(t *testing.T) {
	s := newSigner(t, "cluster-key")
	k := newAPIServer(t, s)
	static := k.source(false, false)
	static.Kubernetes = &jwt.Kubernetes{}
	static.Keys.Static = jwks(t, s)
	token := s.token(t, podClaims())
	k.runs(token, podStatus)
	for what, source := range map[string]jwt.Source{
		"static keys": static, "keys of the cluster": k.source(false, true),
		"a review": k.source(true, false), "keys of the cluster and a review": k.source(true, true),
	} {
		w := newWorld(t, source)
		claim, err := w.identify(t, token)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for name, want := range map[string]string{
			"namespace": "prod", "service_account": "web", "pod": "web-0", "pod_uid": "c0a8", "node": "node-7",
		} {
			if got := claim.Facts["jwt.kubernetes."+name]; got != want {
				t.Errorf("%s: %s is %v, want %s", what, name, got, want)
			}
		}
		if claim.Subject != jwt.SubjectOf(source.Issuer, "system:serviceaccount:prod:web") || claim.Nonce.IsZero() {
			t.Errorf("%s: the claim is %+v", what, claim)
		}
		if _, ok := w.Facts()["jwt.kubernetes.node"]; !ok || len(w.Unique()) != 2 {
			t.Errorf("%s: the facts are declared as %v, %v are unique", what, w.Facts(), w.Unique())
		}
	}
	if k.reviews != 2 {
		t.Errorf("there were %d reviews, want 2", k.reviews)
	}
}

// TestTokenIsNotBoundToPod checks a token that was requested for a service account alone.
func TestTokenIsNotBoundToPod(t *testing.T) {
	s := newSigner(t, "cluster-key")
	source := sourceOf(t, s)
	source.Issuer, source.Kubernetes = "https://kubernetes.default.svc", &jwt.Kubernetes{}
	claims := podClaims().with(set{"kubernetes.io": set{"namespace": "prod", "serviceaccount": set{"name": "web"}}})
	claim, err := newWorld(t, source).identify(t, s.token(t, claims))
	check(t, err)
	if _, ok := claim.Facts["jwt.kubernetes.pod"]; ok || claim.Facts["jwt.kubernetes.namespace"] != "prod" {
		t.Errorf("the facts are %v", claim.Facts)
	}
}

// TestTokenOfDeletedPod shows the difference that a review makes.
func TestTokenOfDeletedPod(t *testing.T) {
	s := newSigner(t, "cluster-key")
	k := newAPIServer(t, s)
	offline, reviewed := newWorld(t, k.source(false, true)), newWorld(t, k.source(true, true))
	token := s.token(t, podClaims())
	k.runs(token, podStatus)
	if _, err := reviewed.identify(t, token); err != nil {
		t.Fatal(err)
	}
	k.stops(token)
	if _, err := offline.identify(t, token); err != nil {
		t.Errorf("without a review: %v", err)
	}
	claim, err := reviewed.identify(t, token)
	mustRefuse(t, "with a review", err, pki.RuleEvidenceRevoked)
	if claim.Actor.String() == "unknown" {
		t.Error("the refusal of a token with a valid signature is attributed to nobody")
	}
}

// TestReviewedTokensThatAreRefused changes what the cluster answers, and what the token says.
func TestReviewedTokensThatAreRefused(t *testing.T) {
	s := newSigner(t, "cluster-key")
	k := newAPIServer(t, s)
	w := newWorld(t, k.source(true, false))
	user := `"user":{"username":"system:serviceaccount:prod:web"}`
	ours := `"audiences":["` + audience + `"]`
	for _, c := range []struct {
		what   string
		claims set
		status string
		want   pki.Rule
	}{
		{"no", podClaims(), `{` + user + `,` + ours + `}`, pki.RuleEvidenceRevoked},
		{"no audience, as servers without audiences do", podClaims(), `{"authenticated":true,` + user + `}`,
			pki.RuleEvidenceAudience},
		{"another audience", podClaims(),
			`{"authenticated":true,` + user + `,"audiences":["https://kubernetes.default.svc"]}`, pki.RuleEvidenceAudience},
		{"a person", podClaims(), `{"authenticated":true,"user":{"username":"alice"},` + ours + `}`,
			pki.RuleEvidenceUntrusted},
		{"another account", podClaims(),
			`{"authenticated":true,"user":{"username":"system:serviceaccount:prod:db"},` + ours + `}`,
			pki.RuleEvidenceUntrusted},
		{"no name", podClaims(), `{"authenticated":true,"user":{"username":"system:serviceaccount:prod:"},` + ours + `}`,
			pki.RuleEvidenceUntrusted},
		{"no user", podClaims(), `{"authenticated":true,` + ours + `}`, pki.RuleEvidenceUntrusted},
		{"an expired token", podClaims().with(set{"exp": now.Unix() - 60, "iat": now.Unix() - 3600}), podStatus,
			pki.RuleEvidenceExpired},
		{"a token for another audience", podClaims().with(set{"aud": "https://kubernetes.default.svc"}), podStatus,
			pki.RuleEvidenceAudience},
	} {
		token := s.token(t, c.claims)
		k.runs(token, c.status)
		claim, err := w.identify(t, token)
		mustRefuse(t, c.what, err, c.want)
		if claim.Actor != (pki.Actor{}) {
			t.Errorf("%s: a token that was not verified is attributed to %s", c.what, claim.Actor)
		}
	}
	for what, change := range map[string]set{
		"another subject":     {"sub": "system:serviceaccount:prod:db"},
		"a subject of a user": {"sub": "alice"},
		"no names":            {"kubernetes.io": nil},
		"a list of names":     {"kubernetes.io": set{"namespace": []string{"prod"}, "serviceaccount": set{"name": "web"}}},
		"a colon in a name": {"sub": "system:serviceaccount:prod:a:web", "kubernetes.io": set{"namespace": "prod:a",
			"serviceaccount": set{"name": "web"}}},
	} {
		_, err := newWorld(t, k.source(false, true)).identify(t, s.token(t, podClaims().with(change)))
		mustRefuse(t, what, err, pki.RuleEvidenceMalformed)
	}
}

// TestJunkIsNotRelayed sends tokens that were made up to a source without keys, as every caller can.
func TestJunkIsNotRelayed(t *testing.T) {
	s := newSigner(t, "cluster-key")
	k := newAPIServer(t, s)
	w := newWorld(t, k.source(true, false))
	from := func(address, token string) error {
		_, err := w.Identify(t.Context(), ra.Presented{Evidence: []byte(token), At: w.clock(), From: netip.MustParseAddr(address)})
		return err
	}
	reviews := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.reviews
	}
	good := s.token(t, podClaims())
	k.runs(good, podStatus)
	junk := func(n int) string { return s.token(t, podClaims().with(set{"jti": fmt.Sprint(n)})) }
	for what, change := range map[string]set{
		"another audience": {"aud": "other"}, "an expired token": {"exp": now.Unix() - 100, "iat": now.Unix() - 200},
		"no service account": {"sub": "alice"}, "no names": {"kubernetes.io": nil}, "another name": {"sub": "system:serviceaccount:prod:db"},
		"another issuer": {"iss": "https://other.example"},
	} {
		if err := from("192.0.2.1", s.token(t, podClaims().with(change))); err == nil || reviews() != 0 {
			t.Errorf("%s: %v, and %d reviews", what, err, reviews())
		}
	}
	same := junk(0)
	for range 20 {
		mustRefuse(t, "one token again and again", from("192.0.2.1", same), pki.RuleEvidenceRevoked)
	}
	if reviews() != 1 {
		t.Errorf("a refused token was reviewed %d times", reviews())
	}
	for n := range 100 {
		if err := from("192.0.2.1", junk(n)); n >= 9 {
			mustBeTemporary(t, "many tokens from one address", err)
		}
	}
	if reviews() != 10 {
		t.Errorf("110 refused tokens from one address were reviewed %d times, want 10", reviews())
	}
	if err := from("192.0.2.2", good); err != nil {
		t.Errorf("a token from another address: %v", err)
	}
	w.sleep(6 * time.Second)
	if err := from("192.0.2.1", good); err != nil {
		t.Errorf("after some time: %v", err)
	}
	before := reviews()
	for n := range 400 {
		_ = from(fmt.Sprintf("198.51.%d.%d", n/256, n%256), junk(1000+n))
	}
	if n := reviews() - before; n > 200 {
		t.Errorf("400 tokens from as many addresses were reviewed %d times at once", n)
	}
}

// TestClusterFails checks that failures of the API server are temporary, and that errors contain no secret.
func TestClusterFails(t *testing.T) {
	s := newSigner(t, "cluster-key")
	k := newAPIServer(t, s)
	w := newWorld(t, k.source(true, true))
	token := s.token(t, podClaims())
	k.runs(token, podStatus)
	if _, err := w.identify(t, token); err != nil {
		t.Fatal(err)
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, token, code) }
	}
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	for what, handler := range map[string]http.HandlerFunc{
		"no access": status(http.StatusForbidden), "an error": status(http.StatusInternalServerError),
		"too many requests": status(http.StatusTooManyRequests),
		"not JSON":          text("<html>"), "another object": text(`{"kind":"Status","status":{"authenticated":true}}`),
		"an endless response": text(strings.Repeat(" ", 2<<20)),
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, reviewPath+"/x", http.StatusTemporaryRedirect)
		},
		"a status": text(`{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":"no"}`),
	} {
		k.handle(reviewPath, handler)
		_, err := w.identify(t, token)
		mustBeTemporary(t, what, err)
		if err != nil && (strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "first")) {
			t.Errorf("%s: the error contains a secret: %v", what, err)
		}
	}
	k.handle(reviewPath, k.review)
	k.mu.Lock()
	k.password = "second"
	k.mu.Unlock()
	_, err := w.identify(t, token)
	mustBeTemporary(t, "an old credential", err)
	k.rotate(t, "third")
	if _, err := w.identify(t, token); err != nil {
		t.Errorf("after the credential was replaced: %v", err)
	}
	for what, content := range map[string]string{
		"an empty credential": "\n", "a credential of two lines": "third\nX-Header: 1",
		"a large credential": strings.Repeat("x", jwt.MaxCredential+1),
	} {
		check(t, os.WriteFile(k.credential, []byte(content), 0o600))
		_, err := w.identify(t, token)
		mustBeTemporary(t, what, err)
	}
	check(t, os.Remove(k.credential))
	_, err = w.identify(t, token)
	mustBeTemporary(t, "no credential", err)
	if err != nil && !strings.Contains(err.Error(), "check the credential in "+k.credential) {
		t.Errorf("the error does not name the file of the credential: %v", err)
	}
}

// TestPublicKeysOfCluster checks a cluster that publishes its keys without authentication.
func TestPublicKeysOfCluster(t *testing.T) {
	s := newSigner(t, "cluster-key")
	k := newAPIServer(t, s)
	k.serves(keysPath, string(jwks(t, s)))
	check(t, os.Remove(k.credential))
	if _, err := newWorld(t, k.source(false, true)).identify(t, s.token(t, podClaims())); err != nil {
		t.Error(err)
	}
}
