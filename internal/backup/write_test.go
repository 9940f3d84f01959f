package backup

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCreateLockedWritesOnlyToItsOwnFile checks that a file of another name is not emptied, and that a file that another
// account could have open is not written to.
func TestCreateLockedWritesOnlyToItsOwnFile(t *testing.T) {
	dir := t.TempDir()
	victim, part := filepath.Join(dir, "victim"), filepath.Join(dir, "out.part")
	fill(t, dir, "victim")
	if err := os.Link(victim, part); err != nil {
		t.Fatal(err)
	}
	f, err := createLocked(part)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("secret"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "victim" {
		t.Errorf("the other file has %q, %v", got, err)
	}
	if info, err := os.Stat(part); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v, want a file of mode 0600", info, err)
	}
	if second, err := createLocked(part); err == nil {
		_ = second.Close()
		t.Error("two processes write one file")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := createLocked(part) // of a process that was killed
	if err != nil {
		t.Fatal(err)
	}
	if info, err := again.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("%v, %v, want an empty file", info, err)
	}
	_ = again.Close()
}
