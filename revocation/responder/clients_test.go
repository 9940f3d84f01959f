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

// documented returns a fenced block of docs/relying-parties.md, with the paths and ports of a test in place of its own.
func documented(t *testing.T, name string, replace ...string) string {
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

// relyingFiles writes what the documented configurations name: a server's credential, as an agent keeps it, chain.pem
// and crls.pem.
func relyingFiles(t *testing.T, s *trial) (dir string) {
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

// writeCRLs writes the CRLs of both CAs, in PEM, of which the issuing one's lists the given serials.
func writeCRLs(t *testing.T, s *trial, dir string, number int64, revoked ...*big.Int) {
	t.Helper()
	var text []byte
	for _, crl := range [][]byte{list(t, s.ca, number, revoked, nil), list(t, s.root, number, nil, nil)} {
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

// A device is a client with a certificate. It resumes sessions where the server lets it.
type device struct {
	config *tls.Config
	http   *http.Client
	url    string
}

func newDevice(s *trial, of subject, port string) *device {
	pool := x509.NewCertPool()
	pool.AddCert(s.root.Certificate)
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1),
		Certificates: []tls.Certificate{{Certificate: [][]byte{of.certificate.Raw, s.ca.Certificate.Raw}, PrivateKey: of.key}},
	}
	return &device{config, &http.Client{Transport: &http.Transport{TLSClientConfig: config}}, "https://127.0.0.1:" + port}
}

// get returns the status of a request on the open connection, or on a new one, and whether its TLS session was resumed.
func (d *device) get(ctx context.Context) (status int, resumed bool, err error) {
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

func (d *device) want(t *testing.T, what string, want int, resumed bool) {
	t.Helper()
	if got, did, err := d.get(t.Context()); err != nil || got != want || did != resumed {
		t.Errorf("%s: nginx answers %d (resumed: %v), want %d (resumed: %v): %v", what, got, did, want, resumed, err)
	}
}

// hangUp closes the connection, and leaves the session to be resumed.
func (d *device) hangUp() { d.http.CloseIdleConnections() }

// startDocumentedNginx runs nginx with a documented server.
func startDocumentedNginx(t *testing.T, dir, name string, replace ...string) *stapler {
	t.Helper()
	port := freePort(t)
	config := `daemon off; worker_processes 1; user root; pid nginx.pid; error_log stderr info;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
` + documented(t, name, append(replace, "listen 443", "listen 127.0.0.1:"+port, "/var/lib/brevet-agent/current", dir, "/etc/nginx", dir)...) + "}\n"
	write(t, dir, "nginx.conf", []byte(config))
	return run(t, dir, port, "nginx", "-e", "stderr", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
}

// TestNginxAsksAboutClients has nginx ask by OCSP about each client. A client that is revoked is refused with its next
// connection, a resumed one too; the one that is open goes on.
func TestNginxAsksAboutClients(t *testing.T) {
	s := newTrial(t)
	dir := relyingFiles(t, s)
	away := startDocumentedNginx(t, dir, "nginx-ocsp.conf", "ssl_ocsp leaf;", "ssl_ocsp leaf; ssl_ocsp_responder http://127.0.0.1:1;")
	newDevice(s, s.good, away.port).want(t, "good, while the responder is away", http.StatusBadRequest, false)
	nginx := startDocumentedNginx(t, dir, "nginx-ocsp.conf")
	for name, of := range map[string]subject{"revoked": s.revoked, "held": s.held, "unknown": s.unknown} {
		newDevice(s, of, nginx.port).want(t, name, http.StatusBadRequest, false)
	}
	resuming, open := newDevice(s, s.good, nginx.port), newDevice(s, s.good, nginx.port)
	resuming.want(t, "good", http.StatusOK, false)
	resuming.hangUp()
	resuming.want(t, "good, resumed", http.StatusOK, true)
	resuming.hangUp()
	open.want(t, "good", http.StatusOK, false)
	s.revoke(t, s.good.ref, pki.KeyCompromise)
	open.want(t, "revoked, on an open connection", http.StatusOK, false)
	resuming.want(t, "revoked, resumed", http.StatusBadRequest, true)
	open.hangUp()
	newDevice(s, s.good, nginx.port).want(t, "revoked, on a new connection", http.StatusBadRequest, false)
	if t.Failed() {
		t.Log(nginx.said)
	}
}

// TestNginxReadsCRLs has nginx read CRLs. A client that is revoked is refused once nginx has reloaded a newer CRL.
func TestNginxReadsCRLs(t *testing.T) {
	s := newTrial(t)
	dir := relyingFiles(t, s)
	write(t, dir, "crls.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.crl}))
	lacking := startDocumentedNginx(t, dir, "nginx-crl.conf")
	newDevice(s, s.good, lacking.port).want(t, "good, without the root's CRL", http.StatusBadRequest, false)
	writeCRLs(t, s, dir, 1, s.revoked.certificate.SerialNumber)
	nginx := startDocumentedNginx(t, dir, "nginx-crl.conf")
	newDevice(s, s.revoked, nginx.port).want(t, "revoked", http.StatusBadRequest, false)
	resuming := newDevice(s, s.good, nginx.port)
	resuming.want(t, "good", http.StatusOK, false)
	resuming.hangUp()
	writeCRLs(t, s, nginx.dir, 2, s.good.certificate.SerialNumber)
	newDevice(s, s.good, nginx.port).want(t, "revoked, before the reload", http.StatusOK, false)
	nginx.signal(t, syscall.SIGHUP)
	wantRefused(t, nginx, "new connection", func() *device { return newDevice(s, s.good, nginx.port) })
	wantRefused(t, nginx, "resumed session", func() *device { return resuming })
}

// wantRefused waits for nginx to refuse a device, since the workers before a reload serve a moment longer.
func wantRefused(t *testing.T, nginx *stapler, what string, next func() *device) {
	t.Helper()
	for range 500 {
		d := next()
		if got, _, err := d.get(t.Context()); err == nil && got == http.StatusBadRequest {
			return
		}
		d.hangUp()
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("nginx does not refuse a %s by its new CRL:\n%s", what, nginx.said)
}

// TestMosquittoReadsCRLs has mosquitto read CRLs. A device that is revoked connects until mosquitto has reloaded a newer
// CRL, which also ends the TLS sessions that could be resumed; its open session stays.
func TestMosquittoReadsCRLs(t *testing.T) {
	s := newTrial(t)
	dir := relyingFiles(t, s)
	broker := startMosquitto(t, dir)
	port := broker.port
	other := s.certify(t, nil)
	publish := func(of subject, message string) int {
		_, code := revtest.Tool(t, "mosquitto_pub", mosquittoArgs(t, s, of, port, "-m", message)...)
		return code
	}
	if code := publish(s.revoked, "revoked"); code == 0 {
		t.Error("a revoked device connects")
	}
	resuming := newDevice(s, s.good, port).config
	for _, want := range []bool{false, true} {
		if resumed, err := connectMQTT(t, resuming, port); resumed != want || err != nil {
			t.Fatalf("a good device connects: resumed %v, %v", resumed, err)
		}
	}
	open := subscribe(t, s, s.good, port)
	for n := 0; open.String() == ""; n++ { // until the subscription is there
		if code := publish(other, "first"); n == 500 || code != 0 {
			t.Fatalf("mosquitto_pub exits %d\n%s", code, broker.said)
		}
		time.Sleep(10 * time.Millisecond)
	}
	writeCRLs(t, s, dir, 2, s.good.certificate.SerialNumber)
	if code := publish(s.good, "revoked, before the reload"); code != 0 {
		t.Errorf("before the reload mosquitto_pub exits %d", code)
	}
	broker.signal(t, syscall.SIGHUP)
	for n := 0; publish(s.good, "revoked") == 0; n++ {
		if n == 200 {
			t.Fatalf("mosquitto does not read the new CRL:\n%s", broker.said)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if resumed, err := connectMQTT(t, resuming, port); err == nil {
		t.Errorf("after the reload a revoked device connects with an old session (resumed: %v)", resumed)
	}
	for n := 0; !strings.Contains(open.String(), "last"); n++ {
		if code := publish(other, "last"); n == 500 || code != 0 {
			t.Fatalf("the open session of a revoked device gets nothing; mosquitto_pub exits %d\n%s", code, broker.said)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// connectMQTT connects as a client does (MQTT 3.1.1 sections 3.1, 3.2), and reports whether the TLS session was resumed.
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
		return false, fmt.Errorf("mosquitto answers %x", answer)
	}
	return conn.(*tls.Conn).ConnectionState().DidResume, nil
}

// startMosquitto runs mosquitto with the documented configuration.
func startMosquitto(t *testing.T, dir string) *stapler {
	t.Helper()
	port := freePort(t)
	config := "user root\n" + documented(t, "mosquitto.conf", "8883", port+" 127.0.0.1", "/var/lib/brevet-agent/current", dir, "/etc/mosquitto", dir)
	write(t, dir, "mosquitto.conf", []byte(config))
	return run(t, dir, port, "mosquitto", "-c", filepath.Join(dir, "mosquitto.conf"))
}

func mosquittoArgs(t *testing.T, s *trial, of subject, port string, more ...string) []string {
	t.Helper()
	dir := serverFiles(t, s, of)
	return append([]string{
		"-h", "localhost", "-p", port, "-t", "topic", "--cafile", s.rootFile,
		"--cert", filepath.Join(dir, "chain.pem"), "--key", filepath.Join(dir, "key.pem"),
	}, more...)
}

// subscribe has a device subscribe until the end of the test, and returns what it gets.
func subscribe(t *testing.T, s *trial, of subject, port string) *output {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "mosquitto_sub", mosquittoArgs(t, s, of, port)...) // it ends below
	got := &output{}
	cmd.Stdout = got
	if err := cmd.Start(); err != nil {
		t.Fatalf("mosquitto_sub: %v: run deploy/setup.sh --test", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	return got
}

// TestJavaResumes has Java connect to a server whose certificate is revoked meanwhile. It accepts the server while it can
// resume a session, and the documented timeout bounds how long that is.
func TestJavaResumes(t *testing.T) {
	s := newTrial(t)
	program, err := os.ReadFile("testdata/Resumption.java")
	if err != nil {
		t.Fatal(err)
	}
	program = bytes.Replace(program, []byte("// DOCUMENTED"), []byte(documented(t, "Resumption.java")), 1)
	j := runJava(t, revtest.File(t, "Resumption.java", program))
	port := serveTLS(t, s, s.good)
	j.want(t, "accepted full", port, s.rootFile, "documented")
	j.want(t, "accepted full", port, s.rootFile, "1")
	s.revoke(t, s.good.ref, pki.KeyCompromise)
	j.want(t, "accepted resumed", port, s.rootFile, "documented")
	j.want(t, "refused java.security.cert.CertificateRevokedException: Certificate has been revoked", port, s.rootFile, "3600") // a context without sessions
	time.Sleep(2 * time.Second)                                                                                                 // the other one's have passed their timeout
	j.want(t, "refused java.security.cert.CertificateRevokedException: Certificate has been revoked", port, s.rootFile, "1")
}

// serveTLS serves on localhost until the end of the test, and tells each client whether its session was resumed.
func serveTLS(t *testing.T, s *trial, of subject) (port string) {
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
				said := "full"
				if c.ConnectionState().DidResume {
					said = "resumed"
				}
				_, _ = io.WriteString(c, said) // the client says what it got
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
