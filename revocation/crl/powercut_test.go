package crl_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// shelfVariable has the test program publish to a directory, as the process that strace follows.
const shelfVariable = "BREVET_TEST_SHELF"

// TestNamesOutliveThePower has strace see what is flushed before CRLs are on record: whatever was made until then, under the
// name by which the record's file is found after a power cut.
func TestNamesOutliveThePower(t *testing.T) {
	if dir := os.Getenv(shelfVariable); dir != "" {
		publishTo(t, dir)
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has strace")
	}
	dir, trace := filepath.Join(t.TempDir(), "crls"), filepath.Join(t.TempDir(), "trace")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-y", "-s", "4096", "-o", trace, "-e", "signal=none", "-e", "trace=openat,mkdirat,fsync",
		os.Args[0], "-test.run=^TestNamesOutliveThePower$")
	cmd.Env = append(os.Environ(), shelfVariable+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("strace: %v\n%s", err, out)
	}
	unflushed, made, recorded := map[string]bool{}, 0, 0
	for line := range strings.Lines(string(read(t, trace))) {
		switch call := traced.FindStringSubmatch(line); {
		case call == nil:
		case call[1] == "fsync":
			maps.DeleteFunc(unflushed, func(path string, _ bool) bool { return filepath.Dir(path) == call[2] })
		case filepath.Base(call[3]) == "recorded":
			recorded++
			if len(unflushed) > 0 {
				t.Errorf("at the record these names are not flushed: %v", unflushed)
			}
		case strings.HasPrefix(call[3], dir+"/") && (call[1] == "mkdirat" || strings.Contains(line, "O_CREAT")):
			unflushed[call[3]] = true
			made++
		}
	}
	if made < 3 || recorded != 1 {
		t.Errorf("strace has seen %d names and %d records", made, recorded)
	}
}

// traced matches what was flushed, and what was opened or made.
var traced = regexp.MustCompile(`^\d+ +(fsync|openat|mkdirat)\((?:\d+<([^>]*)>|[^"]*"([^"]*)")`)

// publishTo publishes the full CRL and that of a partition, and makes a directory when they are recorded.
func publishTo(t *testing.T, dir string) {
	t.Helper()
	s := newScene(t, revtest.Never)
	s.dir, s.points = dir, []crl.Point{s.pointIn(1, "pki.example")}
	s.start(t, func(call string) (bool, error) {
		if call == "PutCRLs" {
			return false, os.Mkdir(filepath.Join(t.TempDir(), "recorded"), 0o700)
		}
		return false, nil
	})
	s.publishNow(t)
}
