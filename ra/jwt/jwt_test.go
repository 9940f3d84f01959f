package jwt_test

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

func TestAcceptedTokens(t *testing.T) {
	s := newSigner(t, "key-1")
	w := newWorld(t, sourceOf(t, s))
	base := standard()
	for what, claims := range map[string]set{
		"a minimal token":   {"iss": issuerURL, "sub": "x", "aud": audience, "exp": now.Add(time.Hour).Unix()},
		"several audiences": base.with(set{"aud": []string{"other.example", audience}}),
		"a clock that is ahead": base.with(set{"nbf": now.Add(time.Minute).Unix(),
			"iat": now.Add(time.Minute).Unix()}),
		"a clock that is behind": base.with(set{"exp": now.Add(-59 * time.Second).Unix(),
			"iat": now.Add(-time.Hour).Unix()}),
		"the longest lifetime":   base.with(set{"exp": now.Add(24 * time.Hour).Unix()}),
		"a time with a fraction": base.with(set{"exp": json.Number("1793538000.5")}),
		"unknown claims": base.with(set{"nested": set{"list": []any{1, "x", nil, true}},
			"ISS": "https://other.example"}),
		"a subject with other characters": base.with(set{"sub": "ü/\u0000\U0001f600"}),
	} {
		claim, err := w.identify(t, s.token(t, claims))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if sub := claims["sub"].(string); claim.Facts["jwt.subject"] != sub || claim.Subject != jwt.SubjectOf(issuerURL,
			sub) {
			t.Errorf("%s: the claim is %+v", what, claim)
		}
	}
	for what, header := range map[string]set{
		"without a type": s.header().with(set{"typ": nil}), "without a key ID": s.header().with(set{"kid": nil}),
		"an access token": s.header().with(set{"typ": "application/at+jwt"}), "with an unknown header": s.header().with(set{"x5t": "abc"}),
	} {
		if _, err := w.identify(t, s.sign(t, header, encoded(t, base))); err != nil {
			t.Errorf("a token %s: %v", what, err)
		}
	}
}

// TestClaim checks all that a claim contains.
func TestClaim(t *testing.T) {
	s := newSigner(t, "key-1")
	source := sourceOf(t, s)
	source.Claims = []jwt.ClaimFact{
		{Fact: "jwt.repository", Pointer: "/repository", Type: ra.FactString},
		{Fact: "jwt.protected", Pointer: "/ref/protected", Type: ra.FactBool},
		{Fact: "jwt.run", Pointer: "/a~1b~0c/1", Type: ra.FactInt},
		{Fact: "jwt.groups", Pointer: "/groups", Type: ra.FactStrings},
		{Fact: "jwt.environment", Pointer: "/environment", Type: ra.FactString},
		{Fact: "jwt.absent", Pointer: "/repository/deeper", Type: ra.FactString},
	}
	w := newWorld(t, source)
	token := s.token(t, standard().with(set{
		"repository": "octo-org/gateway", "ref": set{"protected": true}, "a/b~c": []any{"x", 12}, "groups": []string{"a",
			"b"},
		"environment": json.RawMessage("null"), "jti": "17",
	}))
	claim, err := w.identify(t, token)
	check(t, err)
	subject := jwt.SubjectOf(issuerURL, "repo:octo-org/gateway")
	signed := sha256.Sum256([]byte(token[:strings.LastIndexByte(token, '.')]))
	want := ra.Claim{
		Subject: subject, Digest: sha256.Sum256([]byte(token)), Actor: pki.ActorEvidence(pki.EvidenceJWT,
			hex.EncodeToString(subject.Hash[:8])),
		Nonce: pki.Nonce{ID: [16]byte(signed[:16]), ExpiresAt: now.Add(time.Hour + jwt.ClockSkew)},
		Facts: map[string]any{
			"jwt.source": "ci", "jwt.issuer": issuerURL, "jwt.subject": "repo:octo-org/gateway", "jwt.audience": []string{audience},
			"jwt.expires_at": now.Add(time.Hour), "jwt.issued_at": now,
			"jwt.repository": "octo-org/gateway", "jwt.protected": true, "jwt.run": int64(12), "jwt.groups": []string{"a", "b"},
		},
	}
	if !reflect.DeepEqual(claim, want) {
		t.Errorf("the claim is\n%+v, want\n%+v", claim, want)
	}
	if text := claim.Actor.String(); len(text) != len("jwt:")+16 {
		t.Errorf("the actor is %s", text)
	}
	if got := w.Facts(); len(got) != 12 || got["jwt.protected"] != ra.FactBool || got["jwt.expires_at"] != ra.FactTime {
		t.Errorf("the facts are declared as %v", got)
	}
	for what, other := range map[string]set{
		"a number as text": {"repository": 7}, "a text as bool": {"ref": set{"protected": "true"}}, "a fraction": {"a/b~c": []any{0, 1.5}},
		"a text as list": {"groups": "a"}, "a number in a list of texts": {"groups": []any{"a",
			1}}, "a number over 64 bits": {"a/b~c": []any{0, json.Number("9223372036854775808")}},
	} {
		_, err := w.identify(t, s.token(t, standard().with(other)))
		mustRefuse(t, what, err, pki.RuleEvidenceMalformed)
	}
}

