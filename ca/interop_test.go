package ca_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

// scene contains the files of a CA and of a certificate for a TLS server and client. Its TLS server sends "hello" to
// each client with a valid certificate.
type scene struct{ dir, chain, key, root, issuing, port string }

// These functions edit the ceremony in which the issuing CA is signed.
func unconstrained(*ceremony.SignSpec) {}
func constrained(s *ceremony.SignSpec) { s.Constrain = true }
func permitDNS(s *ceremony.SignSpec)   { s.Constrain, s.PermittedDNS = true, []string{"fleet.example"} }

// newScene returns a scene with an issuing CA that is signed after edit.
func newScene(t *testing.T, edit func(*ceremony.SignSpec)) scene {
	t.Helper()
	w := newWorldOf(t, edit)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	key := newKey(t, elliptic.P256())
	req := w.requestFor(t, key.Public())
	req.Names = ca.Names{DNS: []string{"ca.fleet.example"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	cert, err := issue(t.Context(), a, req)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := scene{dir, filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "root.pem"), filepath.Join(dir, "issuing.pem"), ""}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, s.chain, "CERTIFICATE", cert.DER, w.issuer.Certificate.Raw)
	writePEM(t, s.key, "PRIVATE KEY", pkcs8)
	writePEM(t, s.root, "CERTIFICATE", w.root.Raw)
	writePEM(t, s.issuing, "CERTIFICATE", w.issuer.Certificate.Raw)
	s.port = s.serve(t, w.root)
	return s
}

func writePEM(t *testing.T, path, kind string, ders ...[]byte) {
	t.Helper()
	var text bytes.Buffer
	for _, der := range ders {
		if err := pem.Encode(&text, &pem.Block{Type: kind, Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve runs the scene's TLS server and returns its port.
func (s scene) serve(t *testing.T, root *x509.Certificate) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(s.chain, s.key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = c.Write([]byte("hello")) // fails with the handshake; the client reports why
			_ = c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// mustPrint runs a program that connects to the scene's server or reads its files. The output must contain want. If
// want is "hello", the program must also succeed.
func (s scene) mustPrint(t *testing.T, want string, program string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if !strings.Contains(string(out), want) || want == "hello" && err != nil {
		t.Errorf("%s: %v, want %q:\n%s", filepath.Base(program), err, want, out)
	}
}

func (s scene) args() []string { return []string{s.chain, s.key, s.root, s.port} }

// compiled compiles a C program in testdata/interop.
func compiled(t *testing.T, name string, libraries ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	args := append([]string{"-Wall", "-Werror", "-o", program, "testdata/interop/" + name + ".c"}, libraries...)
	if out, err := exec.CommandContext(t.Context(), "cc", args...).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v: run deploy/setup.sh --test\n%s", err, out)
	}
	return program
}

func TestMbedTLSVerifies(t *testing.T) {
	program := compiled(t, "mbedtls", "-lmbedtls", "-lmbedx509", "-lmbedcrypto")
	open, limited := newScene(t, unconstrained), newScene(t, constrained)
	open.mustPrint(t, "hello", program, open.args()...)
	limited.mustPrint(t, "parse the chain: ", program, limited.args()...)
}

func TestWolfSSLVerifies(t *testing.T) {
	program := compiled(t, "wolfssl", "-lwolfssl")
	for want, edits := range map[string][]func(*ceremony.SignSpec){"hello": {unconstrained, constrained}, "verify the chain:": {permitDNS}} {
		for _, edit := range edits {
			s := newScene(t, edit)
			s.mustPrint(t, want, program, append(s.args(), s.issuing)...)
		}
	}
}

func TestPythonParses(t *testing.T) {
	for _, s := range []scene{newScene(t, unconstrained), newScene(t, constrained)} {
		s.mustPrint(t, "spiffe://fleet.example/device/1", "/usr/bin/python3", "testdata/interop/parse.py", s.chain, s.root)
	}
}

// mosquitto starts a broker that requires client certificates, and returns its port.
func (s scene) mosquitto(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(s.dir, "mosquitto.conf")
	text := fmt.Sprintf("user root\nlistener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nallow_anonymous true\n",
		port, s.root, s.chain, s.key)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	broker := exec.CommandContext(t.Context(), "mosquitto", "-c", conf)
	broker.Stdout, broker.Stderr = &output, &output
	if err := broker.Start(); err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	t.Cleanup(func() {
		_ = broker.Process.Kill()
		_ = broker.Wait()
		if t.Failed() {
			t.Logf("mosquitto:\n%s", output.String())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
			return port
		}
		if time.Now().After(deadline) {
			t.Fatalf("mosquitto does not listen: %v", err)
		}
	}
}

// TestMosquittoVerifies publishes from a device to a broker; each verifies the other's chain.
func TestMosquittoVerifies(t *testing.T) {
	for _, s := range []scene{newScene(t, unconstrained), newScene(t, constrained)} {
		args := []string{"-h", "127.0.0.1", "-p", s.mosquitto(t), "--cafile", s.root, "-t", "t", "-m", "m", "-q", "1"}
		out, err := exec.CommandContext(t.Context(), "mosquitto_pub", append(args, "--cert", s.chain, "--key", s.key)...).CombinedOutput()
		if err != nil {
			t.Errorf("mosquitto_pub: %v\n%s", err, out)
		}
		if out, err := exec.CommandContext(t.Context(), "mosquitto_pub", args...).CombinedOutput(); err == nil {
			t.Errorf("mosquitto accepted a client without a certificate:\n%s", out)
		}
	}
}

// requestFor returns a request for a key of the device, without a guard on the identity's revision.
func (w *world) requestFor(t testing.TB, key crypto.PublicKey) ca.Request {
	t.Helper()
	hash, err := pki.HashKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return ca.Request{
		RequestID: requestID(t), Identity: w.device.ID, Profile: w.profile(t, "device"), Key: key,
		Guard: pki.Guard{Identity: w.device.ID, Revision: w.device.Revision, Key: hash}, Actor: pki.ActorCommand("test"),
	}
}
