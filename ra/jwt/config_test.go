package jwt_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/policy"
)

// configured decodes the sources of a policy, and makes their authenticator.
func configured(t *testing.T, document string) (*jwt.Authenticator, error) {
	t.Helper()
	var content struct {
		JWT   map[string]jwt.Config `yaml:"jwt"`
		Rules yaml.Node             `yaml:"rules"`
	}
	d := yaml.NewDecoder(strings.NewReader(document))
	d.KnownFields(true)
	check(t, d.Decode(&content))
	var sources []jwt.Source
	for name, c := range content.JWT {
		s, err := c.Source(name, func(host string) string { return "/run/credentials/" + host })
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	return jwt.New(sources, time.Now, nil)
}

// accepted is a policy.Section that was checked before.
type accepted struct{}

func (accepted) Check(*yaml.Node) error { return nil }

// TestDocumentedPolicies compiles the examples of the documentation.
func TestDocumentedPolicies(t *testing.T) {
	page := string(must(os.ReadFile("../../docs/evidence-jwt.md"))(t))
	examples := regexp.MustCompile("(?s)\n```yaml policy\n(.*?)```\n").FindAllStringSubmatch(page, -1)
	if len(examples) != 3 {
		t.Fatalf("the page has %d examples of policies, want 3", len(examples))
	}
	for _, example := range examples {
		a, err := configured(t, example[1])
		if err != nil {
			t.Errorf("%v in\n%s", err, example[1])
			continue
		}
		if _, err := policy.Compile([]byte(example[1]), 1, policy.Environment{
			TrustDomain: "fleet.example", PublicURL: publicURL,
			Kinds: []policy.Kind{policy.KindOf(pki.EvidenceJWT, a, accepted{})},
		}); err != nil {
			t.Errorf("%v in\n%s", err, example[1])
		}
	}
}

func TestConfig(t *testing.T) {
	s := newSigner(t, "key-1")
	var roots bytes.Buffer
	check(t, pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: newProvider(t, s).Certificate().Raw}))
	config := jwt.Config{Issuer: issuerURL, Audience: audience, Algorithms: []string{"ES256"}, JWKS: string(jwks(t, s)),
		Roots: roots.String(), MaxLifetime: time.Hour}
	check(t, yaml.Unmarshal([]byte(`{
		claims: [{fact: jwt.n, pointer: /n, type: int}, {fact: jwt.l, pointer: /l, type: strings}],
		kubernetes: {server: "https://k.example"},
	}`), &config))
	source := must(config.Source("ci", func(host string) string { return "/of/" + host }))(t)
	if source.Name != "ci" || source.Roots == nil || source.MaxLifetime != time.Hour ||
		source.Kubernetes.Credential != "/of/k.example:443" ||
		source.Claims[0].Type != ra.FactInt || source.Claims[1].Type != ra.FactStrings {
		t.Errorf("the source is %+v", source)
	}
	source.Kubernetes = nil
	if _, err := newWorld(t, source).identify(t, s.token(t, standard())); err != nil {
		t.Error(err)
	}
	for server, host := range map[string]string{
		"https://K.example:6443/k8s/c-1": "k.example:6443", "https://10.20.0.1": "10.20.0.1:443", "http://127.0.0.1": "127.0.0.1:80",
		"https://[2001:DB8:0::1]:6443": "[2001:db8::1]:6443",
		"https://:6443":                "", "https://../x": "", "https://..:1": "", "https://[fe80::1%25..]:1": "", "http://k.example": "", "k.example": "",
		"https://a@k.example": "", "https://k.example?a": "", "https://k_.example": "",
	} {
		config.Kubernetes.Server = server
		s, err := config.Source("ci", func(host string) string { return host })
		if (err == nil) != (host != "") || err == nil && s.Kubernetes.Credential != host {
			t.Errorf("%s has the credential of %v, %v, want that of %q", server, s.Kubernetes, err, host)
		}
	}
	config.Roots = "none"
	if _, err := config.Source("ci", nil); err == nil || !strings.Contains(err.Error(), "roots") {
		t.Errorf("roots that are not PEM: %v", err)
	}
	for _, document := range []string{
		"jwt: {a: {issuer: i, audience: b, algorithms: [RS256], claims: [{fact: jwt.x, pointer: /x, type: time}]}}",
		"jwt: {a: {issuer: i, audience: b, algorithms: [RS256], jwks: '{}', discovery: true}}",
	} {
		if _, err := configured(t, document); err == nil {
			t.Errorf("%s is accepted", document)
		}
	}
}