// TestNonceIsOfTheToken checks that an ECDSA signature that was changed to its other form gives the same nonce, and that
// tokens without an ID have none.
func TestNonceIsOfTheToken(t *testing.T) {
	s := newSigner(t, "key-1")
	w := newWorld(t, sourceOf(t, s))
	token := s.token(t, standard().with(set{"jti": "one"}))
	first, err := w.identify(t, token)
	check(t, err)
	end := strings.LastIndexByte(token, '.') + 1
	signature := must(base64.RawURLEncoding.DecodeString(token[end:]))(t)
	other := new(big.Int).Sub(s.key.(*ecdsa.PrivateKey).Params().N, new(big.Int).SetBytes(signature[32:]))
	changed, err := w.identify(t, token[:end]+base64url(rawSignature(new(big.Int).SetBytes(signature[:32]), other)))
	if err != nil || changed.Nonce != first.Nonce || first.Nonce.IsZero() {
		t.Errorf("the nonces are %+v and %+v, %v", first.Nonce, changed.Nonce, err)
	}
	second, err := w.identify(t, s.token(t, standard().with(set{"jti": "two"})))
	if err != nil || second.Nonce.ID == first.Nonce.ID {
		t.Errorf("another token has the nonce %+v, %v", second.Nonce, err)
	}
	if without, err := w.identify(t, s.token(t, standard())); err != nil || !without.Nonce.IsZero() {
		t.Errorf("a token without an ID has the nonce %+v, %v", without.Nonce, err)
	}
}

func TestSubjectsDoNotCollide(t *testing.T) {
	if jwt.SubjectOf("https://a.example", "bc") == jwt.SubjectOf("https://a.exampleb", "c") {
		t.Error("two issuers have the same subject")
	}
}

