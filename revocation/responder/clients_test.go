package responder_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// documentedBlock returns a code block of docs/relying-parties.md. It replaces paths and ports for the test.
func documentedBlock(t *testing.T, name string, replace ...string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/relying-parties.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```[a-z]+ " + regexp.QuoteMeta(name) + "\n(.*?\n)```$").FindSubmatch(page)
	if block == nil {
		t.Fatalf("docs/relying-parties.md has no block %s", name)
	}
	text := string(block[1])
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Errorf("the block %s does not contain %q", name, replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text
}

// writeServerFiles writes the files that the documented configurations use: a server's credential as an agent stores
// it, chain.pem and crls.pem.
func writeServerFiles(t *testing.T, s *interopServer) (dir string) {
	t.Helper()
	server := s.certify(t, nil)
	s.Apply(s.book.Issue(server.ref, server.certificate.NotAfter))
	dir = t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(server.key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "cert.pem", certificates(server.certificate, s.ca.Certificate))
	write(t, dir, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	write(t, dir, "bundle.pem", certificates(s.root.Certificate))
	write(t, dir, "chain.pem", certificates(s.ca.Certificate, s.root.Certificate))
	writeCRLs(t, s, dir, 1, s.revoked.certificate.SerialNumber)
	return dir
}

// writeCRLs writes the CRLs of both CAs in PEM. The CRL of the issuing CA lists the given serial numbers.
func writeCRLs(t *testing.T, s *interopServer, dir string, number int64, revoked ...*big.Int) {
	t.Helper()
	var text []byte
	for _, crl := range [][]byte{signCRL(t, s.ca, number, revoked, nil), signCRL(t, s.root, number, nil, nil)} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl})...)
	}
	write(t, dir, "crls.pem", text)
}

func certificates(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A tlsClient is an HTTPS client with a certificate. It resumes TLS sessions if the server allows that.
type tlsClient struct {
	config *tls.Config
	http   *http.Client
	url    string
}

func newTLSClient(s *interopServer, of testCert, port string) *tlsClient {
	pool := x509.NewCertPool()
	pool.AddCert(s.root.Certificate)
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1),
		Certificates: []tls.Certificate{{Certificate: [][]byte{of.certificate.Raw, s.ca.Certificate.Raw}, PrivateKey: of.key}},
	}
	return &tlsClient{config, &http.Client{Transport: &http.Transport{TLSClientConfig: config}}, "https://127.0.0.1:" + port}
}

// get sends a request on the open connection, or on a new one. It returns the HTTP status, and whether the connection
// resumed a TLS session.
func (d *tlsClient) get(ctx context.Context) (status int, resumed bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return 0, false, err
	}
	response, err := d.http.Do(request)
	if err != nil {
		return 0, false, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.TLS.DidResume, err
}

func (d *tlsClient) want(t *testing.T, what string, want int, resumed bool) {
	t.Helper()
	if got, did, err := d.get(t.Context()); err != nil || got != want || did != resumed {
		t.Errorf("%s: nginx sends HTTP %d (resumed: %v), want %d (resumed: %v): %v", what, got, did, want, resumed, err)
	}
}

// disconnect closes the connection. A later connection can resume the session.
func (d *tlsClient) disconnect() { d.http.CloseIdleConnections() }

