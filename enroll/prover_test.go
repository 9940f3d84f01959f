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
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// factoryPair returns a self-signed factory certificate. The server, not the device, checks who signed it.
func factoryPair(t *testing.T, key crypto.Signer) tls.Certificate {
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
		p, err := FactoryCertificate(pair)
		if err != nil {
			t.Fatal(err)
		}
		request := pki.RequestID{}
		evidence, err := p.Prove(t.Context(), Proof{"fleet.example", request, pki.HashSPKI([]byte("key")), []byte("challenge")})
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

// CreateChallenge returns the public evidence as challenge.
func (s *testService) CreateChallenge(_ context.Context, r *brevetv1.CreateChallengeRequest) (*brevetv1.CreateChallengeResponse, error) {
	return &brevetv1.CreateChallengeResponse{Challenge: append([]byte("for "), r.GetPublicEvidence()...)}, s.fail
}

// failing is a Prover whose methods return its errors.
type failing struct{ public, prove error }

func (failing) Kind() pki.EvidenceKind                   { return pki.EvidenceX5C }
func (f failing) Public(context.Context) ([]byte, error) { return []byte("device"), f.public }
func (f failing) Prove(_ context.Context, p Proof) (pki.Evidence, error) {
	if string(p.Challenge) != "for device" {
		return pki.Evidence{}, errors.New("the challenge is " + string(p.Challenge))
	}
	return pki.Evidence{}, f.prove
}

// If the device cannot prove anything, the error is that of the device, not of the server.
func TestErrorsOfProvers(t *testing.T) {
	ca := newTestCA(t)
	address := serve(t, &testService{ca: ca}, ca.config(t, nil))
	client, request := newTestClient(t, address), enrollRequest(t, ca.token(t, "device/1"))
	broken := errors.New("the secure element does not respond")
	for name, p := range map[string]failing{"public": {public: broken}, "prove": {prove: broken}} {
		_, err := client.EnrollWith(t.Context(), request, p)
		if !errors.Is(err, broken) || strings.Contains(err.Error(), address) {
			t.Errorf("%s: got %v, want the error of the device", name, err)
		}
	}
	request.CSR = nil
	if _, err := client.EnrollWith(t.Context(), request, failing{}); err == nil || !strings.Contains(err.Error(), "certification request") {
		t.Errorf("without a CSR: %v", err)
	}
}
