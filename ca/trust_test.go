package ca_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

// generation is a root with an issuing CA.
type generation struct {
	root    *x509.Certificate
	rootKey crypto.Signer
	issuing ca.IssuingCA
}

func newGeneration(t *testing.T, name string, lifetime time.Duration) generation {
	t.Helper()
	now := time.Now().Add(-time.Minute)
	g := generation{rootKey: newKey(t, elliptic.P256())}
	subjectOf := func(text string) ceremony.Subject {
		s, err := ceremony.ParseSubject(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	der, err := ceremony.Root(g.rootKey, ceremony.RootSpec{Subject: subjectOf("CN=Root " + name), Lifetime: lifetime, PathLength: 2, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	g.root = parse(t, der)
	key := newKey(t, elliptic.P256())
	csr, err := ceremony.Request(key, ceremony.RequestSpec{Subject: subjectOf("CN=Issuing " + name)})
	if err != nil {
		t.Fatal(err)
	}
	der, err = ceremony.Sign(g.root, g.rootKey, csr, ceremony.SignSpec{Lifetime: lifetime / 2, TrustDomain: "fleet.example", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if g.issuing, err = ca.NewIssuingCA(parse(t, der), key, []*x509.Certificate{g.root}); err != nil {
		t.Fatal(err)
	}
	return g
}

// certifies returns the cross-certificate that the root signs for another one.
func (g generation) certifies(t *testing.T, other generation, lifetime time.Duration) *x509.Certificate {
	t.Helper()
	der, err := ceremony.CrossSign(g.root, g.rootKey, other.root, ceremony.CrossSpec{TrustDomain: "fleet.example", Lifetime: lifetime, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

// mustTrust fails the test unless a Trust has these roots and CAs below them.
func mustTrust(t *testing.T, when string, trust *ca.Trust, roots, below []*x509.Certificate) {
	t.Helper()
	gotRoots, gotBelow := trust.Bundle()
	for what, c := range map[string]struct {
		got  [][]byte
		want []*x509.Certificate
	}{"roots": {gotRoots, roots}, "CAs below them": {gotBelow, below}} {
		for _, cert := range c.want {
			if !slices.ContainsFunc(c.got, func(der []byte) bool { return string(der) == string(cert.Raw) }) {
				t.Errorf("%s: %s is not among the %s", when, cert.Subject, what)
			}
		}
		if len(c.got) != len(c.want) {
			t.Errorf("%s: %d %s, want %d", when, len(c.got), what, len(c.want))
		}
	}
}

// The trust bundle follows the steps of a change of the root.
func TestTrustDuringChangeOfRoot(t *testing.T) {
	const year = 365 * 24 * time.Hour
	old, next := newGeneration(t, "G1", 10*year), newGeneration(t, "G2", 20*year)
	nextByOld, oldByNext := old.certifies(t, next, year), next.certifies(t, old, 0)
	now := time.Now()
	trust := func(cas, cross []*x509.Certificate, retired ...pki.IssuerID) *ca.Trust {
		return ca.NewTrust(ca.TrustConfig{CAs: cas, Retired: retired, Cross: cross, Clock: func() time.Time { return now }})
	}
	type certs = []*x509.Certificate
	issuingOld, issuingNext, cross := old.issuing.Certificate, next.issuing.Certificate, certs{nextByOld, oldByNext}

	before := trust(certs{old.root, issuingOld}, nil)
	mustTrust(t, "before the change", before, certs{old.root}, certs{issuingOld})
	if before.Revision() != sha256.Sum256(old.root.Raw) {
		t.Error("the revision is not the hash of the root")
	}
	advance := trust(certs{old.root, issuingOld, next.root}, cross)
	mustTrust(t, "with the new root", advance, certs{old.root, next.root}, certs{issuingOld, nextByOld, oldByNext})
	overlap := trust(certs{old.root, issuingOld, next.root, issuingNext}, cross, pki.IssuerOf(issuingOld))
	mustTrust(t, "with the new issuing CA", overlap, certs{old.root, next.root}, certs{issuingOld, issuingNext, nextByOld, oldByNext})
	if advance.Revision() == before.Revision() || advance.Revision() != overlap.Revision() {
		t.Error("the revision does not follow the roots")
	}
	other := trust(certs{issuingNext, next.root, old.root}, nil)
	if other.Revision() != overlap.Revision() {
		t.Error("the revision depends on the order of installation, or on other certificates than the roots")
	}
	retired := trust(certs{old.root, issuingOld, next.root, issuingNext}, cross, pki.IssuerOf(issuingOld), pki.IssuerOf(old.root))
	mustTrust(t, "with the old root retired", retired, certs{next.root}, certs{issuingNext})
	if !retired.Has(issuingOld.RawSubject) || !retired.Has(issuingNext.RawSubject) || retired.Has(old.issuing.Certificate.RawIssuer[1:]) {
		t.Error("the subjects of the CAs differ from those that are installed")
	}
	if roots := retired.RootsWith(old.root); len(roots) != 2 || len(overlap.RootsWith(old.root)) != 2 {
		t.Errorf("%d roots for a certificate under the retired root, want 2", len(roots))
	}
	if c, _ := retired.CrossOf(next.root); c != nil {
		t.Errorf("cross-certificates of a retired root: %d", len(c))
	}

	now = now.Add(2 * year)
	mustTrust(t, "after the end of a cross-certificate", overlap, certs{old.root, next.root}, certs{issuingOld, issuingNext, oldByNext})
	now = now.Add(9 * year)
	mustTrust(t, "after the end of the old root", overlap, certs{next.root}, nil)
	if overlap.Revision() != retired.Revision() {
		t.Error("an expired root differs from a retired one")
	}
	now = now.Add(20 * year)
	mustTrust(t, "after the end of all roots", overlap, certs{old.root, next.root}, nil)
}

// A relying party gets the trust bundle at one step of a change of the root, like a client that speaks only EST, and is
// sent a chain at another step. Only two parties refuse the chain: the one that had the trust bundle of before the
// change until the old root was retired, and the one that has the trust bundle of after the change, if the chain is of
// before.
func TestTrustBundlesVerifyChainsOfOtherSteps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	type certs = []*x509.Certificate
	old, next := newGeneration(t, "G1", 10*year), newGeneration(t, "G2", 20*year)
	cross := certs{old.certifies(t, next, 0), next.certifies(t, old, 0)}
	both := certs{old.root, old.issuing.Certificate, next.root, next.issuing.Certificate}
	oldRoot, oldIssuing := pki.IssuerOf(old.root), old.issuing.ID
	steps := []struct {
		what    string
		config  ca.TrustConfig
		current generation
	}{
		{"before", ca.TrustConfig{CAs: both[:2]}, old},
		{"the new root is installed", ca.TrustConfig{CAs: both[:3], Cross: cross}, old},
		{"the new issuing CA is installed", ca.TrustConfig{CAs: both, Cross: cross}, next},
		{"the old issuing CA is retired", ca.TrustConfig{CAs: both, Cross: cross, Retired: []pki.IssuerID{oldIssuing}}, next},
		{"the old root is retired", ca.TrustConfig{CAs: both, Cross: cross, Retired: []pki.IssuerID{oldIssuing, oldRoot}}, next},
	}
	for i := range steps {
		steps[i].config.Clock = time.Now
	}
	before, after := 0, len(steps)-1
	for i, had := range steps {
		roots := x509.NewCertPool()
		ders, _ := ca.NewTrust(had.config).Bundle()
		for _, der := range ders {
			roots.AddCert(parse(t, der))
		}
		for j, sent := range steps {
			further, _ := ca.NewTrust(sent.config).CrossOf(sent.current.root)
			chain := x509.NewCertPool()
			for _, c := range further {
				chain.AddCert(c)
			}
			_, err := sent.current.issuing.Certificate.Verify(x509.VerifyOptions{
				Roots: roots, Intermediates: chain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			})
			if refused := i == before && j == after || i == after && j == before; (err != nil) != refused {
				t.Errorf("the trust bundle of %q, and the chain of %q: %v", had.what, sent.what, err)
			}
		}
	}
}

// The chain of a certificate ends with the cross-certificates of its root.
func TestChainHasCrossCertificates(t *testing.T) {
	const year = 365 * 24 * time.Hour
	w := newWorld(t)
	old, next := newGeneration(t, "G1", 10*year), newGeneration(t, "G2", 20*year)
	nextByOld, oldByNext := old.certifies(t, next, 0), next.certifies(t, old, 0)
	config := ca.Config{
		TrustDomain: "fleet.example", IssuingCAs: []ca.IssuingCA{old.issuing, next.issuing}, Partitions: 1, Journal: w.store.CA(),
		Observer: w.observed, Meter: noMeter{}, Clock: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Trust: ca.NewTrust(ca.TrustConfig{
			CAs:   []*x509.Certificate{old.root, old.issuing.Certificate, next.root, next.issuing.Certificate},
			Cross: []*x509.Certificate{nextByOld, oldByNext}, Clock: time.Now,
		}),
	}
	a, err := ca.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAuthority(t, a)
	for _, c := range []struct {
		of    generation
		cross *x509.Certificate
	}{{old, oldByNext}, {next, nextByOld}} {
		chain, root, err := a.Chain(c.of.issuing.ID)
		if err != nil || !root.Equal(c.of.root) || len(chain) != 2 || !chain[0].Equal(c.of.issuing.Certificate) || !chain[1].Equal(c.cross) {
			t.Errorf("%s: %d certificates under %s, %v: want its own and the cross-certificate", c.of.issuing.Certificate.Subject, len(chain), root.Subject, err)
		}
	}
	if len(old.issuing.Chain) != 1 {
		t.Error("Chain changed the issuing CA")
	}
}
