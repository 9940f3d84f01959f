package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// testAuthority is a CA certificate with its key.
type testAuthority struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// newTestAuthority returns a CA that parent signed, or a root if parent is nil.
func newTestAuthority(t *testing.T, name string, parent *testAuthority) *testAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent = &testAuthority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Certificate, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testAuthority{cert, key}
}

// TestEveryInstalledRootIsTrusted installs an earlier issuing CA, whose key the server does not have, with its own
// root. Certificates of that CA must verify, so that their holders can renew them.
func TestEveryInstalledRootIsTrusted(t *testing.T) {
	oldRoot, newRoot := newTestAuthority(t, "Old Root", nil), newTestAuthority(t, "New Root", nil)
	old, current := newTestAuthority(t, "Old", oldRoot), newTestAuthority(t, "Current", newRoot)
	roots, intermediates := trusted(Config{
		Issuers: []ca.IssuingCA{{
			ID: pki.IssuerOf(current.Certificate), Certificate: current.Certificate, Chain: []*x509.Certificate{current.Certificate}, Root: newRoot.Certificate,
		}},
		Authorities: []*x509.Certificate{oldRoot.Certificate, old.Certificate, newRoot.Certificate, current.Certificate},
	})
	for _, authority := range []*testAuthority{old, current} {
		leaf := newTestAuthority(t, "Leaf", authority)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates}); err != nil {
			t.Errorf("a certificate of %s: %v", authority.Subject, err)
		}
	}
	stranger := newTestAuthority(t, "Leaf", newTestAuthority(t, "Strange Root", nil))
	if _, err := stranger.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates}); err == nil {
		t.Error("a root that is not installed is trusted")
	}
}
