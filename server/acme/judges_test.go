//go:build judges

package acme_test

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
	t         *testing.T
	directory string
	port      string
	roots     string
	kid, hmac string
	dir       string // for the files of the client
	environ   []string
}

func newJudge(t *testing.T) *judge {
	t.Helper()
	zone := validationtest.NewZone(t)
	zone.Address(t, host, "127.0.0.1")
	port := freePort(t)
	w := newServerWith(t, strings.Replace(anyName, "optional", "required", 1), validation.Config{
		Resolvers: []netip.AddrPort{zone.Addr}, HTTPPort: port, TLSPort: port,
	})
	key := servertest.Must(brevetv1.NewACMEServiceClient(w.Operator.Conn).CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Rule: "any"}))(t)
	j := &judge{
		realWorld: w, t: t, directory: w.url + "/acme/directory", port: fmt.Sprint(port), dir: t.TempDir(),
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
	certbot("certonly", "--standalone", "--http-01-port", j.port, "--agree-tos", "-m", "admin@fleet.example", "--eab-kid", j.kid, "--eab-hmac-key", j.hmac, "-d", host)
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
