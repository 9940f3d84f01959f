package ceremony_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"testing"

	"github.com/brevet-pki/brevet/hsm"
)

// newHSM initializes a SoftHSM of the test, and logs in to it.
func newHSM(t *testing.T, module, label string) *hsm.HSM {
	t.Helper()
	pin, err := hsm.NewPIN([]byte("ceremony-1234"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hsm.Init(t.Context(), module, label, pin, pin); err != nil {
		t.Fatal(err)
	}
	opened, err := hsm.Open(t.Context(), hsm.Config{Module: module, Label: label}, pin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
	return opened
}

// The ceremony works with keys in two HSMs. It uses them only as crypto.Signer.
func TestKeysInHSMs(t *testing.T) {
	module, err := hsm.FindSoftHSM()
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	conf, err := hsm.WriteSoftHSM(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(hsm.SoftHSMConfEnv, conf)
	rootHSM, issuingHSM := newHSM(t, module, "root"), newHSM(t, module, "issuing")
	for _, c := range []struct {
		algorithm hsm.Algorithm
		signature x509.SignatureAlgorithm
	}{
		{hsm.P256, x509.ECDSAWithSHA256}, {hsm.P384, x509.ECDSAWithSHA384}, {hsm.RSA3072, x509.SHA256WithRSA},
	} {
		t.Run(c.algorithm.String(), func(t *testing.T) {
			generate := func(h *hsm.HSM) crypto.Signer {
				key, err := h.Generate(context.Background(), "key "+c.algorithm.String(), c.algorithm)
				if err != nil {
					t.Fatal(err)
				}
				return key
			}
			p := build(t, func() (crypto.Signer, crypto.Signer) { return generate(rootHSM), generate(issuingHSM) }, nil)
			checkProfile(t, p, c.signature)
			lintCertificate(t, "root", p.root)
			lintCertificate(t, "issuing CA", p.sub)
			checkCRL(t, p, c.signature)
			checkTools(t, p)
		})
	}
}
