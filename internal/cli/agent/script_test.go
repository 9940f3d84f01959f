package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/agentcli"
	"github.com/brevet-pki/brevet/pki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brevet-agent": func() { os.Exit(Run("dev")) }})
}

// TestScripts runs the scripts in testdata with the real binary. In each script's directory, held contains a valid
// credential and ended an expired one. spent.token contains the token with which both were enrolled.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			ca, err := newIssuer()
			if err != nil {
				return err
			}
			for name, notAfter := range map[string]time.Time{"held": time.Now().Add(time.Hour), "ended": time.Now().Add(3 * time.Second)} {
				if err := ca.enrollInto(filepath.Join(e.WorkDir, name), notAfter); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "spent.token"), []byte(ca.token.Text()), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await, "await-agent": awaitAgent, "await-reload-failure": awaitReloadFailure, "await-recovery": awaitRecovery, "await-end": awaitEnd, "exitcode": exitCode, "terminate": terminate},
	})
}

// await FILE waits until a file exists.
func await(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s does not appear", args[0])
}

// awaitAgent DIR waits until an agent runs on a directory.
func awaitAgent(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, args[0], func(dir string) bool { running, err := enroll.Running(dir); return err == nil && running })
}

// awaitReloadFailure DIR waits until the status in a directory reports a failed reload command.
func awaitReloadFailure(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, args[0], func(dir string) bool { s, err := enroll.ReadStatus(dir); return err == nil && s.ReloadFailure != nil })
}

// awaitRecovery DIR waits until the status in a directory reports a failed recovery.
func awaitRecovery(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, args[0], func(dir string) bool {
		s, err := enroll.ReadStatus(dir)
		return err == nil && s.Failure != nil && strings.Contains(s.Failure.Error, "recovering")
	})
}

func poll(ts *testscript.TestScript, dir string, holds func(dir string) bool) {
	for range 2000 {
		if holds(ts.MkAbs(dir)) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("what is waited for does not come about in %s", dir)
}

// awaitEnd DIR waits until the certificate in a directory has expired.
func awaitEnd(ts *testscript.TestScript, _ bool, args []string) {
	p, err := enroll.ReadPair(ts.MkAbs(args[0]))
	ts.Check(err)
	time.Sleep(time.Until(p.Certificate.NotAfter.Add(time.Second)))
}

// exitCode CODE [full] COMMAND… runs a command and checks its exit code. With full, every write to the command's
// standard output fails.
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	name, rest := args[1], args[2:]
	if name == "full" { // standard output is /dev/full
		name, rest = "sh", append([]string{"-c", `"$@" >/dev/full`, "sh"}, rest...)
	}
	err := ts.Exec(name, rest...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if args[0] != strconv.Itoa(code) {
		ts.Fatalf("%v: exit code %d, want %s", args[1:], code, args[0])
	}
}

// terminate sends SIGTERM to the background commands of the script.
func terminate(ts *testscript.TestScript, _ bool, _ []string) {
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	}
}

// issuer is an authority that issues a certificate for every enrollment, and refuses every renewal.
type issuer struct {
	root     *x509.Certificate
	key      *ecdsa.PrivateKey
	token    enroll.Token
	notAfter time.Time
}

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test Root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	secret, err := pki.TokenSecretFromBytes(bytes.Repeat([]byte{7}, 32))
	return &issuer{root: root, key: key, token: enroll.Token{Secret: secret, Bootstrap: enroll.Bootstrap{
		RootFingerprint: sha256.Sum256(root.Raw), TrustDomain: "fleet.example", Server: "127.0.0.1:1",
	}}}, err
}

func (i *issuer) Enroll(_ context.Context, r enroll.EnrollRequest) (enroll.Credential, error) {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return enroll.Credential{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0xbeef), NotBefore: time.Now().Add(-time.Minute), NotAfter: i.notAfter,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "fleet.example", Path: "/device/42"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.root, csr.PublicKey, i.key)
	if err != nil {
		return enroll.Credential{}, err
	}
	return enroll.ParseCredential(der, nil, [][]byte{i.root.Raw})
}

func (i *issuer) Renew(context.Context, enroll.RenewRequest) (enroll.Credential, error) {
	return enroll.Credential{}, pki.Refuse(pki.RuleRevoked, "enroll again", "the certificate is revoked")
}

func (i *issuer) RenewalInfo(context.Context, *enroll.Pair) (enroll.RenewalInfo, error) {
	return enroll.RenewalInfo{}, pki.Refuse(pki.RuleMethod, "update the server", "this server has no such RPC")
}

func (i *issuer) TrustBundle(context.Context, *enroll.Pair) (enroll.TrustBundle, error) {
	return enroll.ParseTrustBundle([][]byte{i.root.Raw}, []byte{1})
}

func (i *issuer) enrollInto(path string, notAfter time.Time) error {
	i.notAfter = notAfter
	log := slog.New(slog.DiscardHandler)
	dir, err := enroll.OpenDirectory(path, log)
	if err != nil {
		return err
	}
	defer dir.Close()
	agent, err := enroll.NewAgent(enroll.Config{Directory: dir, Authority: i, Log: log})
	if err != nil {
		return err
	}
	return agent.Enroll(context.Background(), i.token)
}

// Every command that package agentcli describes exists: the command itself refuses an unknown flag.
func TestDescribedCommandsExist(t *testing.T) {
	for _, c := range agentcli.Commands() {
		var output strings.Builder
		execute(t.Context(), "dev", []string{c.Name, "--no-such-flag"}, streams{nil, &output, &output})
		if want := c.Name + ": flag provided but not defined"; c.Name != "help" && !strings.Contains(output.String(), want) {
			t.Errorf("%s says %q, want %q", c.Name, &output, want)
		}
	}
}

// The agent notifies systemd when it has a credential, and when it stops.
func TestSystemdIsTold(t *testing.T) {
	base := t.TempDir()
	ca, err := newIssuer()
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.enrollInto(filepath.Join(base, "held"), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "agent.yaml")
	if err := os.WriteFile(file, []byte("state_dir: "+filepath.Join(base, "held")), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(base, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(base, "s"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var logged strings.Builder
	code := make(chan int, 1)
	go func() { code <- execute(ctx, "dev", []string{"run", "--config", file}, streams{nil, &logged, &logged}) }()
	hear := func() string {
		b := make([]byte, 100)
		if err := socket.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := hear(); got != "READY=1" {
		t.Errorf("first: %q", got)
	}
	cancel()
	if got := hear(); got != "STOPPING=1" {
		t.Errorf("then: %q", got)
	}
	if got := <-code; got != 0 {
		t.Errorf("exit code %d: %s", got, &logged)
	}
}
