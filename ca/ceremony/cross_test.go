package ceremony_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

// change is a change of the root: an old root with an issuing CA, and a new root with another.
type change struct {
	old, next testPKI
	// nextByOld has the key of the new root and is signed by the old one, and oldByNext the other way round.
	nextByOld, oldByNext *x509.Certificate
}

func crossSpec() ceremony.CrossSpec {
	return ceremony.CrossSpec{
		TrustDomain: trustDomain, CRLURL: "http://ca.fleet.example/root.crl", IssuerURL: "http://ca.fleet.example/root.cer", Now: time.Now(),
	}
}

// newRoot makes a root and an issuing CA.
func newRoot(t *testing.T, keys keyPair, generation string, pathLength int, lifetime time.Duration) testPKI {
	t.Helper()
	p := testPKI{dir: t.TempDir()}
	p.rootKey, p.subKey = keys()
	p.root = parse(t, made(ceremony.Root(p.rootKey, ceremony.RootSpec{
		Subject: subject(t, "CN=Fleet Root "+generation+",O=Example"), Lifetime: lifetime, PathLength: pathLength, Now: time.Now(),
	})))
	p.request = made(ceremony.Request(p.subKey, ceremony.RequestSpec{Subject: subject(t, "CN=Fleet Issuing CA "+generation+",O=Example")}))
	p.sub = parse(t, made(ceremony.Sign(p.root, p.rootKey, p.request, signSpec())))
	return p
}

func made(der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return der
}

func newChange(t *testing.T, keys keyPair, edit func(*ceremony.CrossSpec)) change {
	t.Helper()
	c := change{old: newRoot(t, keys, "G1", 2, 20*year), next: newRoot(t, keys, "G2", 2, 30*year)}
	spec := crossSpec()
	if edit != nil {
		edit(&spec)
	}
	c.nextByOld = parse(t, made(ceremony.CrossSign(c.old.root, c.old.rootKey, c.next.root, spec)))
	c.oldByNext = parse(t, made(ceremony.CrossSign(c.next.root, c.next.rootKey, c.old.root, spec)))
	return c
}

// Relying parties with only one of the roots, or with both, accept certificates under either root.
func TestCrossCertificates(t *testing.T) {
	for name, keys := range map[string]keyPair{
		"P-256": ecPair(elliptic.P256()), "P-384": ecPair(elliptic.P384()), "RSA-3072": rsaRoot,
		"Ed25519": edPair,
	} {
		t.Run(name, func(t *testing.T) {
			c := newChange(t, keys, nil)
			lintCertificate(t, "cross-certificate", c.nextByOld)
			for what, cross := range map[string]struct {
				cert         *x509.Certificate
				signer, root testPKI
			}{
				"the new root's": {c.nextByOld, c.old, c.next}, "the old root's": {c.oldByNext, c.next, c.old},
			} {
				if pki.IssuerOf(cross.cert) != pki.IssuerOf(cross.root.root) || string(cross.cert.SubjectKeyId) != string(cross.root.root.SubjectKeyId) {
					t.Errorf("%s: it has not the subject and key of the root", what)
				}
				if end := c.old.root.NotAfter; !cross.cert.NotAfter.Equal(end) || cross.cert.MaxPathLen != 1 {
					t.Errorf("%s: notAfter %s, want %s; path length %d, want 1", what, cross.cert.NotAfter, end, cross.cert.MaxPathLen)
				}
				checkCross(t, cross.signer, cross.root, cross.cert)
			}
		})
	}
}