// TestRefusedTokens has one line for each way in which a token can be wrong. The signature is valid where it can be.
func TestRefusedTokens(t *testing.T) {
	s, stranger := newSigner(t, "key-1"), newSigner(t, "key-1")
	w := newWorld(t, sourceOf(t, s))
	base, valid := standard(), s.token(t, standard())
	part := strings.Split(valid, ".")
	header := func(change set) string { return s.sign(t, s.header().with(change), encoded(t, base)) }
	claims := func(change set) string { return s.token(t, base.with(change)) }
	payload := func(text string) string { return s.sign(t, s.header(), text) }
	none := base64url([]byte(`{"alg":"none"}`)) + "." + part[1] + "."
	for _, c := range []struct {
		what, token string
		want        pki.Rule
	}{
		{"expired", claims(set{"exp": now.Add(-time.Minute).Unix(), "iat": now.Add(-time.Hour).Unix()}),
			pki.RuleEvidenceExpired},
		{"not yet valid", claims(set{"nbf": now.Add(61 * time.Second).Unix()}), pki.RuleEvidenceNotYet},
		{"issued in the future", claims(set{"iat": now.Add(61 * time.Second).Unix()}), pki.RuleEvidenceNotYet},
		{"valid until the year 3000", claims(set{"exp": 32503680000}), pki.RuleEvidenceUntrusted},
		{"valid until the year 3000, without iat", claims(set{"exp": 32503680000, "iat": nil}), pki.RuleEvidenceUntrusted},
		{"valid for a second too long", claims(set{"exp": now.Add(24*time.Hour + time.Second).Unix()}),
			pki.RuleEvidenceUntrusted},
		{"another audience", claims(set{"aud": "other.example"}), pki.RuleEvidenceAudience},
		{"an audience that contains ours", claims(set{"aud": audience + ".evil.example"}), pki.RuleEvidenceAudience},
		{"no audience", claims(set{"aud": nil}), pki.RuleEvidenceAudience},
		{"another issuer", claims(set{"iss": "https://other.example"}), pki.RuleEvidenceUntrusted},
		{"the issuer with a slash", claims(set{"iss": issuerURL + "/"}), pki.RuleEvidenceUntrusted},
		{"another key with this ID", stranger.token(t, base), pki.RuleEvidenceSignature},
		{"another payload", part[0] + "." + base64url([]byte(encoded(t, base.with(set{"sub": "admin"})))) + "." + part[2],
			pki.RuleEvidenceSignature},
		{"an unknown key", header(set{"kid": "key-2"}), pki.RuleEvidenceUntrusted},
		{"a path as key ID", header(set{"kid": "../../../../etc/passwd"}), pki.RuleEvidenceUntrusted},
		{"a URL as key ID", header(set{"kid": "https://evil.example/keys"}), pki.RuleEvidenceUntrusted},
		{"a long key ID", header(set{"kid": strings.Repeat("k", 257)}), pki.RuleEvidenceMalformed},
		{"none", none, pki.RuleEvidenceAlgorithm},
		{"None", strings.Replace(none, part[0], base64url([]byte(`{"alg":"None"}`)), 1), pki.RuleEvidenceAlgorithm},
		{"none with a signature", none + part[2], pki.RuleEvidenceAlgorithm},
		{"no algorithm", header(set{"alg": nil}), pki.RuleEvidenceAlgorithm},
		{"HMAC with the public key", hmacToken(t, s), pki.RuleEvidenceAlgorithm},
		{"an algorithm that the source does not allow", header(set{"alg": "RS256"}), pki.RuleEvidenceAlgorithm},
		{"two signatures", twoSignatures(part), pki.RuleEvidenceMalformed},
		{"an encrypted token", strings.Repeat("e30.", 4) + "e30", pki.RuleEvidenceMalformed},
		{"a nested token", header(set{"cty": "JWT"}), pki.RuleEvidenceMalformed},
		{"1 MB", strings.Repeat("a", 1<<20), pki.RuleEvidenceSize},
		{"a signed token that is too large", claims(set{"pad": strings.Repeat("a", jwt.MaxToken)}), pki.RuleEvidenceSize},
		{"an embedded key", header(set{"jwk": set{"kty": "EC"}}), pki.RuleEvidenceUntrusted},
		{"a location of keys", header(set{"jku": "https://evil.example/jwks"}), pki.RuleEvidenceUntrusted},
		{"embedded certificates", header(set{"x5c": []string{"MII"}}), pki.RuleEvidenceUntrusted},
		{"a location of certificates", header(set{"x5u": "https://evil.example/chain"}), pki.RuleEvidenceUntrusted},
		{"an unknown critical header", header(set{"crit": []string{"brevet"}, "brevet": 1}), pki.RuleEvidenceMalformed},
		{"an unencoded payload", header(set{"crit": []string{"b64"}, "b64": false}), pki.RuleEvidenceMalformed},
		{"a token for logout", header(set{"typ": "logout+jwt"}), pki.RuleEvidenceMalformed},
		{"a number as algorithm", header(set{"alg": 1}), pki.RuleEvidenceMalformed},
		{"a claim twice", payload(`{"sub":"a",` + encoded(t, base)[1:]), pki.RuleEvidenceMalformed},
		{"a claim twice, written in two ways", payload(`{"s\u0075b":"a",` + encoded(t, base)[1:]), pki.RuleEvidenceMalformed},
		{"a header twice", s.signParts(t, base64url([]byte(`{"alg":"none",`+encoded(t, s.header())[1:]))+"."+part[1]),
			pki.RuleEvidenceMalformed},
		{"a member twice, far inside", payload(`{"x":[{"y":1,"y":2}],` + encoded(t, base)[1:]), pki.RuleEvidenceMalformed},
		{"nested too deep", claims(set{"x": json.RawMessage(strings.Repeat("[", jwt.MaxDepth) + strings.Repeat("]",
			jwt.MaxDepth))}), pki.RuleEvidenceMalformed},
		{"an unpaired surrogate", payload(strings.Replace(encoded(t, base), "repo:", `\ud800`, 1)),
			pki.RuleEvidenceMalformed},
		{"invalid UTF-8", payload(strings.Replace(encoded(t, base), "repo:", "\xff", 1)), pki.RuleEvidenceMalformed},
		{"an array", payload(`[1]`), pki.RuleEvidenceMalformed},
		{"two objects", payload(encoded(t, base) + `{}`), pki.RuleEvidenceMalformed},
		{"a trailing comma", payload(strings.TrimSuffix(encoded(t, base), "}") + ",}"), pki.RuleEvidenceMalformed},
		{"no exp", claims(set{"exp": nil}), pki.RuleEvidenceMalformed},
		{"null as exp", claims(set{"exp": json.RawMessage("null")}), pki.RuleEvidenceMalformed},
		{"no sub", claims(set{"sub": nil}), pki.RuleEvidenceMalformed},
		{"an empty sub", claims(set{"sub": ""}), pki.RuleEvidenceMalformed},
		{"no iss", claims(set{"iss": nil}), pki.RuleEvidenceMalformed},
		{"SUB instead of sub", claims(set{"sub": nil, "SUB": "a"}), pki.RuleEvidenceMalformed},
		{"a text as exp", claims(set{"exp": "1793538000"}), pki.RuleEvidenceMalformed},
		{"a time after the year 9999", claims(set{"exp": 253402300800}), pki.RuleEvidenceMalformed},
		{"a huge time", claims(set{"exp": json.Number("1e400")}), pki.RuleEvidenceMalformed},
		{"a negative time", claims(set{"nbf": -1}), pki.RuleEvidenceMalformed},
		{"a number as jti", claims(set{"jti": 1}), pki.RuleEvidenceMalformed},
		{"a number as audience", claims(set{"aud": []any{audience, 1}}), pki.RuleEvidenceMalformed},
		{"empty", "", pki.RuleEvidenceMalformed},
		{"two parts", part[0] + "." + part[1], pki.RuleEvidenceMalformed},
		{"four parts", valid + ".", pki.RuleEvidenceMalformed},
		{"a line feed at the end", valid + "\n", pki.RuleEvidenceMalformed},
		{"a line break inside", part[0] + "." + part[1] + ".\r\n" + part[2], pki.RuleEvidenceMalformed},
		{"padding", valid + "==", pki.RuleEvidenceMalformed},
		{"no signature", part[0] + "." + part[1] + ".", pki.RuleEvidenceMalformed},
		{"a short signature", valid[:len(valid)-2], pki.RuleEvidenceSignature},
		{"a signature of zeros", part[0] + "." + part[1] + "." + base64url(make([]byte, 64)), pki.RuleEvidenceSignature},
	} {
		claim, err := w.identify(t, c.token)
		mustRefuse(t, c.what, err, c.want)
		if err != nil && len(c.token) > 40 && strings.Contains(err.Error(), part[1]) {
			t.Errorf("%s: the refusal contains the token: %v", c.what, err)
		}
		if c.want == pki.RuleEvidenceSignature && claim.Actor != (pki.Actor{}) {
			t.Errorf("%s: a token that does not verify is attributed to %s", c.what, claim.Actor)
		}
	}
	if log := w.log.String(); log != "" {
		t.Errorf("refused tokens are logged: %s", log)
	}
}

