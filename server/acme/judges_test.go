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
	"testing"

	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/acme/validation/validationtest"
)

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(t, l.Addr())
}

func (w *world) run(env []string, name string, args ...string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	w.t.Logf("%s %v: %v\n%s", name, args, err, out)
	if err != nil {
		w.t.Errorf("%s failed: %v", name, err)
	}
}

func judged(t *testing.T) (w *world, port uint16, roots string) {
	z := validationtest.NewZone(t)
	z.Address(t, "host.fleet.example", "127.0.0.1")
	port = freePort(t)
	w = newWorldWith(t, validation.Config{Resolvers: []netip.AddrPort{z.Addr}, HTTPPort: port, TLSPort: port})
	roots = filepath.Join(t.TempDir(), "roots.pem")
	return w, port, roots
}

func TestJudgeCertbot(t *testing.T) {
	w, port, roots := judged(t)
	writeRoots(t, w, roots)
	dir := t.TempDir()
	env := []string{"REQUESTS_CA_BUNDLE=" + roots}
	base := []string{"--config-dir", dir + "/c", "--work-dir", dir + "/w", "--logs-dir", dir + "/l", "--server", w.url + "/acme/directory", "-n"}
	secret := base64.RawURLEncoding.EncodeToString(w.authority.secrets["kid-1"])
	w.run(env, "certbot", append([]string{"certonly", "--standalone", "--http-01-port", fmt.Sprint(port), "--agree-tos", "-m", "admin@fleet.example", "--eab-kid", "kid-1", "--eab-hmac-key", secret, "-d", "host.fleet.example"}, base...)...)
	w.run(env, "certbot", append([]string{"renew", "--force-renewal", "--no-random-sleep-on-renew"}, base...)...)
	w.run(env, "certbot", append([]string{"update_account", "-m", "other@fleet.example"}, base...)...)
	w.run(env, "certbot", append([]string{"revoke", "--cert-name", "host.fleet.example", "--reason", "superseded", "--no-delete-after-revoke"}, base...)...)
	w.run(env, "certbot", append([]string{"unregister"}, base...)...)
}

func TestJudgeLego(t *testing.T) {
	w, port, roots := judged(t)
	writeRoots(t, w, roots)
	dir := t.TempDir()
	env := []string{"LEGO_CA_CERTIFICATES=" + roots}
	secret := base64.RawURLEncoding.EncodeToString(w.authority.secrets["kid-1"])
	base := []string{"--path", dir, "--server", w.url + "/acme/directory", "--email", "admin@fleet.example", "--accept-tos", "-d", "host.fleet.example"}
	solve := []string{"--http", "--http.port", fmt.Sprintf("127.0.0.1:%d", port)}
	eab := []string{"--eab", "--kid", "kid-1", "--hmac", secret}
	w.run(env, "lego", append(append(append(base[:len(base):len(base)], solve...), eab...), "run")...)
	tls := []string{"--tls", "--tls.port", fmt.Sprintf("127.0.0.1:%d", port)}
	w.run(env, "lego", append(append(append(base[:len(base):len(base)], tls...), eab...), "renew", "--days", "90", "--no-random-sleep")...)
	w.run(env, "lego", append(append(base[:len(base):len(base)], eab...), "revoke", "--reason", "4")...)
}

func writeRoots(t *testing.T, w *world, path string) {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.certificate.Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// webroot serves files of a directory for http-01.
func webroot(t *testing.T, port uint16) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	t.Cleanup(func() { _ = s.Close() })
	go func() { _ = s.Serve(l) }()
	return dir
}

func TestJudgeDehydrated(t *testing.T) {
	w, port, roots := judged(t)
	writeRoots(t, w, roots)
	root, dir := webroot(t, port), t.TempDir()
	known := filepath.Join(root, ".well-known", "acme-challenge")
	if err := os.MkdirAll(known, 0o700); err != nil {
		t.Fatal(err)
	}
	secret := base64.RawURLEncoding.EncodeToString(w.authority.secrets["kid-1"])
	config := fmt.Sprintf("CA=%s/acme/directory\nBASEDIR=%s\nWELLKNOWN=%s\nEAB_KID=kid-1\nEAB_HMAC_KEY=%s\nCONTACT_EMAIL=admin@fleet.example\nKEY_ALGO=prime256v1\nOCSP_FETCH=no\n", w.url, dir, known, secret)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	env, base := []string{"CURL_CA_BUNDLE=" + roots}, []string{"--config", filepath.Join(dir, "config")}
	w.run(env, "dehydrated", append(base[:2:2], "--register", "--accept-terms")...)
	w.run(env, "dehydrated", append(base[:2:2], "--cron", "--domain", "host.fleet.example")...)
	w.run(env, "dehydrated", append(base[:2:2], "--cron", "--force", "--domain", "host.fleet.example")...)
	w.run(env, "dehydrated", append(base[:2:2], "--account")...)
	w.run(env, "dehydrated", append(base[:2:2], "--revoke", filepath.Join(dir, "certs", "host.fleet.example", "cert.pem"))...)
}
