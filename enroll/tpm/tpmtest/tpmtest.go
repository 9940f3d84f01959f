// Package tpmtest manufactures TPMs for tests: swtpm, an emulator, with endorsement keys that swtpm_localca has
// certified, and tpm2-tools to use them with independent code. Everything is in temporary directories, and ends with
// the test. The programs must be installed (deploy/setup.sh --test).
//
// Only test files may import the package.
package tpmtest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Manufacturer makes TPMs, and certifies their endorsement keys. It is not safe for concurrent use.
type Manufacturer struct{ dir string }

// NewManufacturer returns a manufacturer with a CA of its own.
func NewManufacturer(t testing.TB) *Manufacturer {
	t.Helper()
	m := &Manufacturer{t.TempDir()}
	for name, text := range map[string]string{
		"localca.conf": "statedir = {dir}\nsigningkey = {dir}/signkey.pem\n" +
			"issuercert = {dir}/issuercert.pem\ncertserial = {dir}/certserial\n",
		"localca.options": "", // the file must exist
		"setup.conf": "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {dir}/localca.conf\n" +
			"create_certs_tool_options = {dir}/localca.options\nactive_pcr_banks = sha256\n",
	} {
		write(t, filepath.Join(m.dir, name), strings.ReplaceAll(text, "{dir}", m.dir))
	}
	return m
}

// CAs returns the root and the intermediate CA. They exist after the first TPM was made.
func (m *Manufacturer) CAs(t testing.TB) (root, intermediate *x509.Certificate) {
	t.Helper()
	return m.certificate(t, "swtpm-localca-rootca-cert.pem"), m.certificate(t, "issuercert.pem")
}

func (m *Manufacturer) certificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TPM is a running TPM.
type TPM struct {
	// Path is the socket of the TPM.
	Path string
	// Dir is a directory for the files of tools.
	Dir string
}

// Make makes a TPM with certified endorsement keys of the types RSA-2048 and P-384, and starts it.
func (m *Manufacturer) Make(t testing.TB) *TPM {
	t.Helper()
	state := t.TempDir()
	setup := exec.CommandContext(t.Context(), "swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--lock-nvram", "--overwrite",
		"--config", filepath.Join(m.dir, "setup.conf"))
	if os.Geteuid() == 0 {
		setup.Args = append(setup.Args, "--runas", "root") // or it becomes another user, who may not write here
	}
	run(t, setup)
	return start(t, state)
}

// start starts the TPM with a state, and waits until it accepts connections.
func start(t testing.TB, state string) *TPM {
	t.Helper()
	// The paths of sockets have at most 107 characters, and t.TempDir contains the name of the test.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	tpm := &TPM{filepath.Join(dir, "tpm"), dir}
	var output bytes.Buffer
	// The TPM runs until the cleanup, when the test's own context has ended.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", "type=unixio,path="+tpm.Path,
		"--ctrl", "type=unixio,path="+tpm.Path+".ctrl", "--flags", "not-need-init,startup-clear")
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("start swtpm, which deploy/setup.sh --test installs: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended //nolint:errcheck // the TPM was killed
		_ = os.RemoveAll(dir)
	})
	for {
		if conn, err := new(net.Dialer).DialContext(t.Context(), "unix", tpm.Path); err == nil {
			_ = conn.Close()
			return tpm
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("swtpm ended: %v\n%s", err, output.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Environment returns the environment in which programs of the TSS use the TPM.
func (p *TPM) Environment() []string {
	tcti := "swtpm:path=" + p.Path
	return append(os.Environ(), "TPM2TOOLS_TCTI="+tcti, "TPM2OPENSSL_TCTI="+tcti)
}

// Tool runs a program of tpm2-tools in Dir, and removes what it leaves in the memory of the TPM. It returns the output.
func (p *TPM) Tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out := run(t, p.Command(name, args...))
	run(t, p.Command("tpm2_flushcontext", "--transient-object"))
	return out
}

// Command returns a command that uses the TPM, and runs in Dir.
func (p *TPM) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), name, args...)
	cmd.Dir, cmd.Env = p.Dir, p.Environment()
	return cmd
}

// File returns the content of a file in Dir.
func (p *TPM) File(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Write writes a file in Dir.
func (p *TPM) Write(t testing.TB, name string, data []byte) {
	t.Helper()
	write(t, filepath.Join(p.Dir, name), string(data))
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}