// hmacToken returns a token that is signed with HMAC, with the public key of a signer as the secret.
func hmacToken(t *testing.T, s signer) string {
	t.Helper()
	signed := base64url([]byte(encoded(t, s.header().with(set{"alg": "HS256"})))) + "." + base64url([]byte(encoded(t,
		standard())))
	mac := hmac.New(sha256.New, must(x509.MarshalPKIXPublicKey(s.key.Public()))(t))
	mac.Write([]byte(signed))
	return signed + "." + base64url(mac.Sum(nil))
}

// twoSignatures returns a token in JSON serialization.
func twoSignatures(part []string) string {
	one := `{"protected":"` + part[0] + `","signature":"` + part[2] + `"}`
	return ` {"payload":"` + part[1] + `","signatures":[` + one + `,` + one + `]}`
}

// TestAlgorithmsOfKeys checks that a key is used with the algorithms of its type only, even if the source allows others.
func TestAlgorithmsOfKeys(t *testing.T) {
	s := newSigner(t, "key-1")
	source := sourceOf(t, s)
	source.Algorithms = []string{"ES256", "ES384", "RS256", "PS256", "EdDSA"}
	w := newWorld(t, source)
	for _, algorithm := range source.Algorithms[1:] {
		_, err := w.identify(t, s.sign(t, s.header().with(set{"alg": algorithm}), encoded(t, standard())))
		mustRefuse(t, algorithm, err, pki.RuleEvidenceAlgorithm)
	}
}

