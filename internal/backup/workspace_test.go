package backup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fill writes files below a directory.
func fill(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// list returns the names in a directory.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// restored are the files of a workspace whose restore is complete.
var restored = []string{"store.db", "store.db.lock", "log.archive", "new.archive", "crls/a.crl", "config/brevet.yaml"}

// installed are the names in the state directory afterwards.
var installed = []string{"crls", "log.archive", "restored", "store.db"}

// TestInstallIsCompletedAfterAnInterruption makes each prefix of the moves of Install, and then completes them.
func TestInstallIsCompletedAfterAnInterruption(t *testing.T) {
	for cut := range 6 {
		state := t.TempDir()
		w, err := OpenWorkspace(state)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, w.Dir(), restored...)
		fill(t, w.Dir(), completeName)
		if err := os.Mkdir(filepath.Join(w.Dir(), keptName), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, m := range w.moves()[:cut] {
			if err := os.Rename(m[0], m[1]); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		if slices.Contains(list(t, state), storeName) {
			t.Errorf("after %d moves, a server finds a store", cut)
		}
		if err := w.lock.Close(); err != nil { // as at the end of the process
			t.Fatal(err)
		}
		if finished, err := FinishInstall(state); !finished || err != nil {
			t.Fatalf("after %d moves: %v, %v", cut, finished, err)
		}
		if got := list(t, state); !slices.Equal(got, installed) {
			t.Errorf("after %d moves: %v, want %v", cut, got, installed)
		}
		if finished, err := FinishInstall(state); finished || err != nil {
			t.Errorf("a second time: %v, %v", finished, err)
		}
	}
}

// TestWorkspaceIsEmptiedAfterAnInterruption checks that a restore that was interrupted before its end begins anew, and that
// nothing but its files is removed.
func TestWorkspaceIsEmptiedAfterAnInterruption(t *testing.T) {
	state := t.TempDir()
	fill(t, state, "restoring/store.db", "restoring/crls/a.crl")
	if finished, err := FinishInstall(state); finished || err != nil {
		t.Fatalf("%v, %v", finished, err)
	}
	w, err := OpenWorkspace(state)
	if err != nil || len(list(t, w.Dir())) > 0 {
		t.Fatalf("%v, %v", list(t, w.Dir()), err)
	}
	if _, err := OpenWorkspace(state); err == nil {
		t.Error("two restores use one workspace")
	}
	if err := w.Discard(); err != nil {
		t.Fatal(err)
	}
	fill(t, state, "log.archive")
	if _, err := OpenWorkspace(state); err == nil || !slices.Equal(list(t, state), []string{"log.archive"}) {
		t.Errorf("a directory that is not empty: %v, %v", err, list(t, state))
	}
}
