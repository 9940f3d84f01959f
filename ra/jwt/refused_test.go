package jwt_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/jwt"
)

// badToken is a token that is refused by one rule.
type badToken struct {
	what, token string
	want        pki.Rule
}

// forger makes tokens. Their signature is valid, unless that is what is wrong with them.
type forger struct {
	signer
	t     *testing.T
	base  set
	valid string
	part  []string // of valid
}

func newForger(t *testing.T) forger {
	s := newSigner(t, "key-1")
	valid := s.token(t, standard())
	return forger{s, t, standard(), valid, strings.Split(valid, ".")}
}

func (f forger) withHeader(change set) string {
	return f.sign(f.t, f.header().with(change), encoded(f.t, f.base))
}

func (f forger) claims(change set) string { return f.token(f.t, f.base.with(change)) }

func (f forger) payload(text string) string { return f.sign(f.t, f.header(), text) }

// TestRefusedTokens has one line for each way in which a token can be wrong.
func TestRefusedTokens(t *testing.T) {
	f := newForger(t)
	w := newWorld(t, sourceOf(t, f.signer))
	for _, c := range slices.Concat(f.wrongClaims(), f.wrongHeaders(), f.wrongSyntax()) {
		claim, err := w.identify(t, c.token)
		mustRefuse(t, c.what, err, c.want)
		if err != nil && len(c.token) > 40 && strings.Contains(err.Error(), f.part[1]) {
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

func (f forger) wrongClaims() []badToken {
	stranger := newSigner(f.t, "key-1")
	return []badToken{
		{"expired", f.claims(set{"exp": now.Add(-time.Minute).Unix(), "iat": now.Add(-time.Hour).Unix()}),
			pki.RuleEvidenceExpired},
		{"not yet valid", f.claims(set{"nbf": now.Add(61 * time.Second).Unix()}), pki.RuleEvidenceNotYet},
		{"issued in the future", f.claims(set{"iat": now.Add(61 * time.Second).Unix()}), pki.RuleEvidenceNotYet},
		{"valid until the year 3000", f.claims(set{"exp": 32503680000}), pki.RuleEvidenceUntrusted},
		{"valid until the year 3000, without iat", f.claims(set{"exp": 32503680000, "iat": nil}), pki.RuleEvidenceUntrusted},
		{"valid for a second too long", f.claims(set{"exp": now.Add(24*time.Hour + time.Second).Unix()}),
			pki.RuleEvidenceUntrusted},
		{"another audience", f.claims(set{"aud": "other.example"}), pki.RuleEvidenceAudience},
		{"an audience that contains ours", f.claims(set{"aud": audience + ".evil.example"}), pki.RuleEvidenceAudience},
		{"no audience", f.claims(set{"aud": nil}), pki.RuleEvidenceAudience},
		{"another issuer", f.claims(set{"iss": "https://other.example"}), pki.RuleEvidenceUntrusted},
		{"the issuer with a slash", f.claims(set{"iss": issuerURL + "/"}), pki.RuleEvidenceUntrusted},
		{"another key with this ID", stranger.token(f.t, f.base), pki.RuleEvidenceSignature},
		{"another payload", f.part[0] + "." + base64url([]byte(encoded(f.t,
			f.base.with(set{"sub": "admin"})))) + "." + f.part[2],
			pki.RuleEvidenceSignature},
		{"no exp", f.claims(set{"exp": nil}), pki.RuleEvidenceMalformed},
		{"null as exp", f.claims(set{"exp": json.RawMessage("null")}), pki.RuleEvidenceMalformed},
		{"no sub", f.claims(set{"sub": nil}), pki.RuleEvidenceMalformed},
		{"an empty sub", f.claims(set{"sub": ""}), pki.RuleEvidenceMalformed},
		{"no iss", f.claims(set{"iss": nil}), pki.RuleEvidenceMalformed},
		{"SUB instead of sub", f.claims(set{"sub": nil, "SUB": "a"}), pki.RuleEvidenceMalformed},
		{"a text as exp", f.claims(set{"exp": "1793538000"}), pki.RuleEvidenceMalformed},
		{"a time after the year 9999", f.claims(set{"exp": 253402300800}), pki.RuleEvidenceMalformed},
		{"a huge time", f.claims(set{"exp": json.Number("1e400")}), pki.RuleEvidenceMalformed},
		{"a negative time", f.claims(set{"nbf": -1}), pki.RuleEvidenceMalformed},
		{"a number as jti", f.claims(set{"jti": 1}), pki.RuleEvidenceMalformed},
		{"a number as audience", f.claims(set{"aud": []any{audience, 1}}), pki.RuleEvidenceMalformed},
	}
}

func (f forger) wrongHeaders() []badToken {
	none := base64url([]byte(`{"alg":"none"}`)) + "." + f.part[1] + "."
	return []badToken{
		{"an unknown key", f.withHeader(set{"kid": "key-2"}), pki.RuleEvidenceUntrusted},
		{"a path as key ID", f.withHeader(set{"kid": "../../../../etc/passwd"}), pki.RuleEvidenceUntrusted},
		{"a URL as key ID", f.withHeader(set{"kid": "https://evil.example/keys"}), pki.RuleEvidenceUntrusted},
		{"a long key ID", f.withHeader(set{"kid": strings.Repeat("k", 257)}), pki.RuleEvidenceMalformed},
		{"none", none, pki.RuleEvidenceAlgorithm},
		{"None", strings.Replace(none, f.part[0], base64url([]byte(`{"alg":"None"}`)), 1), pki.RuleEvidenceAlgorithm},
		{"none with a signature", none + f.part[2], pki.RuleEvidenceAlgorithm},
		{"no algorithm", f.withHeader(set{"alg": nil}), pki.RuleEvidenceAlgorithm},
		{"HMAC with the public key", hmacToken(f.t, f.signer), pki.RuleEvidenceAlgorithm},
		{"an algorithm that the source does not allow", f.withHeader(set{"alg": "RS256"}), pki.RuleEvidenceAlgorithm},
		{"two signatures", twoSignatures(f.part), pki.RuleEvidenceMalformed},
		{"an encrypted token", strings.Repeat("e30.", 4) + "e30", pki.RuleEvidenceMalformed},
		{"a nested token", f.withHeader(set{"cty": "JWT"}), pki.RuleEvidenceMalformed},
		{"1 MB", strings.Repeat("a", 1<<20), pki.RuleEvidenceSize},
		{"a signed token that is too large", f.claims(set{"pad": strings.Repeat("a", jwt.MaxToken)}), pki.RuleEvidenceSize},
		{"an embedded key", f.withHeader(set{"jwk": set{"kty": "EC"}}), pki.RuleEvidenceUntrusted},
		{"a location of keys", f.withHeader(set{"jku": "https://evil.example/jwks"}), pki.RuleEvidenceUntrusted},
		{"embedded certificates", f.withHeader(set{"x5c": []string{"MII"}}), pki.RuleEvidenceUntrusted},
		{"a location of certificates", f.withHeader(set{"x5u": "https://evil.example/chain"}), pki.RuleEvidenceUntrusted},
		{"an unknown critical header", f.withHeader(set{"crit": []string{"brevet"}, "brevet": 1}), pki.RuleEvidenceMalformed},
		{"an unencoded payload", f.withHeader(set{"crit": []string{"b64"}, "b64": false}), pki.RuleEvidenceMalformed},
		{"a token for logout", f.withHeader(set{"typ": "logout+jwt"}), pki.RuleEvidenceMalformed},
		{"a number as algorithm", f.withHeader(set{"alg": 1}), pki.RuleEvidenceMalformed},
	}
}

func (f forger) wrongSyntax() []badToken {
	return []badToken{
		{"a claim twice", f.payload(`{"sub":"a",` + encoded(f.t, f.base)[1:]), pki.RuleEvidenceMalformed},
		{"a claim twice, written in two ways", f.payload(`{"s\u0075b":"a",` + encoded(f.t, f.base)[1:]),
			pki.RuleEvidenceMalformed},
		{"a header twice", f.signParts(f.t, base64url([]byte(`{"alg":"none",`+encoded(f.t,
			f.header())[1:]))+"."+f.part[1]),
			pki.RuleEvidenceMalformed},
		{"a member twice, far inside", f.payload(`{"x":[{"y":1,"y":2}],` + encoded(f.t, f.base)[1:]),
			pki.RuleEvidenceMalformed},
		{"nested too deep", f.claims(set{"x": json.RawMessage(strings.Repeat("[", jwt.MaxDepth) + strings.Repeat("]",
			jwt.MaxDepth))}), pki.RuleEvidenceMalformed},
		{"an unpaired surrogate", f.payload(strings.Replace(encoded(f.t, f.base), "repo:", `\ud800`, 1)),
			pki.RuleEvidenceMalformed},
		{"invalid UTF-8", f.payload(strings.Replace(encoded(f.t, f.base), "repo:", "\xff", 1)), pki.RuleEvidenceMalformed},
		{"an array", f.payload(`[1]`), pki.RuleEvidenceMalformed},
		{"two objects", f.payload(encoded(f.t, f.base) + `{}`), pki.RuleEvidenceMalformed},
		{"a trailing comma", f.payload(strings.TrimSuffix(encoded(f.t, f.base), "}") + ",}"), pki.RuleEvidenceMalformed},
		{"empty", "", pki.RuleEvidenceMalformed},
		{"two parts", f.part[0] + "." + f.part[1], pki.RuleEvidenceMalformed},
		{"four parts", f.valid + ".", pki.RuleEvidenceMalformed},
		{"a line feed at the end", f.valid + "\n", pki.RuleEvidenceMalformed},
		{"a line break inside", f.part[0] + "." + f.part[1] + ".\r\n" + f.part[2], pki.RuleEvidenceMalformed},
		{"padding", f.valid + "==", pki.RuleEvidenceMalformed},
		{"no signature", f.part[0] + "." + f.part[1] + ".", pki.RuleEvidenceMalformed},
		{"a short signature", f.valid[:len(f.valid)-2], pki.RuleEvidenceSignature},
		{"a signature of zeros", f.part[0] + "." + f.part[1] + "." + base64url(make([]byte, 64)), pki.RuleEvidenceSignature},
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