// TestKeySets checks which keys of a JWK Set are used.
func TestKeySets(t *testing.T) {
	s, other := newSigner(t, "key-1"), newSigner(t, "key-1")
	source := sourceOf(t, s)
	one := strings.TrimSuffix(strings.TrimPrefix(string(jwks(t, s)), `{"keys":[`), `]}`)
	twin := strings.TrimSuffix(strings.TrimPrefix(string(jwks(t, other)), `{"keys":[`), `]}`)
	weak := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	weakJWK := `{"kty":"RSA","kid":"weak","n":"` + base64url(weak.N.Bytes()) + `","e":"AQAB"}`
	for _, c := range []struct {
		what, keys string
		want       pki.Rule // "" means that the token is accepted
	}{
		{"the key twice", one + "," + one, ""},
		{"keys that are not understood", one + `,{"kty":"XYZ"},{"kty":"EC","crv":"P-256"},7,"x",` + weakJWK, ""},
		{"two keys with one ID", one + "," + twin + "," + strings.Replace(twin, "key-1", "key-2", 1),
			pki.RuleEvidenceUntrusted},
		{"a key for encryption with the same ID", one + "," + strings.Replace(twin, `"use":"sig"`, `"use":"enc"`, 1), ""},
		{"a key for encryption", strings.Replace(one, `"use":"sig"`, `"use":"enc"`, 1) + "," + strings.Replace(twin, "key-1",
			"key-2", 1), pki.RuleEvidenceUntrusted},
		{"a key for other operations", strings.Replace(one, `"use":"sig"`, `"key_ops":["encrypt"]`,
			1) + "," + strings.Replace(twin, "key-1", "key-2", 1), pki.RuleEvidenceUntrusted},
		{"a key for this operation", strings.Replace(one, `"use":"sig"`, `"key_ops":["verify"]`, 1), ""},
		{"a key for another algorithm", strings.Replace(one, `"use":"sig"`, `"alg":"ES384"`, 1), pki.RuleEvidenceAlgorithm},
	} {
		source.Keys.Static = []byte(`{"keys":[` + c.keys + `]}`)
		_, err := newWorld(t, source).identify(t, s.token(t, standard()))
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", c.what, err)
		} else if c.want != "" {
			mustRefuse(t, c.what, err, c.want)
		}
	}
	source.Keys.Static = []byte(`{"keys":[` + one + "," + strings.Replace(twin, "key-1", "key-2", 1) + `]}`)
	_, err := newWorld(t, source).identify(t, s.sign(t, s.header().with(set{"kid": nil}), encoded(t, standard())))
	mustRefuse(t, "a token without a key ID, and two keys", err, pki.RuleEvidenceUntrusted)
}

