package server_test

import (
	"context"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// python runs the client in examples/python. The fields are directories.
type python struct {
	generated, credentials string
}

func newPython(t *testing.T) python {
	t.Helper()
	p := python{t.TempDir(), t.TempDir()}
	if out, err := exec.CommandContext(t.Context(), "sh", "../examples/python/make.sh", p.generated).CombinedOutput(); err != nil {
		t.Fatalf("make.sh: %v: run deploy/setup.sh --test\n%s", err, out)
	}
	return p
}

// run runs a command of the client with the credential of a given name, and returns the command's output.
func (p python) run(t *testing.T, command, credential string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"../examples/python/client.py", command, "--credential", filepath.Join(p.credentials, credential)}, args...)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "/usr/bin/python3", args...)
	cmd.Env = append(os.Environ(), "BREVET_GENERATED="+p.generated, "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestAPythonClient uses generated Python code to enroll with a token, renew over mutual TLS, list certificates and
// revoke one.
func TestAPythonClient(t *testing.T) {
	t.Parallel()
	p := newPython(t)
	w := servertest.New(t, ground, servertest.Options{Names: []string{"127.0.0.1"}})
	root := filepath.Join(t.TempDir(), "root.pem")
	writePEM(t, root, "CERTIFICATE", w.Root.Raw)
	enroll := func(name, token string) (string, error) {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.Secret(t, token)
		return p.run(t, "enroll", name, "--token-file", file, "--root", root)
	}
	device := w.Register(t, "device", "device/1")
	token := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: device}))(t).GetToken()
	issued := regexp.MustCompile(`^([0-9A-F]+) renew at 20\S+Z\n$`)
	out, err := enroll("device", token)
	first := issued.FindStringSubmatch(out)
	if err != nil || first == nil {
		t.Fatalf("enroll: %v\n%s", err, out)
	}
	out, err = p.run(t, "renew", "device")
	second := issued.FindStringSubmatch(out)
	if err != nil || second == nil || second[1] == first[1] {
		t.Fatalf("renew: %v\n%s", err, out)
	}
	if out, err := enroll("thief", token); err == nil || !strings.Contains(out, "PERMISSION_DENIED [token.bound]") {
		t.Errorf("enroll with a used token: %v\n%s", err, out)
	}
	if out, err := p.run(t, "list", "device"); err == nil || !strings.Contains(out, "PERMISSION_DENIED [access.denied]") {
		t.Errorf("list certificates as a device: %v\n%s", err, out)
	}
	operator := servertest.Must(w.Server.OperatorToken(t.Context(), "python", pki.ActorCommand("ceremony install")))(t)
	if out, err := enroll("operator", operator); err != nil {
		t.Fatalf("enroll an operator: %v\n%s", err, out)
	}
	if out, err := p.run(t, "revoke", "operator", "--serial", second[1], "--reason", "key_compromise"); err != nil || out != "revoked 1\n" {
		t.Errorf("revoke: %v\n%s", err, out)
	}
	want := second[1] + " " + device + " revoked\n" + first[1] + " " + device + " good\n"
	if out, err := p.run(t, "list", "operator", "--identity", "device/1"); err != nil || out != want {
		t.Errorf("list: %v\n%s, want\n%s", err, out, want)
	}
	block, _ := pem.Decode(servertest.Must(os.ReadFile(filepath.Join(p.credentials, "device", "cert.pem")))(t))
	w.Status(t, w.Holder(t, block.Bytes, servertest.Key(t)).Certificate, "keyCompromise")
}
