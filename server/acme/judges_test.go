//go:build judges

package acme_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/acme/validation/validationtest"
	"github.com/brevet-pki/brevet/server/servertest"
)

// host is the name for which the clients get certificates.
const host = "host.fleet.example"

// judge is a server for a client, and what the client needs: a port at which the server validates, the file with the
// root, and an external key.
type judge struct {
	*realWorld
	t             *testing.T
	directory     string
	port, tlsPort string
	roots         string
	kid, hmac     string
	dir           string // for the files of the client
	environ       []string
}

func newJudge(t *testing.T) *judge {
	t.Helper()
	port := freePort(t)
	return newJudgeAt(t, port, port)
}

// newJudgeAt returns a judge whose server validates at two ports.
func newJudgeAt(t *testing.T, port, tlsPort uint16) *judge {
	t.Helper()
	zone := validationtest.NewZone(t)
	zone.Address(t, host, "127.0.0.1")
	w := newServerWith(t, strings.Replace(anyName, "optional", "required", 1), validation.Config{
		Resolvers: []netip.AddrPort{zone.Addr}, HTTPPort: port, TLSPort: tlsPort,
	})
	key := servertest.Must(brevetv1.NewACMEServiceClient(w.Operator.Conn).CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Rule: "any"}))(t)
	j := &judge{
		realWorld: w, t: t, directory: w.url + "/acme/directory", port: fmt.Sprint(port), tlsPort: fmt.Sprint(tlsPort), dir: t.TempDir(),
		kid: key.GetKey().GetId(), hmac: base64.RawURLEncoding.EncodeToString(key.GetHmacKey()),
	}
	j.roots = filepath.Join(j.dir, "roots.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Root.Raw})
	if err := os.WriteFile(j.roots, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return j
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(t, l.Addr())
}

// run runs a client, which must succeed.
func (j *judge) run(name string, args ...string) {
	j.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		j.t.Fatalf("%v: run deploy/setup.sh --judges", err)
	}
	cmd := exec.CommandContext(j.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), j.environ...)
	if out, err := cmd.CombinedOutput(); err != nil {
		j.t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}

// wantIssued checks the number of certificates on record for the host, and how many of them are revoked.
func (j *judge) wantIssued(issued, revoked int) {
	j.t.Helper()
	have, gone := 0, 0
	for _, c := range j.Inventory(j.t) {
		if c.Profile != "acme" {
			continue
		}
		have++
		if c.Status.Reason != 0 || !c.Status.RevokedAt.IsZero() {
			gone++
		}
	}
	if have != issued || gone != revoked {
		j.t.Errorf("%d certificates are on record, %d of them revoked; want %d and %d", have, gone, issued, revoked)
	}
}