// startDocumentedNginx runs nginx with a documented server block.
func startDocumentedNginx(t *testing.T, dir, name string, replace ...string) *serverProcess {
	t.Helper()
	port := freePort(t)
	config := `daemon off; worker_processes 1; user root; pid nginx.pid; error_log stderr info;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
` + documentedBlock(t, name, append(replace, "listen 443", "listen 127.0.0.1:"+port, "/var/lib/brevet-agent/current", dir, "/etc/nginx", dir)...) + "}\n"
	write(t, dir, "nginx.conf", []byte(config))
	return run(t, dir, port, "nginx", "-e", "stderr", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
}

// TestNginxChecksClientsByOCSP runs nginx, which checks clients by OCSP. nginx must refuse a revoked client at its next
// connection, even if the client resumes a session. An open connection continues.
func TestNginxChecksClientsByOCSP(t *testing.T) {
	s := newInteropServer(t)
	dir := writeServerFiles(t, s)
	away := startDocumentedNginx(t, dir, "nginx-ocsp.conf", "ssl_ocsp leaf;", "ssl_ocsp leaf; ssl_ocsp_responder http://127.0.0.1:1;")
	newTLSClient(s, s.good, away.port).want(t, "good, while the responder is down", http.StatusBadRequest, false)
	nginx := startDocumentedNginx(t, dir, "nginx-ocsp.conf")
	for name, of := range map[string]testCert{"revoked": s.revoked, "held": s.held, "unknown": s.unknown} {
		newTLSClient(s, of, nginx.port).want(t, name, http.StatusBadRequest, false)
	}
	resuming, open := newTLSClient(s, s.good, nginx.port), newTLSClient(s, s.good, nginx.port)
	resuming.want(t, "good", http.StatusOK, false)
	resuming.disconnect()
	resuming.want(t, "good, resumed", http.StatusOK, true)
	resuming.disconnect()
	open.want(t, "good", http.StatusOK, false)
	s.revoke(t, s.good.ref, pki.KeyCompromise)
	open.want(t, "revoked, on an open connection", http.StatusOK, false)
	resuming.want(t, "revoked, resumed", http.StatusBadRequest, true)
	open.disconnect()
	newTLSClient(s, s.good, nginx.port).want(t, "revoked, on a new connection", http.StatusBadRequest, false)
	if t.Failed() {
		t.Log(nginx.output)
	}
}

// TestNginxRefusesRevokedClientsAfterReload runs nginx, which checks clients by CRL. nginx must refuse a revoked client
// when it has reloaded a newer CRL.
func TestNginxRefusesRevokedClientsAfterReload(t *testing.T) {
	s := newInteropServer(t)
	dir := writeServerFiles(t, s)
	write(t, dir, "crls.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.crl}))
	lacking := startDocumentedNginx(t, dir, "nginx-crl.conf")
	newTLSClient(s, s.good, lacking.port).want(t, "good, without the root's CRL", http.StatusBadRequest, false)
	writeCRLs(t, s, dir, 1, s.revoked.certificate.SerialNumber)
	nginx := startDocumentedNginx(t, dir, "nginx-crl.conf")
	newTLSClient(s, s.revoked, nginx.port).want(t, "revoked", http.StatusBadRequest, false)
	resuming := newTLSClient(s, s.good, nginx.port)
	resuming.want(t, "good", http.StatusOK, false)
	resuming.disconnect()
	writeCRLs(t, s, nginx.dir, 2, s.good.certificate.SerialNumber)
	newTLSClient(s, s.good, nginx.port).want(t, "revoked, before the reload", http.StatusOK, false)
	nginx.signal(t, syscall.SIGHUP)
	wantRefused(t, nginx, "new connection", func() *tlsClient { return newTLSClient(s, s.good, nginx.port) })
	wantRefused(t, nginx, "resumed session", func() *tlsClient { return resuming })
}

// wantRefused waits until nginx refuses a client. For a moment after a reload, nginx's old worker processes still
// accept connections.
func wantRefused(t *testing.T, nginx *serverProcess, what string, next func() *tlsClient) {
	t.Helper()
	for range 500 {
		d := next()
		if got, _, err := d.get(t.Context()); err == nil && got == http.StatusBadRequest {
			return
		}
		d.disconnect()
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("nginx accepts a %s of a revoked client after the reload:\n%s", what, nginx.output)
}

// TestMosquittoRefusesRevokedClientsAfterReload runs mosquitto, which checks devices by CRL. A revoked device can
// connect until mosquitto has reloaded a newer CRL. The reload also prevents that TLS sessions are resumed. An open
// connection continues.
func TestMosquittoRefusesRevokedClientsAfterReload(t *testing.T) {
	s := newInteropServer(t)
	dir := writeServerFiles(t, s)
	broker := startMosquitto(t, dir)
	port := broker.port
	other := s.certify(t, nil)
	publish := func(of testCert, message string) int {
		_, code := revtest.Tool(t, "mosquitto_pub", mosquittoArgs(t, s, of, port, "-m", message)...)
		return code
	}
	if code := publish(s.revoked, "revoked"); code == 0 {
		t.Error("a revoked device connects")
	}
	resuming := newTLSClient(s, s.good, port).config
	for _, want := range []bool{false, true} {
		if resumed, err := connectMQTT(t, resuming, port); resumed != want || err != nil {
			t.Fatalf("a good device connecting: resumed %v, %v", resumed, err)
		}
	}
	open := subscribe(t, s, s.good, port)
	for n := 0; open.String() == ""; n++ { // repeat until the subscriber receives a message
		if code := publish(other, "first"); n == 500 || code != 0 {
			t.Fatalf("mosquitto_pub exits %d\n%s", code, broker.output)
		}
		time.Sleep(10 * time.Millisecond)
	}
	writeCRLs(t, s, dir, 2, s.good.certificate.SerialNumber)
	if code := publish(s.good, "revoked, before the reload"); code != 0 {
		t.Errorf("mosquitto_pub before the reload exits %d", code)
	}
	broker.signal(t, syscall.SIGHUP)
	for n := 0; publish(s.good, "revoked") == 0; n++ {
		if n == 200 {
			t.Fatalf("mosquitto accepts a revoked device after the reload:\n%s", broker.output)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if resumed, err := connectMQTT(t, resuming, port); err == nil {
		t.Errorf("a revoked device resumes a session after the reload (resumed: %v)", resumed)
	}
	for n := 0; !strings.Contains(open.String(), "last"); n++ {
		if code := publish(other, "last"); n == 500 || code != 0 {
			t.Fatalf("the open connection of a revoked device receives nothing; mosquitto_pub exits %d\n%s", code, broker.output)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// connectMQTT sends an MQTT CONNECT (MQTT 3.1.1 sections 3.1, 3.2) and reports whether the TLS session was resumed.
func connectMQTT(t *testing.T, config *tls.Config, port string) (resumed bool, err error) {
	t.Helper()
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01r"); err != nil {
		return false, err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return false, err
	}
	if string(answer) != "\x20\x02\x00\x00" {
		return false, fmt.Errorf("mosquitto sends %x, want CONNACK", answer)
	}
	return conn.(*tls.Conn).ConnectionState().DidResume, nil
}

// startMosquitto runs mosquitto with the documented configuration.
func startMosquitto(t *testing.T, dir string) *serverProcess {
	t.Helper()
	port := freePort(t)
	config := "user root\n" + documentedBlock(t, "mosquitto.conf", "8883", port+" 127.0.0.1", "/var/lib/brevet-agent/current", dir, "/etc/mosquitto", dir)
	write(t, dir, "mosquitto.conf", []byte(config))
	return run(t, dir, port, "mosquitto", "-c", filepath.Join(dir, "mosquitto.conf"))
}

func mosquittoArgs(t *testing.T, s *interopServer, of testCert, port string, more ...string) []string {
	t.Helper()
	dir := serverFiles(t, s, of)
	return append([]string{
		"-h", "localhost", "-p", port, "-t", "topic", "--cafile", s.rootFile,
		"--cert", filepath.Join(dir, "chain.pem"), "--key", filepath.Join(dir, "key.pem"),
	}, more...)
}

// subscribe runs a subscriber until the end of the test. It returns the subscriber's output.
func subscribe(t *testing.T, s *interopServer, of testCert, port string) *output {
	t.Helper()
	// Cleanup kills it.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "mosquitto_sub", mosquittoArgs(t, s, of, port)...)
	got := &output{}
	cmd.Stdout = got
	if err := cmd.Start(); err != nil {
		t.Fatalf("mosquitto_sub: %v: run deploy/setup.sh --test", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // the error only says that the process was killed
	})
	return got
}

// TestJavaAcceptsRevokedServerWhileResuming connects with Java to a server whose certificate is then revoked. Java
// accepts the server as long as it can resume a session. The documented timeout limits this.
func TestJavaAcceptsRevokedServerWhileResuming(t *testing.T) {
	s := newInteropServer(t)
	program, err := os.ReadFile("testdata/Resumption.java")
	if err != nil {
		t.Fatal(err)
	}
	program = bytes.Replace(program, []byte("// DOCUMENTED"), []byte(documentedBlock(t, "Resumption.java")), 1)
	j := runJava(t, revtest.File(t, "Resumption.java", program))
	port := serveTLS(t, s, s.good)
	j.want(t, "accepted full", port, s.rootFile, "documented")
	j.want(t, "accepted full", port, s.rootFile, "1")
	s.revoke(t, s.good.ref, pki.KeyCompromise)
	j.want(t, "accepted resumed", port, s.rootFile, "documented")
	// "3600" creates a new SSLContext without sessions.
	j.want(t, "refused java.security.cert.CertificateRevokedException: Certificate has been revoked", port, s.rootFile, "3600")
	// Wait until the sessions of the context with timeout 1 have expired.
	time.Sleep(2 * time.Second)
	j.want(t, "refused java.security.cert.CertificateRevokedException: Certificate has been revoked", port, s.rootFile, "1")
}

// serveTLS runs a TLS server on localhost until the end of the test. The server tells each client whether its session
// was resumed.
func serveTLS(t *testing.T, s *interopServer, of testCert) (port string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{of.certificate.Raw, s.ca.Certificate.Raw}, PrivateKey: of.key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if c := conn.(*tls.Conn); c.HandshakeContext(t.Context()) == nil {
				session := "full"
				if c.ConnectionState().DidResume {
					session = "resumed"
				}
				_, _ = io.WriteString(c, session) // the test checks what the client receives
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
