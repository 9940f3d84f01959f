package brevet_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// exposure is what `systemd-analyze security` may rate a service at most, in tenths: 0 is nothing to attack, 100 is no
// protection.
var exposure = map[string]string{"brevet.service": "30", "brevet-agent.service": "20"}

// analyze runs systemd-analyze, which tells apart what it wants to say and what it found only by its output.
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

func TestServicesAreConfined(t *testing.T) {
	for unit, most := range exposure {
		path := filepath.Join("deploy", "systemd", unit)
		if out, err := analyze(t, "security", "--offline=true", "--no-pager", "--threshold="+most, path); err != nil {
			t.Errorf("%s: over %s tenths: %v\n%s", unit, most, err, out)
		}
		if out, err := analyze(t, "security", "--offline=true", "--no-pager", "--threshold=5", path); err == nil {
			t.Errorf("%s: there is no such confinement: systemd-analyze does not look\n%s", unit, out)
		}
	}
}

// A service file is verified with a program where it expects one: systemd-analyze asks for it.
func TestServiceFilesAreValid(t *testing.T) {
	program := regexp.MustCompile(`(?m)^ExecStart=\S+`)
	verify := func(unit, text string) (string, error) {
		path := filepath.Join(t.TempDir(), unit)
		if err := os.WriteFile(path, []byte(program.ReplaceAllString(text, "ExecStart=/bin/sh")), 0o600); err != nil {
			t.Fatal(err)
		}
		return analyze(t, "verify", "--man=no", path)
	}
	for unit := range exposure {
		text := read(t, filepath.Join("deploy", "systemd", unit))
		if out, err := verify(unit, text); err != nil || strings.Contains(out, unit) {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
		if out, _ := verify(unit, text+"ProtectEverything=yes\n"); !strings.Contains(out, "ProtectEverything") {
			t.Errorf("%s: a key that does not exist passes\n%s", unit, out)
		}
	}
}

// A flood ends the service at the latest, and not what else runs on the machine.
func TestServicesHaveMemoryLimits(t *testing.T) {
	limit := regexp.MustCompile(`(?m)^MemoryMax=[1-9][0-9]*[MG]$`)
	for unit := range exposure {
		if !limit.MatchString(read(t, filepath.Join("deploy", "systemd", unit))) {
			t.Errorf("%s has no MemoryMax", unit)
		}
	}
}
