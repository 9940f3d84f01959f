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

// directoryVariable makes the test program publish CRLs to a directory. strace observes that process.
const directoryVariable = "BREVET_TEST_CRL_DIRECTORY"

// TestNamesAreSyncedBeforeRecords checks with strace that every new file and directory has been synced before the CRLs
// are recorded. After a power cut, a recorded CRL then has its file.
func TestNamesAreSyncedBeforeRecords(t *testing.T) {
	if dir := os.Getenv(directoryVariable); dir != "" {
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
		os.Args[0], "-test.run=^TestNamesAreSyncedBeforeRecords$")
	cmd.Env = append(os.Environ(), directoryVariable+"="+dir)
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
				t.Errorf("when CRLs are recorded, these names are not synced: %v", unflushed)
			}
		case strings.HasPrefix(call[3], dir+"/") && (call[1] == "mkdirat" || strings.Contains(line, "O_CREAT")):
			unflushed[call[3]] = true
			made++
		}
	}
	if made < 3 || recorded != 1 {
		t.Errorf("strace reports %d names and %d records", made, recorded)
	}
}

// traced matches the system calls that sync, open or create.
var traced = regexp.MustCompile(`^\d+ +(fsync|openat|mkdirat)\((?:\d+<([^>]*)>|[^"]*"([^"]*)")`)

// publishTo publishes the full CRL and the CRL of a partition. When they are recorded, it creates a directory, which
// marks that time in strace's output.
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
