package ceremony_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

const (
	year        = 365 * 24 * time.Hour
	trustDomain = "fleet.example"
)

// keyPair returns the keys of a root and an issuing CA. RSA keys, which are slow to generate, are shared by all tests.
type keyPair func() (root, sub crypto.Signer)

func ecPair(curve elliptic.Curve) keyPair {
	return func() (crypto.Signer, crypto.Signer) {
		return must(ecdsa.GenerateKey(curve, rand.Reader)), must(ecdsa.GenerateKey(curve, rand.Reader))
	}
}

func rsaPair(bits int) keyPair {
	return sync.OnceValues(func() (crypto.Signer, crypto.Signer) {
		return must(rsa.GenerateKey(rand.Reader, bits)), must(rsa.GenerateKey(rand.Reader, bits))
	})
}

func edPair() (crypto.Signer, crypto.Signer) {
	_, root, err := ed25519.GenerateKey(rand.Reader)
	_, sub, err2 := ed25519.GenerateKey(rand.Reader)
	if err != nil || err2 != nil {
		panic("no randomness")
	}
	return root, sub
}

func must[K crypto.Signer](key K, err error) crypto.Signer {
	if err != nil {
		panic(err)
	}
	return key
}

// testPKI is a root and an issuing CA made in two ceremonies, with their files.
type testPKI struct {
	dir             string
	rootKey, subKey crypto.Signer
	root, sub       *x509.Certificate
	request         []byte
}

func rootSpec(t *testing.T) ceremony.RootSpec {
	return ceremony.RootSpec{Subject: subject(t, "CN=Fleet Root G1,O=Example"), Lifetime: 20 * year, PathLength: 1, Now: time.Now()}
}

func signSpec() ceremony.SignSpec {
	return ceremony.SignSpec{
		Lifetime: 5 * year, TrustDomain: trustDomain, CRLURL: "http://ca.fleet.example/root.crl",
		IssuerURL: "http://ca.fleet.example/root.cer", Now: time.Now(),
	}
}

