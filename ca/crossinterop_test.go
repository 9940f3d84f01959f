package ca_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// newCrossScene returns a scene in the middle of a change of the root. The TLS server is under the new root, and sends
// the cross-certificate. The scene's file of roots has the old root.
func newCrossScene(t *testing.T) (s scene, newRoot, bothRoots string) {
	t.Helper()
	const year = 365 * 24 * time.Hour
	old, next := newGeneration(t, "G1", 10*year), newGeneration(t, "G2", 20*year)
	cross := old.certifies(t, next, 0)
	key := newKey(t, elliptic.P256())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:     []*url.URL{{Scheme: "spiffe", Host: "fleet.example", Path: "/device/1"}},
		DNSNames: []string{"ca.fleet.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	issuing := next.issuing
	der, err := x509.CreateCertificate(rand.Reader, template, issuing.Certificate, key.Public(), issuing.Signer)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name+".pem") }
	s = scene{dir, at("chain"), at("key"), at("old"), at("issuing"), ""}
	writePEM(t, s.chain, "CERTIFICATE", der, issuing.Certificate.Raw, cross.Raw)
	writePEM(t, s.key, "PRIVATE KEY", pkcs8)
	writePEM(t, s.root, "CERTIFICATE", old.root.Raw)
	writePEM(t, s.issuing, "CERTIFICATE", cross.Raw, issuing.Certificate.Raw)
	newRoot, bothRoots = at("new"), at("both")
	writePEM(t, newRoot, "CERTIFICATE", next.root.Raw)
	writePEM(t, bothRoots, "CERTIFICATE", old.root.Raw, next.root.Raw)
	s.port = s.serve(t, old.root) // the server verifies the client's chain, which is the same
	return s, newRoot, bothRoots
}

// Clients with small TLS libraries have the old root, the new root, or both.
func TestSmallClientsVerifyCrossCertificates(t *testing.T) {
	s, newRoot, bothRoots := newCrossScene(t)
	mbedTLS := compiled(t, "mbedtls", "-lmbedtls", "-lmbedx509", "-lmbedcrypto")
	wolfSSL := compiled(t, "wolfssl", "-lwolfssl")
	for _, roots := range []string{s.root, newRoot, bothRoots} {
		s.root = roots
		s.mustPrint(t, "hello", mbedTLS, s.args()...)
		s.mustPrint(t, "hello", wolfSSL, append(s.args(), s.issuing)...)
	}
}

// A broker with the old root and a client with the new one accept each other.
func TestMosquittoVerifiesCrossCertificates(t *testing.T) {
	s, newRoot, _ := newCrossScene(t)
	args := []string{"-h", "127.0.0.1", "-p", s.mosquitto(t), "--cafile", newRoot, "-t", "t", "-m", "m", "-q", "1"}
	out, err := exec.CommandContext(t.Context(), "mosquitto_pub", append(args, "--cert", s.chain, "--key", s.key)...).CombinedOutput()
	if err != nil {
		t.Errorf("mosquitto_pub: %v\n%s", err, out)
	}
}
