package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/hsm"
)

// TestTheDirectoryIsTheServersOwn opens a node in a directory of another account. That must fail: otherwise a command
// that root runs could create files that the server's account cannot open.
func TestTheDirectoryIsTheServersOwn(t *testing.T) {
	own := t.TempDir()
	for _, dir := range []string{own, filepath.Join(own, "missing")} {
		if err := checkOwner(dir); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	foreign := "/" // the root directory belongs to root
	if os.Geteuid() == 0 {
		foreign = t.TempDir()
		if err := os.Chown(foreign, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Open(t.Context(), Config{StateDir: foreign}, hsm.PIN{}, nil)
	if n != nil || err == nil || !strings.Contains(err.Error(), "run it as the directory's owner, such as with runuser -u ") {
		t.Errorf("Open: %v, want an error that names the account", err)
	}
	if left, err := os.ReadDir(foreign); foreign != "/" && (err != nil || len(left) > 0) {
		t.Errorf("%v, and the directory contains %d files, want none", err, len(left))
	}
}
