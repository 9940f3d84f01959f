package revocation_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// FuzzVerifyCompromise passes arbitrary keys and signatures. If one is accepted, the signature must also verify with
// crypto/x509, and the key must be encoded as in certificates.
func FuzzVerifyCompromise(f *testing.F) {
	statement := func(spki []byte) []byte { return pki.CompromiseStatement(domain, pki.HashSPKI(spki)) }
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		key := revtest.Key(f, kind)
		spki := spkiOf(f, key.Public())
		message, hash := statement(spki), crypto.Hash(0)
		if kind != "ed25519" {
			message, hash = hashOf(message), crypto.SHA256
		}
		signature, err := key.Sign(nil, message, hash)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(spki, signature)
		f.Add(spki[:len(spki)-1], signature)
		f.Add(spki, []byte{0x30, 6, 2, 1, 0, 2, 1, 0})
	}
	// With the neutral element as public key, anyone can sign without a private key.
	neutral := append([]byte{1}, make([]byte, ed25519.PublicKeySize-1)...)
	f.Add(spkiOf(f, ed25519.PublicKey(neutral)), append(neutral, make([]byte, ed25519.PublicKeySize)...))
	f.Add(hugeRSA(f), make([]byte, 1024))
	f.Fuzz(func(t *testing.T, spki, signature []byte) {
		hash, err := revocation.VerifyCompromise(domain, spki, signature)
		if err != nil {
			if r, ok := pki.AsRefusal(err); !ok || r.Rule == "" || r.Detail == "" || r.Hint == "" || !hash.IsZero() {
				t.Fatalf("%v is not a complete refusal, or has the hash %s", err, hash)
			}
			return
		}
		key, err := x509.ParsePKIXPublicKey(spki)
		if err != nil || hash != pki.HashSPKI(spki) || !bytes.Equal(spkiOf(t, key), spki) {
			t.Fatalf("%x is accepted as the key %s: %v", spki, hash, err)
		}
		// The check of a certificate's signature uses other code in the standard library.
		c := &x509.Certificate{PublicKey: key}
		for algorithm := x509.MD5WithRSA; algorithm <= x509.PureEd25519; algorithm++ {
			if c.CheckSignature(algorithm, statement(spki), signature) == nil {
				return
			}
		}
		t.Fatalf("%x is accepted as a signature by %x", signature, spki)
	})
}
