package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
)

// The evidence command names the TPM as tpm2-tools and OpenSSL do.
func TestEvidenceNamesTheTPM(t *testing.T) {
	tpm := tpmtest.NewManufacturer(t).Make(t)
	tpm.Tool(t, "tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-f", "pem", "-u", "ek.pem")
	digest, err := tpm.Command("sh", "-c", "openssl pkey -pubin -in ek.pem -outform DER | sha256sum").Output()
	if err != nil {
		t.Fatal(err)
	}
	hash, _, _ := strings.Cut(string(digest), " ")

	run := func(settings string) (code int, out, errs string) {
		file := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		var output, errors strings.Builder
		code = execute(t.Context(), "dev", []string{"evidence", "--config", file}, streams{nil, &output, &errors})
		return code, output.String(), errors.String()
	}
	if code, out, errs := run("state_dir: /nowhere\nkey: {tpm: " + tpm.Path + "}\n"); code != 0 || out != "tpm:"+hash+"\n" {
		t.Errorf("exit code %d: %q, %s, want the hash %s", code, out, errs, hash)
	}
	if code, out, errs := run("state_dir: /nowhere\nkey: {tpm: /nowhere}\n"); code != 1 || out != "" || !strings.Contains(errs, "there is no TPM at /nowhere") {
		t.Errorf("without the TPM: exit code %d: %q, %s", code, out, errs)
	}
	if code, out, errs := run("state_dir: /nowhere\n"); code != 2 || out != "" || !strings.Contains(errs, "set key.tpm") {
		t.Errorf("with keys in files: exit code %d: %q, %s", code, out, errs)
	}
}
