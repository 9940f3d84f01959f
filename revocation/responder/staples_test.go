package responder_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// curl connects to a server and requires a stapled response. It returns curl's output and exit code. Code 91 means that
// the response is missing or has the status revoked.
func curl(t *testing.T, s *interopServer, port string) (string, int) {
	t.Helper()
	return revtest.Tool(t, "curl", "--silent", "--show-error", "--cert-status", "--cacert", s.rootFile, "https://localhost:"+port)
}

// TestNginxStaplesResponses runs nginx, which fetches a response for its own certificate by GET, and staples it. nginx
// fetches the response when the first client connects, so that client gets none. For a revoked certificate, nginx
// staples nothing and logs the reason.
func TestNginxStaplesResponses(t *testing.T) {
	s := newInteropServer(t)
	nginx := startNginx(t, s, s.good)
	for n := 0; ; n++ {
		out, code := curl(t, s, nginx.port)
		if code == 0 && strings.Contains(out, "served") {
			break
		}
		if n == 500 || code != 91 || !strings.Contains(out, "No OCSP response received") {
			t.Fatalf("curl exits %d:\n%s\nnginx:\n%s", code, out, nginx.output)
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.methods.want(t, "nginx", "GET")
	nginx = startNginx(t, s, s.revoked)
	for n := 0; !strings.Contains(nginx.output.String(), `certificate status "revoked" in the OCSP response`); n++ {
		if out, code := curl(t, s, nginx.port); n == 500 || code != 91 {
			t.Fatalf("curl exits %d:\n%s\nnginx:\n%s", code, out, nginx.output)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if out, code := curl(t, s, nginx.port); code != 91 || !strings.Contains(out, "No OCSP response received") {
		t.Errorf("curl of a revoked server exits %d:\n%s", code, out)
	}
}

// TestHAProxyStaplesResponses passes one response to HAProxy in a file, and the next one over its socket. HAProxy
// staples both, whatever they contain, and curl checks them. From version 2.8 on, HAProxy can also fetch responses
// itself.
func TestHAProxyStaplesResponses(t *testing.T) {
	s := newInteropServer(t)
	of := s.certify(t, nil)
	s.Apply(s.book.Issue(of.ref, of.certificate.NotAfter))
	path := s.url + "/ocsp/" + base64.StdEncoding.EncodeToString(request(t, of.certificate, s.ca.Certificate, crypto.SHA1))
	haproxy := startHAProxy(t, s, of, fetch(t, path))
	if out, code := curl(t, s, haproxy.port); code != 0 || out != "served" {
		t.Errorf("curl exits %d:\n%s\nhaproxy:\n%s", code, out, haproxy.output)
	}
	s.revoke(t, of.ref, pki.Superseded)
	var dialer net.Dialer
	socket, err := dialer.DialContext(t.Context(), "unix", filepath.Join(haproxy.dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if _, err := fmt.Fprintf(socket, "set ssl ocsp-response %s\n", base64.StdEncoding.EncodeToString(fetch(t, path))); err != nil {
		t.Fatal(err)
	}
	if reply, err := io.ReadAll(socket); err != nil || !strings.Contains(string(reply), "OCSP Response updated!") {
		t.Fatalf("haproxy accepts no response over its socket: %s, %v", reply, err)
	}
	if out, code := curl(t, s, haproxy.port); code != 91 || !strings.Contains(out, "revocation reason: superseded") {
		t.Errorf("curl of a revoked server exits %d:\n%s", code, out)
	}
}

// A serverProcess is a third-party server that runs until the end of the test.
type serverProcess struct {
	dir, port string
	output    *output
	process   *os.Process
}

func (r *serverProcess) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := r.process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// An output stores what a process writes. It can be read while the process runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// serverFiles writes a server's chain and key: as two files, and both in one file.
func serverFiles(t *testing.T, s *interopServer, of testCert) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(of.key)
	if err != nil {
		t.Fatal(err)
	}
	var chain bytes.Buffer
	for _, der := range [][]byte{of.certificate.Raw, s.ca.Certificate.Raw} {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	for name, content := range map[string][]byte{"chain.pem": chain.Bytes(), "key.pem": private, "both.pem": append(chain.Bytes(), private...)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func startNginx(t *testing.T, s *interopServer, of testCert) *serverProcess {
	t.Helper()
	dir, port := serverFiles(t, s, of), freePort(t)
	config := fmt.Sprintf(`daemon off; master_process off; pid nginx.pid; error_log stderr info;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {
    listen 127.0.0.1:%s ssl;
    ssl_certificate chain.pem; ssl_certificate_key key.pem;
    ssl_stapling on; ssl_stapling_verify on; ssl_trusted_certificate %s;
    location / { return 200 "served"; }
  }
}`, port, s.chainFile)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, dir, port, "nginx", "-e", "stderr", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
}

func startHAProxy(t *testing.T, s *interopServer, of testCert, answer []byte) *serverProcess {
	t.Helper()
	dir, port := serverFiles(t, s, of), freePort(t)
	if err := os.WriteFile(filepath.Join(dir, "both.pem.ocsp"), answer, 0o600); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`global
  stats socket %s level admin
defaults
  mode http
  timeout client 10s
frontend tls
  bind 127.0.0.1:%s ssl crt %s
  http-request return status 200 content-type text/plain string served
`, filepath.Join(dir, "socket"), port, filepath.Join(dir, "both.pem"))
	if err := os.WriteFile(filepath.Join(dir, "haproxy.cfg"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, dir, port, "haproxy", "-db", "-f", filepath.Join(dir, "haproxy.cfg"))
}

// run starts a server and waits until it accepts connections. The server runs until the end of the test.
func run(t *testing.T, dir, port, name string, args ...string) *serverProcess {
	t.Helper()
	r := &serverProcess{dir: dir, port: port, output: &output{}}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...) // Cleanup kills it
	cmd.Stdout, cmd.Stderr = r.output, r.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that its worker processes are also killed
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v: run deploy/setup.sh --test", name, err)
	}
	r.process = cmd.Process
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // the error only says that the process was killed
	})
	for range 1000 {
		var dialer net.Dialer
		if conn, err := dialer.DialContext(t.Context(), "tcp", "127.0.0.1:"+port); err == nil {
			_ = conn.Close()
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not listen:\n%s", name, r.output)
	return nil
}

func freePort(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
