package ra

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// openssl runs OpenSSL and returns its standard output.
func openssl(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	var diagnostics bytes.Buffer
	cmd.Stderr = &diagnostics
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v: run deploy/setup.sh --test\n%s", strings.Join(args, " "), err, &diagnostics)
	}
	return out
}

// keyFile generates a private key with OpenSSL, and returns the name of the file.
func keyFile(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	openssl(t, append([]string{"genpkey", "-out", path}, args...)...)
	return path
}

// request returns a certification request that OpenSSL signed, in DER.
func request(t *testing.T, key string, args ...string) []byte {
	t.Helper()
	return openssl(t, append([]string{"req", "-new", "-key", key, "-subj", "/", "-outform", "DER"}, args...)...)
}

// withoutAttributes returns a request without the attributes field.
func withoutAttributes(t *testing.T) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(fuzzKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	sequence := func(b *cryptobyte.Builder, write func(*cryptobyte.Builder)) {
		b.AddASN1(cryptobyte_asn1.SEQUENCE, write)
	}
	var info, whole cryptobyte.Builder
	sequence(&info, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		sequence(b, func(*cryptobyte.Builder) {})
		b.AddBytes(spki)
	})
	signature, err := fuzzKey.Sign(nil, info.BytesOrPanic(), crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	sequence(&whole, func(b *cryptobyte.Builder) {
		b.AddBytes(info.BytesOrPanic())
		sequence(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidEd25519) })
		b.AddASN1BitString(signature)
	})
	return whole.BytesOrPanic()
}