func TestSourcesThatAreRefused(t *testing.T) {
	s := newSigner(t, "key-1")
	valid := sourceOf(t, s)
	second := func(change func(*jwt.Source)) []jwt.Source {
		other := valid
		other.Name, other.Issuer = "second", "https://second.example"
		change(&other)
		return []jwt.Source{valid, other}
	}
	fact := func(f jwt.ClaimFact) func(*jwt.Source) { return func(s *jwt.Source) { s.Claims = []jwt.ClaimFact{f} } }
	for what, c := range map[string]struct {
		change func(*jwt.Source)
		want   string
	}{
		"name":               {func(s *jwt.Source) { s.Name = "A b" }, "name of a source"},
		"name twice":         {func(s *jwt.Source) { s.Name = valid.Name }, "each needs its own"},
		"issuer twice":       {func(s *jwt.Source) { s.Issuer = valid.Issuer }, "each needs its own"},
		"no issuer":          {func(s *jwt.Source) { s.Issuer = "" }, "needs an issuer"},
		"no audience":        {func(s *jwt.Source) { s.Audience = "" }, "needs an audience"},
		"no algorithm":       {func(s *jwt.Source) { s.Algorithms = nil }, "such as RS256"},
		"none":               {func(s *jwt.Source) { s.Algorithms = []string{"none"} }, `"none": use RS256`},
		"HMAC":               {func(s *jwt.Source) { s.Algorithms = []string{"HS256"} }, `"HS256": use RS256`},
		"no keys":            {func(s *jwt.Source) { s.Keys = jwt.Keys{} }, "has no keys"},
		"keys in two places": {func(s *jwt.Source) { s.Keys.Discovery = true }, "several places"},
		"malformed keys":     {func(s *jwt.Source) { s.Keys.Static = []byte("{}") }, "no list of keys"},
		"a secret key": {func(s *jwt.Source) { s.Keys.Static = []byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`) },
			"none of the 1 keys"},
		"too many keys": {func(s *jwt.Source) {
			s.Keys.Static = []byte(`{"keys":[` + strings.Repeat("1,",
				jwt.MaxKeys) + `1]}`)
		}, "has 101 keys"},
		"HTTP": {func(s *jwt.Source) { s.Issuer, s.Keys = "http://second.example", jwt.Keys{Discovery: true} },
			"does not use HTTPS"},
		"HTTP by name": {func(s *jwt.Source) { s.Issuer, s.Keys = "http://localhost", jwt.Keys{Discovery: true} },
			"does not use HTTPS"},
		"a file": {func(s *jwt.Source) { s.Issuer, s.Keys = "file:///etc/passwd", jwt.Keys{Discovery: true} },
			"is not a URL of a server"},
		"a password": {func(s *jwt.Source) {
			s.Issuer, s.Keys = "https://a:b@second.example",
				jwt.Keys{Discovery: true}
		}, "is not a URL of a server"},
		"a query": {func(s *jwt.Source) {
			s.Issuer, s.Keys = "https://second.example/?a",
				jwt.Keys{Discovery: true}
		}, "has a query"},
		"no cluster":      {func(s *jwt.Source) { s.Keys = jwt.Keys{Cluster: true} }, "describe the cluster"},
		"no server":       {func(s *jwt.Source) { s.Kubernetes = &jwt.Kubernetes{Review: true} }, "the API server"},
		"a negative time": {func(s *jwt.Source) { s.MaxLifetime = -1 }, "negative"},
		"a fact's name": {fact(jwt.ClaimFact{Fact: "jwt.Repository", Pointer: "/r", Type: ra.FactString}),
			"cannot be the name"},
		"a standard fact": {fact(jwt.ClaimFact{Fact: "jwt.subject", Pointer: "/r", Type: ra.FactString}),
			"cannot be the name"},
		"a word of CEL":      {fact(jwt.ClaimFact{Fact: "jwt.in", Pointer: "/r", Type: ra.FactString}), "cannot be the name"},
		"another kind":       {fact(jwt.ClaimFact{Fact: "tpm.ek", Pointer: "/r", Type: ra.FactString}), "cannot be the name"},
		"a fact's type":      {fact(jwt.ClaimFact{Fact: "jwt.r", Pointer: "/r", Type: ra.FactTime}), "has the type"},
		"a pointer":          {fact(jwt.ClaimFact{Fact: "jwt.r", Pointer: "r", Type: ra.FactString}), "JSON pointer"},
		"a pointer's escape": {fact(jwt.ClaimFact{Fact: "jwt.r", Pointer: "/~2", Type: ra.FactString}), "write ~0 for ~"},
		"a fact twice": {func(s *jwt.Source) {
			f := jwt.ClaimFact{Fact: "jwt.r", Pointer: "/r", Type: ra.FactString}
			s.Claims = []jwt.ClaimFact{f, f}
		}, "two claims for the fact"},
	} {
		a, err := jwt.New(second(c.change), time.Now, nil)
		if err == nil {
			a.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error about %q", what, err, c.want)
		}
	}
	both := second(fact(jwt.ClaimFact{Fact: "jwt.r", Pointer: "/r", Type: ra.FactString}))
	both[0].Claims = []jwt.ClaimFact{{Fact: "jwt.r", Pointer: "/r", Type: ra.FactInt}}
	if _, err := jwt.New(both, time.Now, nil); err == nil || !strings.Contains(err.Error(), "another type") {
		t.Errorf("a fact with two types: %v", err)
	}
	if _, err := jwt.New(nil, time.Now, nil); err == nil {
		t.Error("no source is accepted")
	}
	none := &jwt.Authenticator{}
	_, err := none.Identify(t.Context(), ra.Presented{Evidence: []byte(s.token(t, standard())), At: now})
	mustRefuse(t, "no sources", err, pki.RuleEvidenceUntrusted)
	if len(none.Facts()) != 6 || len(none.Unique()) != 1 {
		t.Errorf("without sources, the facts are %v, and %v are unique", none.Facts(), none.Unique())
	}
}