func TestCertbot(t *testing.T) {
	j := newJudge(t)
	j.environ = []string{"REQUESTS_CA_BUNDLE=" + j.roots}
	base := []string{
		"--config-dir", filepath.Join(j.dir, "config"), "--work-dir", filepath.Join(j.dir, "work"), "--logs-dir", filepath.Join(j.dir, "logs"),
		"--server", j.directory, "--non-interactive",
	}
	certbot := func(args ...string) { j.t.Helper(); j.run("certbot", append(args, base...)...) }
	external := filepath.Join(j.dir, "external-key.ini")
	if err := os.WriteFile(external, []byte("eab-kid = "+j.kid+"\neab-hmac-key = "+j.hmac+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	certbot("certonly", "--standalone", "--config", external, "--http-01-port", j.port, "--agree-tos", "-m", "admin@fleet.example", "-d", host)
	certbot("renew", "--force-renewal", "--no-random-sleep-on-renew")
	certbot("update_account", "-m", "other@fleet.example")
	certbot("revoke", "--cert-name", host, "--reason", "superseded", "--no-delete-after-revoke")
	j.wantIssued(2, 1)
	certbot("unregister")
}

func TestLego(t *testing.T) {
	j := newJudge(t)
	j.environ = []string{"LEGO_CA_CERTIFICATES=" + j.roots}
	base := []string{"--path", j.dir, "--server", j.directory, "--email", "admin@fleet.example", "--accept-tos", "--eab", "--kid", j.kid, "--hmac", j.hmac, "-d", host}
	lego := func(args ...string) { j.t.Helper(); j.run("lego", append(base[:len(base):len(base)], args...)...) }
	at := "127.0.0.1:" + j.port
	lego("--http", "--http.port", at, "run")
	base[slices.Index(base, j.hmac)] = "used" // lego wants a key, which has no effect any more
	lego("--tls", "--tls.port", at, "renew", "--days", "90", "--no-random-sleep")
	lego("revoke", "--reason", "4")
	j.wantIssued(2, 1)
}

func TestDehydrated(t *testing.T) {
	j := newJudge(t)
	j.environ = []string{"CURL_CA_BUNDLE=" + j.roots}
	known := filepath.Join(j.webroot(), ".well-known", "acme-challenge")
	if err := os.MkdirAll(known, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(j.dir, "config")
	text := fmt.Sprintf("CA=%s\nBASEDIR=%s\nWELLKNOWN=%s\nEAB_KID=%s\nEAB_HMAC_KEY=%s\nCONTACT_EMAIL=admin@fleet.example\nKEY_ALGO=prime256v1\n",
		j.directory, j.dir, known, j.kid, j.hmac)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dehydrated := func(args ...string) { j.t.Helper(); j.run("dehydrated", append(args, "--config", config)...) }
	dehydrated("--register", "--accept-terms")
	dehydrated("--cron", "--domain", host)
	dehydrated("--cron", "--force", "--domain", host)
	dehydrated("--revoke", filepath.Join(j.dir, "certs", host, "cert.pem"))
	j.wantIssued(2, 1)
}

// background runs a server until stop is called or the test ends, and logs its output if the test has failed.
func (j *judge) background(name string, args ...string) (stop func()) {
	j.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		j.t.Fatalf("%v: run deploy/setup.sh --judges", err)
	}
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, append(os.Environ(), j.environ...)
	if err := cmd.Start(); err != nil {
		j.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	j.t.Cleanup(func() {
		stop()
		if j.t.Failed() {
			j.t.Logf("%s: %s", name, out.String())
		}
	})
	return stop
}

// waitIssued waits until there are certificates on record.
func (j *judge) waitIssued(issued int) {
	j.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		have := 0
		for _, c := range j.Inventory(j.t) {
			if c.Profile == "acme" {
				have++
			}
		}
		if have >= issued {
			return
		}
	}
	j.t.Errorf("there are not %d certificates within a minute", issued)
}

func (j *judge) write(name, text string) (path string) {
	j.t.Helper()
	path = filepath.Join(j.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		j.t.Fatal(err)
	}
	return path
}

func TestCaddy(t *testing.T) {
	j := newJudgeAt(t, freePort(t), freePort(t))
	j.environ = []string{"HOME=" + j.dir, "XDG_CONFIG_HOME=" + j.dir, "XDG_DATA_HOME=" + j.dir}
	config := j.write("Caddyfile", fmt.Sprintf(`{
	admin off
	http_port %s
	https_port %s
	email admin@fleet.example
	acme_ca %s
	acme_ca_root %s
	acme_eab {
		key_id %s
		mac_key %s
	}
}
%s {
	respond "hello"
}
`, j.port, j.tlsPort, j.directory, j.roots, j.kid, j.hmac, host))
	j.background("caddy", "run", "--config", config, "--adapter", "caddyfile")
	j.waitIssued(1)
	j.serves()
}

// serves checks that a server presents a certificate of the CA for the host.
func (j *judge) serves() {
	j.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(j.Root)
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		var conn *tls.Conn
		if conn, err = tls.Dial("tcp", "127.0.0.1:"+j.tlsPort, &tls.Config{ServerName: host, RootCAs: roots}); err == nil {
			_ = conn.Close()
			return
		}
	}
	j.t.Errorf("the server has no certificate: %v", err)
}

func TestApache(t *testing.T) {
	j := newJudgeAt(t, freePort(t), freePort(t))
	modules, err := filepath.Glob("/usr/lib/apache2/modules/mod_md.so")
	if err != nil || len(modules) == 0 {
		t.Fatal("there is no mod_md: run deploy/setup.sh --judges")
	}
	config := j.write("httpd.conf", fmt.Sprintf(`ServerRoot %[1]s
PidFile %[1]s/httpd.pid
ErrorLog %[1]s/error.log
LogLevel warn md:debug
ServerName localhost
User nobody
Group nogroup
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule md_module /usr/lib/apache2/modules/mod_md.so
Mutex file:%[1]s
Listen 127.0.0.1:%[2]s
Listen 127.0.0.1:%[3]s
MDStoreDir %[1]s/md
MDPortMap http:%[2]s https:%[3]s
MDCertificateAuthority %[4]s
MDCACertificateFile %[5]s
MDCertificateAgreement accepted
MDContactEmail admin@fleet.example
MDExternalAccountBinding %[6]s %[7]s
MDProfile acme
MDRenewViaARI on
MDomain %[8]s
<VirtualHost *:%[3]s>
ServerName %[8]s
SSLEngine on
</VirtualHost>
`, j.dir, j.port, j.tlsPort, j.directory, j.roots, j.kid, j.hmac, host))
	for _, dir := range []string{filepath.Dir(j.dir), j.dir} { // Apache's processes have another account
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(j.roots, 0o644); err != nil {
		t.Fatal(err)
	}
	stop := j.background("apache2", "-X", "-f", config)
	j.waitIssued(1)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(j.dir, "md", "staging", host, "pubcert.pem")); err == nil {
			break
		}
	}
	stop() // Apache uses a new certificate after a restart
	j.background("apache2", "-X", "-f", config)
	j.serves()
	if text, err := os.ReadFile(filepath.Join(j.dir, "error.log")); t.Failed() {
		t.Logf("%s %v", text, err)
	}
}

// webroot serves the files of a directory at the port for http-01.
func (j *judge) webroot() (dir string) {
	j.t.Helper()
	dir = j.t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:"+j.port)
	if err != nil {
		j.t.Fatal(err)
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	j.t.Cleanup(func() { _ = s.Close() })
	go func() { _ = s.Serve(l) }()
	return dir
}
