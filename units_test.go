package brevet_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxExposure is the maximum exposure of each service according to `systemd-analyze security`, times ten. 0 is the best
// sandbox, and 100 is no sandbox.
var maxExposure = map[string]string{"brevet.service": "30", "brevet-agent.service": "20"}

// analyze runs systemd-analyze and returns its combined output. The exit code alone does not reveal all findings.
func analyze(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestServicesAreSandboxed(t *testing.T) {
	for unit, most := range maxExposure {
		path := filepath.Join("deploy", "systemd", unit)
		if out, err := analyze(t, "security", "--offline=true", "--no-pager", "--threshold="+most, path); err != nil {
			t.Errorf("%s: exposure is over %s tenths: %v\n%s", unit, most, err, out)
		}
		if out, err := analyze(t, "security", "--offline=true", "--no-pager", "--threshold=5", path); err == nil {
			t.Errorf("%s: systemd-analyze accepts an impossible threshold of 5 tenths\n%s", unit, out)
		}
	}
}

// TestServiceFilesAreValid runs systemd-analyze verify. It replaces the program in the unit by /bin/sh, because verify
// requires that the program exists.
func TestServiceFilesAreValid(t *testing.T) {
	program := regexp.MustCompile(`(?m)^ExecStart=\S+`)
	verify := func(unit, text string) (string, error) {
		path := filepath.Join(t.TempDir(), unit)
		if err := os.WriteFile(path, []byte(program.ReplaceAllString(text, "ExecStart=/bin/sh")), 0o600); err != nil {
			t.Fatal(err)
		}
		return analyze(t, "verify", "--man=no", path)
	}
	for unit := range maxExposure {
		text := read(t, filepath.Join("deploy", "systemd", unit))
		if out, err := verify(unit, text); err != nil || strings.Contains(out, unit) {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
		if out, _ := verify(unit, text+"ProtectEverything=yes\n"); !strings.Contains(out, "ProtectEverything") {
			t.Errorf("%s: systemd-analyze accepts an unknown key\n%s", unit, out)
		}
	}
}

// TestServicesHaveMemoryLimits checks that each service has a memory limit, so that an overload cannot end other
// processes on the machine.
func TestServicesHaveMemoryLimits(t *testing.T) {
	limit := regexp.MustCompile(`(?m)^MemoryMax=[1-9][0-9]*[MG]$`)
	for unit := range maxExposure {
		if !limit.MatchString(read(t, filepath.Join("deploy", "systemd", unit))) {
			t.Errorf("%s has no MemoryMax", unit)
		}
	}
}
