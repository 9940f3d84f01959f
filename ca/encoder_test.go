package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

// Every certificate equals, byte for byte, what crypto/x509 creates from its parsed content.
func TestCertificatesAreEncodedAsByX509(t *testing.T) {
	w := newWorld(t)
	all := profiles(t)
	for _, subject := range []string{"uid", "common_name", "none"} {
		all[subject] = profile(t, func(c *ca.ProfileConfig) { c.Subject = subject })
	}
	a := w.openConfigured(t, w.store.CA(), time.Now, all, 1)
	defer closeAuthority(t, a)
	// A key belongs to one identity, so each identity gets its own. The RSA keys have random moduli, because real ones
	// take a second.
	keys := []func(*testing.T) crypto.PublicKey{
		func(t *testing.T) crypto.PublicKey { return newKey(t, elliptic.P256()).Public() },
		func(t *testing.T) crypto.PublicKey { return newKey(t, elliptic.P384()).Public() },
		func(t *testing.T) crypto.PublicKey { return newEd25519(t) },
		func(t *testing.T) crypto.PublicKey { return newModulus(t) },
	}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		subject := rapid.SampledFrom([]string{"uid", "common_name", "none"}).Draw(rt, "subject")
		paths := []string{"a", "a_b/C.d-1", strings.Repeat("x", 60)}
		if subject != "common_name" {
			paths = append(paths, strings.Repeat("long/", 20)+"x", strings.Repeat("y", 2000))
		}
		path := rapid.SampledFrom(paths).Draw(rt, "path")
		id := w.register(t, fmt.Sprintf("%s/%d", path, n))
		key := rapid.SampledFrom(keys).Draw(rt, "key")(t)
		req := ca.Request{
			RequestID: requestID(t), Identity: id.ID, Profile: w.profile(t, subject), Key: key,
			Lifetime: time.Duration(rapid.IntRange(0, 30*24*3600).Draw(rt, "lifetime")) * time.Second,
			Actor:    pki.ActorCommand("test"),
		}
		for i := range rapid.IntRange(0, 3).Draw(rt, "DNS names") {
			req.Names.DNS = append(req.Names.DNS, fmt.Sprintf("n%d.fleet.example", i))
		}
		for _, ip := range []string{"192.0.2.1", "2001:db8::1"}[:rapid.IntRange(0, 2).Draw(rt, "addresses")] {
			req.Names.IPs = append(req.Names.IPs, netip.MustParseAddr(ip))
		}
		req.Guard = pki.Guard{Identity: id.ID, Revision: id.Revision, Key: hashKey(t, key)}
		c, err := issue(t.Context(), a, req)
		if err != nil {
			rt.Fatal(err)
		}
		sameAsX509(rt, c.DER, w.issuer.Certificate)
	})
}

// Times from 2050 on are encoded as GeneralizedTime (RFC 5280 section 4.1.2.5).
func TestTimesAfter2049(t *testing.T) {
	for _, at := range []time.Time{
		time.Date(2049, 12, 31, 23, 59, 58, 0, time.UTC), time.Date(2049, 12, 31, 23, 0, 0, 0, time.UTC), time.Date(2050, 1, 1, 0, 0, 1, 0, time.UTC),
	} {
		w := newWorldFor(t, 30*365*24*time.Hour, func(*ceremony.SignSpec) {})
		a := w.openAt(t, w.store.CA(), func() time.Time { return at })
		req := w.request(t)
		req.Lifetime = time.Hour
		c, err := issue(t.Context(), a, req)
		if err != nil {
			t.Fatal(err)
		}
		sameAsX509(t, c.DER, w.issuer.Certificate)
		closeAuthority(t, a)
	}
}

