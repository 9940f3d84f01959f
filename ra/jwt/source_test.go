package jwt_test

import (
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

// secondOf returns a valid source, and a second one with a change.
func secondOf(t *testing.T, change func(*jwt.Source)) []jwt.Source {
	t.Helper()
	valid := sourceOf(t, newSigner(t, "key-1"))
	other := valid
	other.Name, other.Issuer = "second", "https://second.example"
	change(&other)
	return []jwt.Source{valid, other}
}

func mustNotCompile(t *testing.T, what string, sources []jwt.Source, want string) {
	t.Helper()
	a, err := jwt.New(sources, time.Now, nil)
	if err == nil {
		a.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want an error about %q", what, err, want)
	}
}

func TestSourcesThatAreRefused(t *testing.T) {
	keys := func(text string) func(*jwt.Source) { return func(s *jwt.Source) { s.Keys.Static = []byte(text) } }
	discovers := func(issuer string) func(*jwt.Source) {
		return func(s *jwt.Source) { s.Issuer, s.Keys = issuer, jwt.Keys{Discovery: true} }
	}
	for what, c := range map[string]struct {
		change func(*jwt.Source)
		want   string
	}{
		"name":               {func(s *jwt.Source) { s.Name = "A b" }, "name of a source"},
		"name twice":         {func(s *jwt.Source) { s.Name = "ci" }, "each needs its own"},
		"issuer twice":       {func(s *jwt.Source) { s.Issuer = issuerURL }, "each needs its own"},
		"no issuer":          {func(s *jwt.Source) { s.Issuer = "" }, "needs an issuer"},
		"no audience":        {func(s *jwt.Source) { s.Audience = "" }, "needs an audience"},
		"no algorithm":       {func(s *jwt.Source) { s.Algorithms = nil }, "such as RS256"},
		"none":               {func(s *jwt.Source) { s.Algorithms = []string{"none"} }, `"none": use RS256`},
		"HMAC":               {func(s *jwt.Source) { s.Algorithms = []string{"HS256"} }, `"HS256": use RS256`},
		"no keys":            {func(s *jwt.Source) { s.Keys = jwt.Keys{} }, "has no keys"},
		"keys in two places": {func(s *jwt.Source) { s.Keys.Discovery = true }, "several places"},
		"malformed keys":     {keys("{}"), "no list of keys"},
		"a secret key":       {keys(`{"keys":[{"kty":"oct","k":"AAAA"}]}`), "none of the 1 keys"},
		"too many keys":      {keys(`{"keys":[` + strings.Repeat("1,", jwt.MaxKeys) + `1]}`), "has 101 keys"},
		"HTTP":               {discovers("http://second.example"), "does not use HTTPS"},
		"HTTP by name":       {discovers("http://localhost"), "does not use HTTPS"},
		"a file":             {discovers("file:///etc/passwd"), "is not a URL of a server"},
		"a password":         {discovers("https://a:b@second.example"), "is not a URL of a server"},
		"a query":            {discovers("https://second.example/?a"), "has a query"},
		"no cluster":         {func(s *jwt.Source) { s.Keys = jwt.Keys{Cluster: true} }, "describe the cluster"},
		"no server":          {func(s *jwt.Source) { s.Kubernetes = &jwt.Kubernetes{Review: true} }, "the API server"},
		"a negative time":    {func(s *jwt.Source) { s.MaxLifetime = -1 }, "negative"},
	} {
		mustNotCompile(t, what, secondOf(t, c.change), c.want)
	}
	mustNotCompile(t, "no source", nil, "no source")
}

func TestFactsThatAreRefused(t *testing.T) {
	facts := func(all ...jwt.ClaimFact) []jwt.Source { return secondOf(t, func(s *jwt.Source) { s.Claims = all }) }
	for what, c := range map[string]struct {
		name, pointer string
		is            ra.FactType
		want          string
	}{
		"a capital letter":         {"jwt.Repository", "/r", ra.FactString, "cannot be the name"},
		"a standard fact":          {"jwt.subject", "/r", ra.FactString, "cannot be the name"},
		"a word of CEL":            {"jwt.in", "/r", ra.FactString, "cannot be the name"},
		"the facts of Kubernetes":  {"jwt.kubernetes", "/r", ra.FactString, "cannot be the name"},
		"a fact of another kind":   {"tpm.ek", "/r", ra.FactString, "cannot be the name"},
		"a type that claims lack":  {"jwt.r", "/r", ra.FactTime, "has the type"},
		"a pointer without slash":  {"jwt.r", "r", ra.FactString, "JSON pointer"},
		"a pointer's wrong escape": {"jwt.r", "/~2", ra.FactString, "write ~0 for ~"},
	} {
		mustNotCompile(t, what, facts(jwt.ClaimFact{Fact: c.name, Pointer: c.pointer, Type: c.is}), c.want)
	}
	f := jwt.ClaimFact{Fact: "jwt.r", Pointer: "/r", Type: ra.FactString}
	mustNotCompile(t, "a fact twice", facts(f, f), "two claims for the fact")
	mustNotCompile(t, "too many facts", facts(make([]jwt.ClaimFact, 65)...), "65 claims")
	two := facts(f)
	two[0].Claims = []jwt.ClaimFact{{Fact: "jwt.r", Pointer: "/r", Type: ra.FactInt}}
	mustNotCompile(t, "a fact with two types", two, "another type")
}

// TestNoSources checks the zero value, which declares facts for policies without sources.
func TestNoSources(t *testing.T) {
	none := &jwt.Authenticator{}
	token := newSigner(t, "key-1").token(t, standard())
	_, err := none.Identify(t.Context(), ra.Presented{Evidence: []byte(token), At: now})
	mustRefuse(t, "no sources", err, pki.RuleEvidenceUntrusted)
	if len(none.Facts()) != 6 || len(none.Unique()) != 1 {
		t.Errorf("without sources, the facts are %v, and %v are unique", none.Facts(), none.Unique())
	}
}
