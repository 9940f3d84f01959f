package ceremony_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca/ceremony"
)

// accepted says which of three verifiers accept a leaf under the issuing CA.
type accepted struct{ golang, openssl, gnutls bool }

func (p testPKI) verify(t *testing.T, c *x509.Certificate) accepted {
	t.Helper()
	p.write(t, "leaf.pem", "CERTIFICATE", c.Raw)
	p.write(t, "chain.pem", "CERTIFICATE", c.Raw, p.sub.Raw, p.root.Raw)
	roots, subs := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(p.root)
	subs.AddCert(p.sub)
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: subs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	var invalid x509.CertificateInvalidError
	if err != nil && (!errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName) {
		t.Errorf("Go refuses %v for another reason: %v", c.URIs, err)
	}
	v := accepted{golang: err == nil}
	out, err := p.run(t, "openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "sub.pem", "leaf.pem")
	if v.openssl = err == nil; !v.openssl && !strings.Contains(out, "error 47") { // X509_V_ERR_PERMITTED_VIOLATION
		t.Errorf("OpenSSL refuses %v for another reason:\n%s", c.URIs, out)
	}
	out, err = p.run(t, "certtool", "--verify-chain", "--infile", "chain.pem")
	v.gnutls = err == nil && strings.Contains(out, "Chain verification output: Verified.")
	return v
}

// RFC 5280 section 4.2.1.10 lets a URI constraint name one host. The test pins how verifiers apply it, because the
// documentation describes it. If a line fails after an upgrade, correct the comment of Sign, too. GnuTLS only has to
// accept valid names, because whether it checks constraints of URIs depends on its version.
func TestTrustDomainConstraint(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), func(s *ceremony.SignSpec) { s.Constrain = true })
	p.expect(t, "URI: fleet.example", "certtool", "-i", "--infile", "sub.pem")
	for uri, want := range map[string]accepted{
		"spiffe://fleet.example/device/42":     {true, true, true},
		"spiffe://fleet.example/brevet/server": {true, true, true},
		"spiffe://other.example/device/42":     {false, false, false},
		"spiffe://example/device/42":           {false, false, false},
		"spiffe://notfleet.example/device/42":  {false, false, false},
		"spiffe://fleet.example.com/device/42": {false, false, false},
		"spiffe://sub.fleet.example/device/42": {true, false, false}, // so relying parties must compare the trust domain
	} {
		got := p.verify(t, leaf(t, p.sub, p.subKey, uri))
		if got.golang != want.golang || got.openssl != want.openssl || want.gnutls && !got.gnutls {
			t.Errorf("%s: %+v, want %+v", uri, got, want)
		}
	}
}

func TestConstraintOfEveryFormOfTrustDomain(t *testing.T) {
	for _, td := range []string{"plant-7.north.fleet.example", "1fleet.example", "fleet.e1"} {
		p := build(t, ecPair(elliptic.P256()), func(s *ceremony.SignSpec) { s.Constrain, s.TrustDomain = true, td })
		lintCertificate(t, "issuing CA of "+td, p.sub)
		if got := p.verify(t, leaf(t, p.sub, p.subKey, "spiffe://"+td+"/device/42")); got != (accepted{true, true, true}) {
			t.Errorf("%s: %+v", td, got)
		}
		if got := p.verify(t, leaf(t, p.sub, p.subKey, "spiffe://x"+td+"/device/42")); got.golang || got.openssl {
			t.Errorf("x%s under %s: %+v", td, td, got)
		}
	}
}

func TestPermittedDNS(t *testing.T) {
	const uri = "spiffe://fleet.example/server/1"
	open := build(t, ecPair(elliptic.P256()), nil)
	if got := open.verify(t, leaf(t, open.sub, open.subKey, uri, "www.other.example")); got != (accepted{true, true, true}) {
		t.Errorf("without DNS domains: %+v", got)
	}
	p := build(t, ecPair(elliptic.P256()), func(s *ceremony.SignSpec) {
		s.Constrain, s.PermittedDNS = true, []string{"fleet.example", "plant.example"}
	})
	lintCertificate(t, "issuing CA", p.sub)
	for dns, want := range map[string]bool{
		"fleet.example": true, "ca.fleet.example": true, "a.b.plant.example": true, "other.example": false, "xfleet.example": false,
	} {
		if got := p.verify(t, leaf(t, p.sub, p.subKey, uri, dns)); got != (accepted{want, want, want}) {
			t.Errorf("%s: %+v, want %v of all", dns, got, want)
		}
	}
}

func TestPathLengthIsEnforced(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	_, rogueKey := ecPair(elliptic.P256())()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "one CA too many"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, p.sub, rogueKey.Public(), p.subKey)
	if err != nil {
		t.Fatal(err)
	}
	rogue := parse(t, der)
	c := leaf(t, rogue, rogueKey, "spiffe://fleet.example/device/42")
	p.write(t, "leaf.pem", "CERTIFICATE", c.Raw)
	p.write(t, "between.pem", "CERTIFICATE", rogue.Raw, p.sub.Raw)
	p.write(t, "chain.pem", "CERTIFICATE", c.Raw, rogue.Raw, p.sub.Raw, p.root.Raw)
	out, err := p.run(t, "openssl", "verify", "-CAfile", "root.pem", "-untrusted", "between.pem", "leaf.pem")
	if err == nil || !strings.Contains(out, "error 25") { // X509_V_ERR_PATH_LENGTH_EXCEEDED
		t.Errorf("OpenSSL: %v\n%s", err, out)
	}
	if out, err := p.run(t, "certtool", "--verify-chain", "--infile", "chain.pem"); err == nil {
		t.Errorf("GnuTLS accepts it:\n%s", out)
	}
	roots, subs := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(p.root)
	subs.AddCert(p.sub)
	subs.AddCert(rogue)
	_, err = c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: subs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.TooManyIntermediates {
		t.Errorf("Go: %v", err)
	}
}
