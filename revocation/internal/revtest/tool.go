package revtest

import (
	"errors"
	"os/exec"
	"testing"
)

// Tool runs a program that checks CRLs or responses. It returns the program's output and exit code.
func Tool(t testing.TB, name string, args ...string) (output string, code int) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run deploy/setup.sh --test", name)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(out), 0
}

// MustTool runs a program that must exit with code 0.
func MustTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, code := Tool(t, name, args...)
	if code != 0 {
		t.Fatalf("%s %q exits %d:\n%s", name, args, code, out)
	}
	return out
}
