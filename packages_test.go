package brevet_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A package installs what docs/operations.md has people install by hand: the same files, modes and places.
func TestPackagesInstallWhatIsInstalledByHand(t *testing.T) {
	packages := read(t, "deploy/packages/brevet.yaml") + read(t, "deploy/packages/brevet-agent.yaml")
	byHand := regexp.MustCompile(`(?m)^install -m (\d+) ((?:bin|deploy)/\S+) (\S+)$`).FindAllStringSubmatch(read(t, "docs/operations.md"), -1)
	if len(byHand) != strings.Count(packages, "{src: bin/")+strings.Count(packages, "{src: deploy/systemd/") {
		t.Errorf("%d files are installed by hand, and the packages have others", len(byHand))
	}
	for _, m := range byHand {
		mode, src, dst := m[1], m[2], m[3]
		if strings.HasSuffix(dst, "/") {
			dst += filepath.Base(src)
		}
		if want := "{src: " + src + ", dst: " + dst + ", file_info: {mode: " + mode + "}}"; !strings.Contains(packages, want) {
			t.Errorf("docs/operations.md installs %s, and no package has %s", src, want)
		}
	}
}

func TestServicesStartWhatIsInstalled(t *testing.T) {
	for _, name := range []string{"brevet", "brevet-agent"} {
		unit := read(t, filepath.Join("deploy", "systemd", name+".service"))
		if want := "{src: bin/" + name + ", dst: "; !strings.Contains(read(t, filepath.Join("deploy", "packages", name+".yaml")), want+program(unit)+",") {
			t.Errorf("the service of %s starts %q, and the package installs something else", name, program(unit))
		}
	}
}

// program is the path that a unit starts.
func program(unit string) string {
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+)`).FindStringSubmatch(unit)
	if m == nil {
		return ""
	}
	return m[1]
}
