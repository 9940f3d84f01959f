package jws_test

import (
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/acme/jws"
)

// FuzzParse checks that Parse returns a message or a refusal, and that nothing but the signed bytes verifies.
func FuzzParse(f *testing.F) {
	for _, algorithm := range []string{"ES256", "EdDSA"} {
		key := generate(f, algorithm)
		f.Add(sign(f, algorithm, key, "{}", map[string]any{"nonce": "n", "url": url, "jwk": jwk(key)}))
		f.Add(sign(f, algorithm, key, "", map[string]any{"nonce": "n", "url": url, "kid": url}))
	}
	f.Add([]byte(`{"protected":"e30","payload":"","signature":""}`))
	stranger, err := jws.ParseSPKI(spkiOf(f, generate(f, "ES256")))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := jws.Parse(body)
		if err != nil {
			if _, ok := pki.AsRefusal(err); !ok {
				t.Fatalf("%v is not a refusal", err)
			}
			return
		}
		if (m.Key == nil) == (m.KeyID == "") || m.URL == "" || m.Nonce == "" {
			t.Fatalf("the message has not one of key and kid, or no URL or nonce: %+v", m)
		}
		if _, err := m.Verify(stranger); err == nil {
			t.Fatal("a key verifies what it has not signed")
		}
	})
}

// FuzzParseBinding checks that a binding never verifies without its secret.
func FuzzParseBinding(f *testing.F) {
	key := generate(f, "ES256")
	account, err := jws.ParseSPKI(spkiOf(f, key))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sign(f, "HS256", make([]byte, 32), marshal(f, jwk(key)), map[string]any{"url": url, "kid": "k"}))
	secret := []byte("a secret of 32 bytes, never used")
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := jws.ParseBinding(body, url, account)
		if err != nil {
			if _, ok := pki.AsRefusal(err); !ok {
				t.Fatalf("%v is not a refusal", err)
			}
			return
		}
		if b.KeyID == "" || b.Verify(secret) {
			t.Fatalf("the binding %q verifies with another secret", b.KeyID)
		}
	})
}
