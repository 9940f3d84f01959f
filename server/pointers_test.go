package server_test

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/servertest"
)

// Certificates contain the revocation pointers of their profiles, in a form that OpenSSL can read: distribution points,
// freshest CRLs, or noRevAvail and no pointers.
func TestRevocationPointersInCertificates(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{
		Partitions: 3,
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
			t.Fatalf("the certificate contains the CRL URLs %v", cert.CRLDistributionPoints)
		}
		text := openSSLText(t, cert.Raw)
		base := cert.CRLDistributionPoints[0]
		delta := strings.TrimSuffix(base, ".crl") + "-delta.crl"
		if points, fresh, ok := strings.Cut(text, "X509v3 Freshest CRL:"); !ok || !strings.Contains(points, "URI:"+base+"\n") || !strings.Contains(fresh, "URI:"+delta+"\n") {
			t.Errorf("OpenSSL prints %s, want %s and %s", text, base, delta)
		}
	}
	// Newer versions of OpenSSL print the name of noRevAvail, and older ones its number.
	if text := openSSLText(t, w.Enrolled(t, "workload", "workload/1").Certificate.Raw); strings.Contains(text, "CRL Distribution") ||
		strings.Contains(text, "OCSP") || !regexp.MustCompile(`(?m)^\s*(2\.5\.29\.56|X509v3 No Revocation Available): *$`).MatchString(text) {
		t.Errorf("OpenSSL prints %s, want noRevAvail and no pointers", text)
	}
}

// A relying party finds a revocation in the CRL and the delta CRL at the URLs in the certificate. This still holds
// after the server restarts with fewer partitions and other URLs.
func TestCertificatesLeadToTheirCRLs(t *testing.T) {
	t.Parallel()
	parted := func(host string, partitions int) servertest.Options {
		return servertest.Options{Partitions: partitions, Profile: func(name string, c *ca.ProfileConfig) {
			if name == "device" {
				c.CRLURL, c.DeltaCRLURL = host+"/crl/{issuer}/{partition}.crl", host+"/crl/{issuer}/{partition}-delta.crl"
			}
		}}
	}
	w := servertest.New(t, ground, parted("{public_url}", 8))
	var early []*x509.Certificate
	for _, path := range []string{"device/1", "device/2", "device/3"} {
		early = append(early, w.Enrolled(t, "device", path).Certificate)
	}
	w.Revoke(t, early[0], "keyCompromise")
	certificateVerifies(t, w, early[0], false)
	w.Restart(t, parted("http://mirror.fleet.example", 1))
	late := w.Enrolled(t, "device", "device/4").Certificate
	w.Revoke(t, early[1], "superseded")
	for i, c := range append(early, late) {
		certificateVerifies(t, w, c, i > 1)
	}
	w.Revoke(t, late, "superseded")
	certificateVerifies(t, w, late, false)
}

// certificateVerifies verifies a certificate in OpenSSL with the CRL and the delta CRL at the URLs in the certificate.
// If the certificate should be revoked (good is false), it repeats this until OpenSSL reports so: publishing a
// revocation may take a second.
func certificateVerifies(t *testing.T, w *servertest.World, c *x509.Certificate, good bool) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		var text []byte
		for _, b := range blocks {
			text = append(text, pem.EncodeToMemory(b)...)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	leaf := write("leaf.pem", &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	chain := write("ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: w.Root.Raw}, &pem.Block{Type: "CERTIFICATE", Bytes: w.Issuing.Raw})
	base := servertest.Must(url.Parse(c.CRLDistributionPoints[0]))(t).Path
	want := "error 23 at 0 depth"
	if good {
		want = "leaf.pem: OK"
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		crls := write("crls.pem", &pem.Block{Type: "X509 CRL", Bytes: getHTTP(t, w, base)},
			&pem.Block{Type: "X509 CRL", Bytes: getHTTP(t, w, strings.TrimSuffix(base, ".crl")+"-delta.crl")})
		out, _ := exec.CommandContext(t.Context(), "openssl", "verify", "-crl_check", "-extended_crl", "-use_deltas",
			"-CAfile", chain, "-CRLfile", crls, leaf).CombinedOutput()
		if strings.Contains(string(out), want) {
			return
		}
		if good || time.Now().After(end) {
			t.Fatalf("with the CRLs at %s openssl prints: %s, want %s", base, out, want)
		}
	}
}

// getHTTP returns the body of a response on the HTTP port.
func getHTTP(t *testing.T, w *servertest.World, path string) []byte {
	t.Helper()
	request := servertest.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.HTTP+path, nil))(t)
	resp := servertest.Must(http.DefaultClient.Do(request))(t)
	der := servertest.Must(io.ReadAll(resp.Body))(t)
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", path, resp.Status, err)
	}
	return der
}

// openSSLText returns a certificate as text, printed by OpenSSL.
func openSSLText(t *testing.T, der []byte) string {
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