// TestRefusalsNameTheCause refuses requests made with OpenSSL. Each refusal must say what was found, and what would be accepted.
func TestRefusalsNameTheCause(t *testing.T) {
	t.Parallel()
	ec := keyFile(t, "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	rsa := keyFile(t, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
	curve := func(name string, more ...string) []byte {
		return request(t, keyFile(t, append([]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:" + name}, more...)...))
	}
	parameters := filepath.Join(t.TempDir(), "dsa.pem")
	openssl(t, "genpkey", "-genparam", "-algorithm", "DSA", "-pkeyopt", "dsa_paramgen_bits:1024", "-pkeyopt", "dsa_paramgen_q_bits:160", "-out", parameters)
	good := request(t, ec)
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	text := bytes.TrimPrefix(block("CERTIFICATE REQUEST", good), []byte("-----BEGIN CERTIFICATE REQUEST-----\n"))
	for name, c := range map[string]struct {
		csr         []byte
		rule        pki.Rule
		detail, fix string
	}{
		"Ed448":               {request(t, keyFile(t, "-algorithm", "ED448")), pki.RuleKeyType, "Ed448 (1.3.101.113)", "P-256"},
		"DSA":                 {request(t, keyFile(t, "-paramfile", parameters)), pki.RuleKeyType, "DSA (1.2.840.10040.4.1)", "P-256"},
		"RSA for PSS":         {request(t, keyFile(t, "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")), pki.RuleKeyType, "RSASSA-PSS (1.2.840.113549.1.1.10)", "rsaEncryption"},
		"brainpool":           {curve("brainpoolP256r1"), pki.RuleKeyType, "brainpoolP256r1 (1.3.36.3.3.2.8.1.1.7)", "P-256"},
		"secp256k1":           {curve("secp256k1"), pki.RuleKeyType, "secp256k1 (1.3.132.0.10)", "P-256"},
		"explicit parameters": {curve("P-256", "-pkeyopt", "ec_param_enc:explicit"), pki.RuleKeyType, "explicit curve parameters", "named_curve"},
		"a compressed point": {
			openssl(t, "req", "-new", "-key", convert(t, ec, "-conv_form", "compressed"), "-subj", "/", "-outform", "DER"),
			pki.RuleCSR, "P-256 (1.2.840.10045.3.1.7) begins with 0", "uncompressed",
		},
		"SHA-1":            {request(t, ec, "-sha1"), pki.RuleCSRSignature, "ecdsa-with-SHA1 (1.2.840.10045.4.1)", "SHA-256"},
		"SHA-224":          {request(t, ec, "-sha224"), pki.RuleCSRSignature, "ecdsa-with-SHA224 (1.2.840.10045.4.3.1)", "SHA-256"},
		"SHA-3":            {request(t, ec, "-sha3-256"), pki.RuleCSRSignature, "ecdsa-with-SHA3-256 (2.16.840.1.101.3.4.3.10)", "SHA-256"},
		"RSA and SHA-3":    {request(t, rsa, "-sha3-512"), pki.RuleCSRSignature, "RSA with SHA3-512 (2.16.840.1.101.3.4.3.16)", "SHA-256"},
		"RSA and MD5":      {request(t, rsa, "-md5"), pki.RuleCSRSignature, "md5WithRSAEncryption (1.2.840.113549.1.1.4)", "SHA-256"},
		"a long salt":      {request(t, rsa, "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:64"), pki.RuleCSRSignature, "SHA-256 (2.16.840.1.101.3.4.2.1) and a salt of 64", "salt of the hash's length"},
		"PSS with SHA-1":   {request(t, rsa, "-sha1", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:20"), pki.RuleCSRSignature, "SHA-1 (1.3.14.3.2.26) and a salt of 20", "SHA-256"},
		"no attributes":    {withoutAttributes(t), pki.RuleCSR, "has no attributes", "a0 00"},
		"PEM":              {block("CERTIFICATE REQUEST", good), pki.RuleCSR, "in PEM", "-outform DER"},
		"PEM after spaces": {append([]byte("\n \r\n"), block("NEW CERTIFICATE REQUEST", good)...), pki.RuleCSR, "in PEM", "-outform DER"},
		"base64":           {text, pki.RuleCSR, "in base64", "-outform DER"},
		"a certificate": {
			openssl(t, "req", "-x509", "-new", "-key", ec, "-subj", "/CN=x", "-outform", "DER"), pki.RuleCSR, "is a certificate", "PKCS #10",
		},
		"a key":            {openssl(t, "pkey", "-in", ec, "-pubout", "-outform", "DER"), pki.RuleCSR, "not a certification request", "PKCS #10"},
		"its end missing":  {good[:len(good)-9], pki.RuleCSR, "its end is missing", "PKCS #10"},
		"more after it":    {append(bytes.Clone(good), 1, 2, 3), pki.RuleCSR, "3 bytes follow", "nothing after it"},
		"another's number": {long(t), pki.RuleKeyType, "2.999.", "P-256"},
	} {
		_, err := parseCSR(c.csr)
		r, ok := pki.AsRefusal(err)
		if !ok {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.Rule != c.rule || !strings.Contains(r.Detail, c.detail) || !strings.Contains(r.Hint, c.fix) || len(r.Error()) > 2000 {
			t.Errorf("%s: %v; want %s with %q and the hint %q", name, r, c.rule, c.detail, c.fix)
		}
	}
}

// TestPSSWithHashLengthSalt accepts RSASSA-PSS with a salt as long as the hash, the typical length in RFC 8017 §9.1.
func TestPSSWithHashLengthSalt(t *testing.T) {
	t.Parallel()
	rsa := keyFile(t, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
	for _, hash := range []string{"-sha256", "-sha384", "-sha512"} {
		if _, err := parseCSR(request(t, rsa, hash, "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
	}
}

// convert rewrites a key with OpenSSL options.
func convert(t *testing.T, key string, args ...string) string {
	t.Helper()
	return write(t, openssl(t, append([]string{"ec", "-in", key}, args...)...))
}

func write(t *testing.T, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// long returns a request whose key has an algorithm identifier nearly as long as the largest request.
func long(t *testing.T) []byte {
	t.Helper()
	id := asn1.ObjectIdentifier{2, 999}
	for range 3000 {
		id = append(id, 1<<30)
	}
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			b.AddASN1(cryptobyte_asn1.SEQUENCE, func(*cryptobyte.Builder) {})
			b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(id) })
				b.AddASN1BitString([]byte{1})
			})
			b.AddASN1(cryptobyte_asn1.Tag(0).ContextSpecific().Constructed(), func(*cryptobyte.Builder) {})
		})
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidEd25519) })
		b.AddASN1BitString([]byte{1})
	})
	return b.BytesOrPanic()
}
