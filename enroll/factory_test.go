package enroll

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// factoryPair returns a self-signed factory certificate. The server, not the device, checks who signed it.
func factoryPair(t testing.TB, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "camera"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestUnusableFactoryCertificates(t *testing.T) {
	key, other := testKey(t), testKey(t)
	pair := factoryPair(t, key)
	agreement, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pair tls.Certificate
		says string
	}{
		"no certificate": {tls.Certificate{PrivateKey: key}, "no factory certificate"},
		"no key":         {tls.Certificate{Certificate: pair.Certificate}, "cannot sign"},
		"other key":      {tls.Certificate{Certificate: pair.Certificate, PrivateKey: other}, "does not belong"},
		"agreement key":  {tls.Certificate{Certificate: pair.Certificate, PrivateKey: agreement}, "cannot sign"},
		"no DER":         {tls.Certificate{Certificate: [][]byte{{1}}, PrivateKey: key}, "does not parse"},
	} {
		if _, err := FactoryCertificate(c.pair); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error that contains %q", name, err, c.says)
		}
	}
}

func TestFactoryKeysOfEveryType(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key       crypto.Signer
		algorithm x509.SignatureAlgorithm
	}{
		"P-256": {testKey(t), x509.ECDSAWithSHA256}, "P-384": {p384, x509.ECDSAWithSHA384},
		"RSA": {large, x509.SHA256WithRSA}, "Ed25519": {ed, x509.PureEd25519},
	} {
		pair := factoryPair(t, c.key)
		camera, err := FactoryCertificate(pair)
		if err != nil {
			t.Fatal(err)
		}
		request := pki.RequestID{}
		evidence, err := camera.Present(t.Context(), Presentation{
			TrustDomain: "fleet.example", KeyHash: pki.HashSPKI([]byte("key")), server: constant("challenge"),
		})
		if err != nil || evidence.Kind != pki.EvidenceX5C {
			t.Fatalf("%s: %v, %v", name, evidence, err)
		}
		e, err := pki.ParseX5CEvidence(evidence.Value)
		if err != nil {
			t.Fatal(err)
		}
		device, err := x509.ParseCertificate(e.Certificates[0])
		if err != nil {
			t.Fatal(err)
		}
		statement := pki.X5CStatement("fleet.example", pki.HashSPKI([]byte("key")), request, []byte("challenge"))
		if err := device.CheckSignature(c.algorithm, statement, e.Signature); err != nil || string(e.Challenge) != "challenge" {
			t.Errorf("%s: the signature does not verify with %s: %v", name, c.algorithm, err)
		}
	}
}

// constant is a Challenger with always the same challenge.
type constant string

func (c constant) Challenge(context.Context, ChallengeRequest) ([]byte, error) { return []byte(c), nil }

func TestEvidenceHidesItsSecrets(t *testing.T) {
	key := testKey(t)
	camera, err := FactoryCertificate(factoryPair(t, key))
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	secret := new(big.Int).SetBytes(scalar).String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d"} {
		if shown := fmt.Sprintf(verb, EnrollRequest{Evidence: []Evidence{camera}}); strings.Contains(shown, secret) || !strings.Contains(shown, "[x5c]") {
			t.Errorf("%s shows %s", verb, shown)
		}
	}
}
