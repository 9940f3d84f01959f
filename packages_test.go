package brevet_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPackagesInstallSameFilesAsByHand compares the Debian packages with the manual installation in docs/operations.md.
// Both must install the same files with the same modes to the same destinations.
func TestPackagesInstallSameFilesAsByHand(t *testing.T) {
	packages := read(t, "deploy/packages/brevet.yaml") + read(t, "deploy/packages/brevet-agent.yaml")
	byHand := regexp.MustCompile(`(?m)^install -m (\d+) ((?:bin|deploy)/\S+) (\S+)$`).FindAllStringSubmatch(read(t, "docs/operations.md"), -1)
	if len(byHand) != strings.Count(packages, "{src: bin/")+strings.Count(packages, "{src: deploy/systemd/") {
		t.Errorf("docs/operations.md installs %d files, the packages another number", len(byHand))
	}
	for _, m := range byHand {
		mode, src, dst := m[1], m[2], m[3]
		if strings.HasSuffix(dst, "/") {
			dst += filepath.Base(src)
		}
		if want := "{src: " + src + ", dst: " + dst + ", file_info: {mode: " + mode + "}}"; !strings.Contains(packages, want) {
			t.Errorf("docs/operations.md installs %s, but no package has %s", src, want)
		}
	}
}

func TestServicesStartInstalledPrograms(t *testing.T) {
	for _, name := range []string{"brevet", "brevet-agent"} {
		unit := read(t, filepath.Join("deploy", "systemd", name+".service"))
		if want := "{src: bin/" + name + ", dst: "; !strings.Contains(read(t, filepath.Join("deploy", "packages", name+".yaml")), want+program(unit)+",") {
			t.Errorf("the service of %s starts %q, which its package does not install", name, program(unit))
		}
	}
}

// program returns the path of the program that a systemd unit starts.
func program(unit string) string {
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+)`).FindStringSubmatch(unit)
	if m == nil {
		return ""
	}
	return m[1]
}
