package server_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// What profiles say of revocation is in certificates as OpenSSL reads them, and the world's judges accept them.
func TestWhereCertificatesSayTheirRevocationIs(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{
		CRL: server.CRL{Partitions: 3},
		Profile: func(name string, c *ca.ProfileConfig) {
			switch name {
			case "device":
				c.CRLURL, c.DeltaCRLURL = "{public_url}/crl/{issuer}/{partition}.crl", "{public_url}/crl/{issuer}/{partition}-delta.crl"
			case "workload":
				c.CRLURL, c.OCSPURL, c.NoRevAvail, c.MaxLifetime = "", "", true, "7d"
			}
		},
	})
	at := regexp.MustCompile(`^http://pki\.fleet\.example/crl/` + pki.IssuerOf(w.Issuing).Short() + `/([123])\.crl$`)
	for _, path := range []string{"device/1", "device/2", "device/3"} {
		cert := w.Enrolled(t, "device", path).Certificate
		if len(cert.CRLDistributionPoints) != 1 || !at.MatchString(cert.CRLDistributionPoints[0]) {
			t.Fatalf("the certificate names CRLs at %v", cert.CRLDistributionPoints)
		}
		text := openSSLReads(t, cert.Raw)
		url := cert.CRLDistributionPoints[0]
		delta := strings.TrimSuffix(url, ".crl") + "-delta.crl"
		if points, fresh, ok := strings.Cut(text, "X509v3 Freshest CRL:"); !ok || !strings.Contains(points, "URI:"+url+"\n") || !strings.Contains(fresh, "URI:"+delta+"\n") {
			t.Errorf("OpenSSL reads %s, want %s and %s", text, url, delta)
		}
	}
	// Newer ones have a name for noRevAvail, and older ones its number.
	if text := openSSLReads(t, w.Enrolled(t, "workload", "workload/1").Certificate.Raw); strings.Contains(text, "CRL Distribution") ||
		strings.Contains(text, "OCSP") || !regexp.MustCompile(`(?m)^\s*(2\.5\.29\.56|X509v3 No Revocation Available): *$`).MatchString(text) {
		t.Errorf("OpenSSL reads %s, want noRevAvail and no pointers", text)
	}
}

func openSSLReads(t *testing.T, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cert.der")
	if err := os.WriteFile(path, der, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "x509", "-inform", "DER", "-in", path, "-noout", "-text").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