// In partitioned profiles the URLs of the CRLs differ between certificates. They are still encoded as by crypto/x509.
// The freshest CRL, which crypto/x509 does not support, has the form of CRL distribution points (RFC 5280 section
// 4.2.1.15).
func TestPartitionsAreEncodedAsByX509(t *testing.T) {
	w := newWorld(t)
	issuer := pki.IssuerOf(w.issuer.Certificate)
	for name, change := range map[string]func(*ca.ProfileConfig){
		"with a delta":    func(c *ca.ProfileConfig) { c.DeltaCRLURL = "{public_url}/crl/{issuer}/{partition}-delta.crl" },
		"without a delta": func(*ca.ProfileConfig) {},
		"without OCSP":    func(c *ca.ProfileConfig) { c.OCSPURL, c.CAURL = "", "" },
	} {
		t.Run(name, func(t *testing.T) {
			p := profile(t, func(c *ca.ProfileConfig) {
				c.CRLURL = "{public_url}/crl/{issuer}/{partition}.crl"
				change(c)
			})
			journal := &partitionJournal{Journal: w.store.CA()}
			a := w.openWith(t, journal, p, 1000)
			defer closeAuthority(t, a)
			for range 20 {
				c, err := issue(t.Context(), a, w.request(t))
				if err != nil {
					t.Fatal(err)
				}
				sameAsX509(t, c.DER, w.issuer.Certificate)
				cert, partition := parse(t, c.DER), journal.partition(t, c.Ref)
				url, delta := p.CRLPoint(issuer, partition)
				if want := fmt.Sprintf("%s/crl/%s/%d.crl", publicURL, issuer.Short(), partition); url != want || len(cert.CRLDistributionPoints) != 1 || cert.CRLDistributionPoints[0] != want {
					t.Errorf("the certificate names %v, the profile %s, want %s", cert.CRLDistributionPoints, url, want)
				}
				checkFreshest(t, cert, delta, name == "with a delta")
			}
		})
	}
}

// checkFreshest checks the freshest CRL of a certificate. Its URL must be encoded as crypto/x509 encodes CRL
// distribution points.
func checkFreshest(t *testing.T, cert *x509.Certificate, delta string, wanted bool) {
	t.Helper()
	at := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidFreshestCRL) })
	if !wanted {
		if at >= 0 || delta != "" {
			t.Errorf("the certificate or its profile has a delta CRL: %q", delta)
		}
		return
	}
	if at < 0 || cert.Extensions[at].Critical {
		t.Fatal("the certificate has no freshest CRL, or a critical one")
	}
	key := newKey(t, elliptic.P256())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), CRLDistributionPoints: []string{delta}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if want := parse(t, der).Extensions; !strings.HasSuffix(delta, "-delta.crl") || !bytes.Equal(cert.Extensions[at].Value, want[len(want)-1].Value) {
		t.Errorf("the freshest CRL is %x, crypto/x509 writes %x for %s",
			cert.Extensions[at].Value, want[len(want)-1].Value, delta)
	}
}

// unreadByX509 lists the extensions that crypto/x509 neither parses nor creates.
var unreadByX509 = []asn1.ObjectIdentifier{oidFreshestCRL, oidNoRevAvail}

var (
	oidFreshestCRL = asn1.ObjectIdentifier{2, 5, 29, 46}
	oidNoRevAvail  = asn1.ObjectIdentifier{2, 5, 29, 56}
)

// sameAsX509 lets crypto/x509 create the certificate again from its parsed content, and compares the two.
func sameAsX509(t rapid.TB, der []byte, parent *x509.Certificate) {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("%x does not parse: %v", der, err)
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		t.Fatal(err)
	}
	template := *cert
	template.RawSubject = nil // have the subject encoded again
	template.Subject = pkix.Name{ExtraNames: cert.Subject.Names}
	for _, e := range cert.Extensions {
		if slices.ContainsFunc(unreadByX509, e.Id.Equal) {
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signs := *parent
	signs.PublicKey = key.Public()
	again, err := x509.CreateCertificate(rand.Reader, &template, &signs, cert.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.ParseCertificate(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(cert.RawTBSCertificate, want.RawTBSCertificate) {
		t.Fatalf("the certificate is\n%x\nbut crypto/x509 creates\n%x", cert.RawTBSCertificate, want.RawTBSCertificate)
	}
}

func hashKey(t testing.TB, pub crypto.PublicKey) pki.KeyHash {
	t.Helper()
	h, err := pki.HashKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func newEd25519(t testing.TB) ed25519.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

func newModulus(t testing.TB) *rsa.PublicKey {
	t.Helper()
	one, err := rand.Prime(rand.Reader, 512)
	if err != nil {
		t.Fatal(err)
	}
	n := new(big.Int).Lsh(one, 3072-512) // the next line makes this 3072 bits, and odd
	return &rsa.PublicKey{N: n.Add(n, one), E: 65537}
}
