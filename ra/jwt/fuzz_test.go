package jwt_test

import (
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
)

// fuzzSigner has a fixed key, so that the seeds of one process are valid in another.
var fuzzSigner = signer{ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "key-1"}

func fuzzWorld(f *testing.F) *world {
	source := sourceOf(f, fuzzSigner)
	source.Claims = []jwt.ClaimFact{{Fact: "jwt.list", Pointer: "/a/0/b", Type: ra.FactStrings}, {Fact: "jwt.n",
		Pointer: "/n", Type: ra.FactInt}}
	return newWorld(f, source)
}

// refusedOr checks that an error is a refusal that does not contain the evidence.
func refusedOr(t *testing.T, err error, evidence string) bool {
	t.Helper()
	if err == nil {
		return false
	}
	if _, ok := pki.AsRefusal(err); !ok {
		t.Errorf("an error that is not a refusal: %v", err)
	}
	if len(evidence) > 100 && strings.Contains(err.Error(), evidence[:100]) {
		t.Errorf("the refusal contains the token: %v", err)
	}
	return true
}

// FuzzToken presents arbitrary bytes. Only tokens that were signed can be accepted.
func FuzzToken(f *testing.F) {
	w := fuzzWorld(f)
	var signed []string
	for _, claims := range []set{standard(), standard().with(set{"jti": "x", "n": 1,
		"a": []any{set{"b": []string{"c"}}}})} {
		signed = append(signed, fuzzSigner.token(f, claims))
	}
	for _, seed := range append(slices.Clone(signed), "", "..", "e30.e30.e30.e30.e30", `{"payload":""}`,
		"eyJhbGciOiJub25lIn0.e30.") {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, evidence []byte) {
		_, err := w.Identify(t.Context(), ra.Presented{Evidence: evidence, At: now})
		if !refusedOr(t, err, string(evidence)) && !slices.Contains(signed, string(evidence)) {
			t.Errorf("a token that was never signed is accepted: %q", evidence)
		}
	})
}

// FuzzSignedToken signs an arbitrary header and payload. The result of an accepted token must be what encoding/json
// reads.
func FuzzSignedToken(f *testing.F) {
	w := fuzzWorld(f)
	header := encoded(f, fuzzSigner.header())
	f.Add([]byte(header), []byte(encoded(f, standard())))
	f.Add([]byte(header), []byte(encoded(f, standard().with(set{"jti": "x", "n": 1,
		"a": []any{set{"b": []string{"c"}}}}))))
	f.Add([]byte(`{"alg":"EdDSA","crit":["b64"],"b64":false}`), []byte(`{"sub":"a","sub":"b"}`))
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		token := fuzzSigner.signParts(t, base64url(header)+"."+base64url(payload))
		claim, err := w.Identify(t.Context(), ra.Presented{Evidence: []byte(token), At: now})
		if refusedOr(t, err, token) {
			return
		}
		var all map[string]any
		if err := json.Unmarshal(payload,
			&all); err != nil || all["sub"] != claim.Facts["jwt.subject"] || all["iss"] != issuerURL {
			t.Errorf("the payload %q gives the claim %+v, %v", payload, claim, err)
		}
	})
}

func BenchmarkIdentify(b *testing.B) {
	for _, s := range []signer{newSigner(b, "key-1"), fuzzSigner} {
		b.Run(s.algorithm(), func(b *testing.B) {
			w := newWorld(b, sourceOf(b, s))
			p := ra.Presented{Evidence: []byte(s.token(b, standard())), At: now}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Identify(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
