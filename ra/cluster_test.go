package ra_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

const clusterIssuer = "https://kubernetes.default.svc"

// clusterPolicy gives each service account of one namespace an identity.
const clusterPolicy = `
jwt:
  berlin: {issuer: %q, audience: %q, algorithms: [EdDSA], jwks: %q, kubernetes: {}}
rules:
  - name: pods
    evidence: [jwt]
    when: jwt.source == "berlin" && jwt.kubernetes.namespace == "prod"
    identity: workload/{jwt.kubernetes.namespace}/{jwt.kubernetes.service_account}
    register: true
    kind: workload
    replace: true
  - name: tokens
    evidence: [token]
`

// cluster makes the tokens of service accounts.
type cluster struct {
	*servertest.World
	key    ed25519.PrivateKey
	tokens int
}

// newCluster starts a server that enrolls the pods of a cluster.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := servertest.Must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "key"}}}))(t)
	policy := fmt.Appendf(nil, clusterPolicy, clusterIssuer, servertest.TrustDomain, keys)
	return &cluster{World: servertest.New(t, ground, servertest.Options{Policy: policy}), key: private}
}

// token returns a new token of a service account.
func (c *cluster) token(t *testing.T, namespace, account, audience string) string {
	t.Helper()
	c.tokens++
	now := c.Clock.Now()
	claims := servertest.Must(json.Marshal(map[string]any{
		"iss": clusterIssuer, "sub": "system:serviceaccount:" + namespace + ":" + account, "aud": audience,
		"jti": strconv.Itoa(c.tokens), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account}},
	}))(t)
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"EdDSA","kid":"key"}`)) + "." + encode(claims)
	return signed + "." + encode(ed25519.Sign(c.key, []byte(signed)))
}

// jwtRequest returns a new request with a token.
func (c *cluster) jwtRequest(t *testing.T, token string) enroll.EnrollRequest {
	t.Helper()
	return factoryRequest(t, c.World, servertest.CSR(t, servertest.Key(t)), servertest.Must(enroll.ParseJWT([]byte(token)))(t))
}

func TestPodEnrollsWithServiceAccountToken(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := servertest.Must(enroll.NewClient(""))(t)
	token := c.token(t, "prod", "web", servertest.TrustDomain)
	request := c.jwtRequest(t, token)
	credential := servertest.Must(client.Enroll(t.Context(), request))(t)
	const id = "spiffe://" + servertest.TrustDomain + "/workload/prod/web"
	if got := credential.Certificate.URIs[0].String(); got != id {
		t.Errorf("the certificate names %s, want %s", got, id)
	}
	again := servertest.Must(client.Enroll(t.Context(), request))(t)
	if !bytes.Equal(again.Certificate.Raw, credential.Certificate.Raw) {
		t.Error("the repeated request returned another certificate")
	}
	subject := jwt.SubjectOf(clusterIssuer, "system:serviceaccount:prod:web")
	entries := servertest.Find(c.Entries(t, 0), translog.CertificateIssued, id)
	if want := "jwt:" + hex.EncodeToString(subject.Hash[:8]); len(entries) != 1 || entries[0].Actor.String() != want {
		t.Errorf("the log has %+v, want one certificate that was issued to %s", entries, want)
	}
	// A new pod of the same service account has a token of its own.
	next := c.jwtRequest(t, c.token(t, "prod", "web", servertest.TrustDomain))
	replacement := servertest.Must(client.Enroll(t.Context(), next))(t)
	c.Status(t, credential.Certificate, "superseded")
	c.Status(t, replacement.Certificate, "good")
	log := c.Log.String()
	if servertest.Leaks([]byte(log), []byte(token)) || strings.Contains(log, "serviceaccount:prod:web") {
		t.Error("the server's log contains a token, or its subject")
	}
}

func TestServiceAccountTokensAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := servertest.Must(enroll.NewClient(""))(t)
	used := c.token(t, "prod", "web", servertest.TrustDomain)
	servertest.Must(client.Enroll(t.Context(), c.jwtRequest(t, used)))(t)
	identities, certificates := rows(t, c.World, "identities"), rows(t, c.World, "certificates")
	for what, r := range map[string]struct {
		token string
		want  pki.Rule
	}{
		"for another service":  {c.token(t, "prod", "db", "other.example"), pki.RuleEvidenceAudience},
		"of another namespace": {c.token(t, "test", "web", servertest.TrustDomain), pki.RulePolicy},
	} {
		_, err := client.Enroll(t.Context(), c.jwtRequest(t, r.token))
		if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != r.want {
			t.Errorf("a token %s: %v, want %s", what, err, r.want)
		}
	}
	if identities != rows(t, c.World, "identities") || certificates != rows(t, c.World, "certificates") {
		t.Error("a refused token left an identity or a certificate")
	}
	_, err := client.Enroll(t.Context(), c.jwtRequest(t, used))
	if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != pki.RuleChallengeUsed {
		t.Errorf("a token that was used: %v, want %s", err, pki.RuleChallengeUsed)
	}
}
