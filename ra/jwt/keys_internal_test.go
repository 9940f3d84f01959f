package jwt

import (
	"crypto/rsa"
	"testing"
)

// FuzzKeySet parses arbitrary bytes as a JWK Set. It must contain only keys that can verify tokens.
func FuzzKeySet(f *testing.F) {
	for _, seed := range []string{
		`{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik"}]}`,
		`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",` +
			`"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`,
		`{"keys":[{"kty":"RSA","kid":"a","e":"AQAB","n":"AA","x5c":[""],"x5t":"","key_ops":["verify"]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := parseKeySet(data)
		if err != nil {
			return
		}
		ids := map[string]bool{}
		for _, k := range set.keys {
			if k.id != "" && ids[k.id] {
				t.Errorf("two keys have the ID %q", k.id)
			}
			ids[k.id] = true
			if key, ok := k.key.(*rsa.PublicKey); ok && (key.N.BitLen() < minRSABits || key.E < 3) {
				t.Errorf("a weak key: %d bits, exponent %d", key.N.BitLen(), key.E)
			}
		}
		if len(set.keys) == 0 || len(set.keys) > maxKeys {
			t.Errorf("the set has %d keys", len(set.keys))
		}
	})
}