func build(t *testing.T, keys keyPair, edit func(*ceremony.SignSpec)) testPKI {
	t.Helper()
	p := testPKI{dir: t.TempDir()}
	p.rootKey, p.subKey = keys()
	der, err := ceremony.Root(p.rootKey, rootSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	p.root = parse(t, der)
	p.request, err = ceremony.Request(p.subKey, ceremony.RequestSpec{Subject: subject(t, "CN=Fleet Issuing CA G1,O=Example")})
	if err != nil {
		t.Fatal(err)
	}
	spec := signSpec()
	if edit != nil {
		edit(&spec)
	}
	if der, err = ceremony.Sign(p.root, p.rootKey, p.request, spec); err != nil {
		t.Fatal(err)
	}
	p.sub = parse(t, der)
	p.write(t, "root.pem", "CERTIFICATE", p.root.Raw)
	p.write(t, "sub.pem", "CERTIFICATE", p.sub.Raw)
	p.write(t, "request.pem", "CERTIFICATE REQUEST", p.request)
	return p
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (p testPKI) write(t *testing.T, name, kind string, ders ...[]byte) {
	t.Helper()
	var b []byte
	for _, der := range ders {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	if err := os.WriteFile(filepath.Join(p.dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs an external tool in the directory of the files.
func (p testPKI) run(t *testing.T, tool string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing: run deploy/setup.sh --test", tool)
	}
	cmd := exec.Command(tool, args...)
	cmd.Dir = p.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p testPKI) expect(t *testing.T, want, tool string, args ...string) {
	t.Helper()
	if out, err := p.run(t, tool, args...); err != nil || !strings.Contains(out, want) {
		t.Errorf("%s %s: %v, want %q in\n%s", tool, strings.Join(args, " "), err, want, out)
	}
}

// leaf issues a leaf with the given names under a CA with crypto/x509, without Brevet's checks.
func leaf(t *testing.T, issuer *x509.Certificate, key crypto.Signer, uri string, dns ...string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "leaf"}, DNSNames: dns,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func registry(t *testing.T) lint.Registry {
	t.Helper()
	r, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func checkLints(t *testing.T, what string, results *zlint.ResultSet) {
	t.Helper()
	ran := 0
	for name, r := range results.Results {
		if r.Status >= lint.Pass {
			ran++
		}
		if r.Status > lint.Notice {
			t.Errorf("zlint on the %s: %s is %s: %s", what, name, r.Status, r.Details)
		}
	}
	if ran == 0 {
		t.Errorf("zlint on the %s ran no lint", what)
	}
}

func lintCertificate(t *testing.T, what string, c *x509.Certificate) {
	t.Helper()
	z, err := zx509.ParseCertificate(c.Raw)
	if err != nil {
		t.Fatalf("zcrypto cannot parse the %s: %v", what, err)
	}
	checkLints(t, what, zlint.LintCertificateEx(z, registry(t)))
}

func TestEveryAlgorithm(t *testing.T) {
	for name, c := range map[string]struct {
		keys      keyPair
		algorithm x509.SignatureAlgorithm
		text      string
	}{
		"P-256":    {ecPair(elliptic.P256()), x509.ECDSAWithSHA256, "ECDSA P-256"},
		"P-384":    {ecPair(elliptic.P384()), x509.ECDSAWithSHA384, "ECDSA P-384"},
		"P-521":    {ecPair(elliptic.P521()), x509.ECDSAWithSHA512, "ECDSA P-521"},
		"RSA-3072": {rsaPair(3072), x509.SHA256WithRSA, "RSA 3072 bits, exponent 65537"},
		"RSA-4096": {rsaPair(4096), x509.SHA384WithRSA, "RSA 4096 bits, exponent 65537"},
		"Ed25519":  {edPair, x509.PureEd25519, "Ed25519"},
	} {
		t.Run(name, func(t *testing.T) {
			p := build(t, c.keys, nil)
			checkProfile(t, p, c.algorithm)
			lintCertificate(t, "root", p.root)
			lintCertificate(t, "issuing CA", p.sub)
			checkCRL(t, p, c.algorithm)
			checkTools(t, p)
			if text := (ceremony.Transcript{Certificate: p.root}).String(); !strings.Contains(text, "Key             "+c.text+"\n") {
				t.Errorf("the transcript does not contain the key %s:\n%s", c.text, text)
			}
		})
	}
}

func TestURLsAreOptional(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), func(s *ceremony.SignSpec) { s.CRLURL, s.IssuerURL = "", "" })
	if len(p.sub.CRLDistributionPoints) != 0 || len(p.sub.IssuingCertificateURL) != 0 {
		t.Errorf("links %v, %v", p.sub.CRLDistributionPoints, p.sub.IssuingCertificateURL)
	}
	lintCertificate(t, "issuing CA", p.sub)
	checkTools(t, p)
}

// checkProfile checks what RFC 5280 sections 4.1 and 4.2 require of a CA certificate.
func checkProfile(t *testing.T, p testPKI, algorithm x509.SignatureAlgorithm) {
	t.Helper()
	for what, c := range map[string]*x509.Certificate{"root": p.root, "issuing CA": p.sub} {
		if c.SignatureAlgorithm != algorithm {
			t.Errorf("%s: signed with %v, want %v", what, c.SignatureAlgorithm, algorithm)
		}
		if len(c.SerialNumber.Bytes()) != pki.SerialSize {
			t.Errorf("%s: serial number %X", what, c.SerialNumber)
		}
		if c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(c.ExtKeyUsage) > 0 {
			t.Errorf("%s: key usage %b, extended %v", what, c.KeyUsage, c.ExtKeyUsage)
		}
		if !c.IsCA || !c.BasicConstraintsValid || len(c.SubjectKeyId) == 0 {
			t.Errorf("%s: CA %v, subject key identifier %x", what, c.IsCA, c.SubjectKeyId)
		}
		for _, e := range c.Extensions {
			id := e.Id.String()
			if want := id == "2.5.29.15" || id == "2.5.29.19"; e.Critical != want {
				t.Errorf("%s: extension %s critical %v", what, id, e.Critical)
			}
		}
	}
	if p.root.MaxPathLen != 1 || p.sub.MaxPathLen != 0 || !p.sub.MaxPathLenZero {
		t.Errorf("path lengths %d and %d", p.root.MaxPathLen, p.sub.MaxPathLen)
	}
	if string(p.sub.AuthorityKeyId) != string(p.root.SubjectKeyId) {
		t.Errorf("authority key identifier %x, the root's is %x", p.sub.AuthorityKeyId, p.root.SubjectKeyId)
	}
	for _, c := range []*x509.Certificate{p.root, p.sub} {
		if slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.30" }) {
			t.Errorf("%s has name constraints", c.Subject)
		}
	}
	if got := p.sub.Subject.String(); got != "CN=Fleet Issuing CA G1,O=Example" {
		t.Errorf("subject %s", got)
	}
}

func checkTools(t *testing.T, p testPKI) {
	t.Helper()
	c := leaf(t, p.sub, p.subKey, "spiffe://fleet.example/device/42")
	p.write(t, "leaf.pem", "CERTIFICATE", c.Raw)
	p.write(t, "chain.pem", "CERTIFICATE", c.Raw, p.sub.Raw, p.root.Raw)
	p.expect(t, "verify OK", "openssl", "req", "-in", "request.pem", "-noout", "-verify")
	p.expect(t, "root.pem: OK", "openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "root.pem")
	p.expect(t, "sub.pem: OK", "openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "sub.pem")
	p.expect(t, "leaf.pem: OK", "openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "sub.pem", "leaf.pem")
	p.expect(t, "Chain verification output: Verified.", "certtool", "--verify-chain", "--infile", "chain.pem")
	p.expect(t, "Path Length Constraint: 1", "certtool", "-i", "--infile", "root.pem")
	p.expect(t, "Self signature: verified", "certtool", "--crq-info", "--infile", "request.pem")
}

func checkCRL(t *testing.T, p testPKI, algorithm x509.SignatureAlgorithm) {
	t.Helper()
	now := time.Now()
	serial, err := pki.SerialFromInt(p.sub.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ceremony.RootCRL(p.root, p.rootKey, ceremony.CRLSpec{
		Number: big.NewInt(1), NextUpdate: now.Add(180 * 24 * time.Hour), Now: now,
		Revoke: []ceremony.Revocation{{Serial: serial, Reason: pki.CACompromise, At: now.Add(-time.Hour)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if l.SignatureAlgorithm != algorithm || l.CheckSignatureFrom(p.root) != nil {
		t.Errorf("CRL: signed with %v, want %v, by the root", l.SignatureAlgorithm, algorithm)
	}
	lintCRL(t, der)
	p.write(t, "crl.pem", "X509 CRL", der)
	p.expect(t, "verify OK", "openssl", "crl", "-in", "crl.pem", "-noout", "-verify", "-CAfile", "root.pem")
	p.expect(t, serial.String(), "openssl", "crl", "-in", "crl.pem", "-noout", "-text")
	p.expect(t, "Verified.", "certtool", "--verify-crl", "--load-ca-certificate", "root.pem", "--infile", "crl.pem")
}

func lintCRL(t *testing.T, der []byte) {
	t.Helper()
	z, err := zx509.ParseRevocationList(der)
	if err != nil {
		t.Fatalf("zcrypto cannot parse the CRL: %v", err)
	}
	checkLints(t, "CRL", zlint.LintRevocationListEx(z, registry(t)))
}
