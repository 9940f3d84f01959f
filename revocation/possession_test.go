package revocation_test

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

const domain = "fleet.example"

func spkiOf(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// OpenSSL signs the statement with each type of key, with the commands in docs/operations.md.
func TestVerifyCompromiseAcceptsOpenSSLSignatures(t *testing.T) {
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			key := revtest.Key(t, kind)
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			if err := os.WriteFile(in("key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
				t.Fatal(err)
			}
			revtest.MustTool(t, "openssl", "pkey", "-in", in("key.pem"), "-pubout", "-outform", "DER", "-out", in("key.spki"))
			spki, err := os.ReadFile(in("key.spki"))
			if err != nil {
				t.Fatal(err)
			}
			hash, _, _ := strings.Cut(revtest.MustTool(t, "openssl", "dgst", "-sha256", "-r", in("key.spki")), " ")
			text := "brevet: the holder of this key asks that all its certificates be revoked as compromised\n" + domain + "\n" + hash + "\n"
			if err := os.WriteFile(in("statement"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			sign := []string{"dgst", "-sha256", "-sign", in("key.pem"), "-out", in("signature"), in("statement")}
			if kind == "ed25519" {
				sign = []string{"pkeyutl", "-sign", "-rawin", "-inkey", in("key.pem"), "-in", in("statement"), "-out", in("signature")}
			}
			revtest.MustTool(t, "openssl", sign...)
			signature, err := os.ReadFile(in("signature"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := revocation.VerifyCompromise(domain, spki, signature)
			if err != nil || got != pki.HashSPKI(spki) {
				t.Errorf("%v, %v", got, err)
			}
			for i := range signature {
				signature[i] ^= 1
				if _, err := revocation.VerifyCompromise(domain, spki, signature); err == nil {
					t.Fatalf("a signature with byte %d changed is accepted", i)
				}
				signature[i] ^= 1
			}
		})
	}
}

func TestVerifyCompromiseRefusals(t *testing.T) {
	key := revtest.Key(t, "p256")
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agreement, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki := spkiOf(t, key.Public())
	statement := pki.CompromiseStatement(domain, pki.HashSPKI(spki))
	sign := func(text []byte) []byte {
		digest := sha256.Sum256(text)
		signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	long := sha512.Sum384(statement)
	sha384, err := key.Sign(rand.Reader, long[:], crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	signature := sign(statement)
	for name, c := range map[string]struct {
		spki, signature []byte
		rule            pki.Rule
	}{
		"valid":                          {spki, signature, ""},
		"other trust domain":             {spki, sign(pki.CompromiseStatement("other.example", pki.HashSPKI(spki))), pki.RuleKeyPossession},
		"trust domain with a line break": {spki, sign(pki.CompromiseStatement(domain+"\n", pki.HashSPKI(spki))), pki.RuleKeyPossession},
		"hash of another key":            {spki, sign(pki.CompromiseStatement(domain, pki.HashSPKI(nil))), pki.RuleKeyPossession},
		"other digest":                   {spki, sha384, pki.RuleKeyPossession},
		"other key":                      {spkiOf(t, revtest.Key(t, "p256").Public()), signature, pki.RuleKeyPossession},
		"other kind of key":              {spkiOf(t, edwards.Public()), signature, pki.RuleKeyPossession},
		"key that cannot sign":           {spkiOf(t, agreement.PublicKey()), signature, pki.RuleKeyType},
		"key that does not parse":        {[]byte("no key"), signature, pki.RuleRequest},
		"bytes after the key":            {append(spki[:len(spki):len(spki)], 0), signature, pki.RuleRequest},
		"bytes after the signature":      {spki, append(signature[:len(signature):len(signature)], 0), pki.RuleKeyPossession},
		"empty":                          {nil, nil, pki.RuleRequest},
		"huge signature":                 {spki, make([]byte, 1<<20), pki.RuleRequest},
		"huge RSA key":                   {hugeRSA(t), signature, pki.RuleKeyType},
	} {
		_, err := revocation.VerifyCompromise(domain, c.spki, c.signature)
		refusal, refused := pki.AsRefusal(err)
		if c.rule == "" && err == nil || refused && refusal.Rule == c.rule {
			continue
		}
		t.Errorf("%s: %v", name, err)
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), hashOf(statement), signature) {
		t.Error("crypto/ecdsa does not verify the valid signature")
	}
}

func hashOf(text []byte) []byte {
	digest := sha256.Sum256(text)
	return digest[:]
}

// hugeRSA returns an RSA public key that is too large to verify signatures with it quickly.
func hugeRSA(t testing.TB) []byte {
	t.Helper()
	modulus := make([]byte, 1500)
	modulus[0], modulus[len(modulus)-1] = 0x40, 1
	inner, err := asn1.Marshal(struct {
		N asn1.RawValue
		E int
	}{asn1.RawValue{Tag: asn1.TagInteger, Bytes: modulus}, 65537})
	if err != nil {
		t.Fatal(err)
	}
	type algorithm struct {
		OID  asn1.ObjectIdentifier
		Null asn1.RawValue
	}
	der, err := asn1.Marshal(struct {
		Algorithm algorithm
		Key       asn1.BitString
	}{algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, asn1.NullRawValue}, asn1.BitString{Bytes: inner, BitLength: 8 * len(inner)}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The first bytes of the statement differ from those of DER, of a TLS 1.3 transcript and of a handshake message.
func TestStatementCannotBeConfused(t *testing.T) {
	statement := pki.CompromiseStatement(domain, pki.HashSPKI(nil))
	if statement[0] == 0x30 || statement[0] == ' ' || statement[0] < 0x20 || len(statement) <= 64 {
		t.Errorf("the statement begins with %x, and has %d bytes", statement[0], len(statement))
	}
}