// rsaRoot returns new keys of a root with RSA, and of an issuing CA.
func rsaRoot() (root, sub crypto.Signer) {
	return must(rsa.GenerateKey(rand.Reader, 3072)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// checkCross verifies a leaf under a root with OpenSSL and GnuTLS, in the chain with a cross-certificate that a server
// sends.
func checkCross(t *testing.T, signer, root testPKI, cross *x509.Certificate) {
	t.Helper()
	c := leaf(t, root.sub, root.subKey, "spiffe://fleet.example/device/42")
	root.write(t, "leaf.pem", "CERTIFICATE", c.Raw)
	root.write(t, "chain.pem", "CERTIFICATE", root.sub.Raw, cross.Raw)
	root.write(t, "sent.pem", "CERTIFICATE", c.Raw, root.sub.Raw, cross.Raw)
	root.write(t, "own.pem", "CERTIFICATE", root.root.Raw)
	root.write(t, "other.pem", "CERTIFICATE", signer.root.Raw)
	root.write(t, "both.pem", "CERTIFICATE", signer.root.Raw, root.root.Raw)
	for _, roots := range []string{"own.pem", "other.pem", "both.pem"} {
		root.expect(t, "leaf.pem: OK", "openssl", "verify", "-x509_strict", "-CAfile", roots, "-untrusted", "chain.pem", "leaf.pem")
		root.expect(t, "Chain verification output: Verified.", "certtool", "--verify", "--load-ca-certificate", roots, "--infile", "sent.pem")
	}
	root.write(t, "sub.pem", "CERTIFICATE", root.sub.Raw)
	if out, err := root.run(t, "openssl", "verify", "-CAfile", "other.pem", "-untrusted", "sub.pem", "leaf.pem"); err == nil {
		t.Errorf("OpenSSL accepts a leaf under a root that it does not have, without the cross-certificate:\n%s", out)
	}
}

func TestCrossSignConstrains(t *testing.T) {
	c := newChange(t, ecPair(elliptic.P256()), func(s *ceremony.CrossSpec) {
		s.Constrain, s.PermittedDNS, s.Lifetime = true, []string{"fleet.example"}, year
	})
	if got := c.nextByOld; len(got.PermittedURIDomains) != 1 || got.PermittedURIDomains[0] != trustDomain || got.PermittedDNSDomains[0] != "fleet.example" || !got.PermittedDNSDomainsCritical {
		t.Errorf("constraints %v and %v", got.PermittedURIDomains, got.PermittedDNSDomains)
	}
	if life := c.nextByOld.NotAfter.Sub(c.nextByOld.NotBefore); life != year {
		t.Errorf("lifetime %s, want a year", life)
	}
	checkCross(t, c.old, c.next, c.nextByOld)
}

func TestCrossSignRefuses(t *testing.T) {
	keys := ecPair(elliptic.P256())
	old, next := newRoot(t, keys, "G1", 2, 20*year), newRoot(t, keys, "G2", 2, 30*year)
	namesake, short, single := newRoot(t, keys, "G1", 2, 20*year), newRoot(t, keys, "G3", 1, 20*year), newRoot(t, keys, "G4", 1, 20*year)
	forged := *next.root
	forged.Signature = namesake.root.Signature
	for name, c := range map[string]struct {
		root  testPKI
		key   crypto.Signer
		other *x509.Certificate
		edit  func(*ceremony.CrossSpec)
		rule  pki.Rule
		fix   string
	}{
		"another root's key":         {old, next.rootKey, next.root, nil, pki.RuleParent, "of the same root"},
		"an issuing CA as signer":    {testPKI{root: old.sub}, old.subKey, next.root, nil, pki.RuleParent, "path length"},
		"an issuing CA":              {old, old.rootKey, next.sub, nil, pki.RuleCertificate, "self-signed"},
		"a forged self-signature":    {old, old.rootKey, &forged, nil, pki.RuleCertificate, "self-signed"},
		"the same root":              {old, old.rootKey, old.root, nil, pki.RuleKeyReserved, "other root"},
		"a root of the same name":    {old, old.rootKey, namesake.root, nil, pki.RuleSubject, "another subject"},
		"a signer of path length 1":  {short, short.rootKey, next.root, nil, pki.RuleParent, "path length of 2"},
		"an expired root":            {old, old.rootKey, next.root, func(s *ceremony.CrossSpec) { s.Now = s.Now.Add(25 * year) }, pki.RuleParent, "clock"},
		"an expired other root":      {next, next.rootKey, old.root, func(s *ceremony.CrossSpec) { s.Now = s.Now.Add(25 * year) }, pki.RuleCertificate, ""},
		"longer than the root":       {old, old.rootKey, next.root, func(s *ceremony.CrossSpec) { s.Lifetime = 21 * year }, pki.RuleLifetime, "at most"},
		"longer than the other root": {next, next.rootKey, old.root, func(s *ceremony.CrossSpec) { s.Lifetime = 21 * year }, pki.RuleLifetime, "at most"},
		"no trust domain":            {old, old.rootKey, next.root, func(s *ceremony.CrossSpec) { s.TrustDomain = "" }, pki.RuleTrustDomain, ""},
		"an https URL":               {old, old.rootKey, next.root, func(s *ceremony.CrossSpec) { s.CRLURL = "https://x/" }, pki.RuleRequest, ""},
		"DNS without a limit":        {old, old.rootKey, next.root, func(s *ceremony.CrossSpec) { s.PermittedDNS = []string{"fleet.example"} }, pki.RuleRequest, "constrain"},
	} {
		spec := crossSpec()
		if c.edit != nil {
			c.edit(&spec)
		}
		der, err := ceremony.CrossSign(c.root.root, c.key, c.other, spec)
		refused(t, name, der, err, c.rule, c.fix)
	}
	// A path length of 1 suffices for the root that is certified.
	if cross := parse(t, made(ceremony.CrossSign(old.root, old.rootKey, single.root, crossSpec()))); cross.MaxPathLen != 1 {
		t.Errorf("path length %d", cross.MaxPathLen)
	}
}
