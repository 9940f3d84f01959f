package jwt_test

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/ra/jwt"
)

// TestTokensSignedByOpenSSL checks every algorithm with keys and signatures of OpenSSL.
func TestTokensSignedByOpenSSL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	openssl := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "openssl", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	pss := []string{"-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"}
	for _, c := range []struct {
		algorithm string
		genpkey   []string
		sign      []string
		size      int // of each half of an ECDSA signature
	}{
		{"RS256", []string{"RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sha256"}, 0},
		{"RS384", []string{"RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"-sha384"}, 0},
		{"RS512", []string{"RSA", "-pkeyopt", "rsa_keygen_bits:3072"}, []string{"-sha512"}, 0},
		{"PS256", []string{"RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, append([]string{"-sha256"}, pss...), 0},
		{"PS384", []string{"RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, append([]string{"-sha384"}, pss...), 0},
		{"PS512", []string{"RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, append([]string{"-sha512"}, pss...), 0},
		{"ES256", []string{"EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, []string{"-sha256"}, 32},
		{"ES384", []string{"EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, []string{"-sha384"}, 48},
		{"ES512", []string{"EC", "-pkeyopt", "ec_paramgen_curve:P-521"}, []string{"-sha512"}, 66},
		{"EdDSA", []string{"ED25519"}, nil, 0},
	} {
		openssl(append([]string{"genpkey", "-out", "key.pem", "-algorithm"}, c.genpkey...)...)
		openssl("pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der")
		public := must(x509.ParsePKIXPublicKey(must(os.ReadFile(filepath.Join(dir, "public.der")))(t)))(t)
		signed := base64url([]byte(encoded(t, set{"alg": c.algorithm}))) + "." + base64url([]byte(encoded(t, standard())))
		check(t, os.WriteFile(filepath.Join(dir, "signed"), []byte(signed), 0o600))
		if c.sign == nil {
			openssl("pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", "signed", "-out", "signature")
		} else {
			openssl(append(append([]string{"dgst", "-sign", "key.pem", "-out", "signature"}, c.sign...), "signed")...)
		}
		signature := must(os.ReadFile(filepath.Join(dir, "signature")))(t)
		if c.size > 0 {
			var halves struct{ R, S *big.Int }
			must(asn1.Unmarshal(signature, &halves))(t)
			signature = append(halves.R.FillBytes(make([]byte, c.size)), halves.S.FillBytes(make([]byte, c.size))...)
		}
		keys := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "key"}}}))(t)
		w := newWorld(t, jwt.Source{
			Name: "ci", Issuer: issuerURL, Audience: audience, Algorithms: []string{c.algorithm}, Keys: jwt.Keys{Static: keys},
		})
		if _, err := w.identify(t, signed+"."+base64url(signature)); err != nil {
			t.Errorf("%s: %v", c.algorithm, err)
		}
	}
}
