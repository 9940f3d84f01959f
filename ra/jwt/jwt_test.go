package jwt_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
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
		"an access token":        s.header().with(set{"typ": "application/at+jwt"}),
		"with an unknown header": s.header().with(set{"x5t": "abc"}),
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
			"jwt.source": "ci", "jwt.issuer": issuerURL, "jwt.subject": "repo:octo-org/gateway",
			"jwt.audience":   []string{audience},
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
		"a number as text": {"repository": 7}, "a text as bool": {"ref": set{"protected": "true"}},
		"a fraction":     {"a/b~c": []any{0, 1.5}},
		"a text as list": {"groups": "a"}, "a number in a list of texts": {"groups": []any{"a",
			1}}, "a number over 64 bits": {"a/b~c": []any{0, json.Number("9223372036854775808")}},
	} {
		_, err := w.identify(t, s.token(t, standard().with(other)))
		mustRefuse(t, what, err, pki.RuleEvidenceMalformed)
	}
}

// TestNonceIsOfTheToken checks that an ECDSA signature that was changed to its other form gives the same nonce, and
// that tokens without an ID have none.
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

// TestAlgorithmsOfKeys checks that a key is used with the algorithms of its type only, even if the source allows
// others.
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
