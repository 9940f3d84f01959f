package hsm

import (
	"os"
	"path/filepath"
	"testing"
)

// TestOpenEndToEnd does twice what a program does, without test doubles: it creates a private SoftHSM, calls os.Setenv,
// and opens an HSM and a key.
func TestOpenEndToEnd(t *testing.T) {
	module, dir := softModule(t)
	user := testPIN(t, userSecret)
	serial, err := Init(t.Context(), module, "dev", testPIN(t, soSecret), user)
	if err != nil || serial == "" {
		t.Fatal(serial, err)
	}
	if stored, err := filepath.Glob(filepath.Join(dir, "tokens", "*")); err != nil || len(stored) != 1 {
		t.Fatalf("the HSM is not in the private store: %v, %v", stored, err)
	}
	var ref KeyRef
	for i := range 2 {
		if _, err := WriteSoftHSM(dir); err != nil {
			t.Fatal(err)
		}
		tok, err := Open(t.Context(), Config{Module: module, Label: "dev"}, user)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			ref = mustGenerate(t, tok, "k", P256).Ref()
		}
		mustSign(t, mustFind(t, tok, ref))
		if err := tok.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteSoftHSMMakesUsableStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a home", "soft hsm")
	conf, err := WriteSoftHSM(dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "tokens"): 0o700, conf: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if names, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(names) != 0 {
		t.Errorf("left over: %v, %v", names, err)
	}
	// SoftHSM must accept a configuration whose path contains a space.
	t.Setenv(SoftHSMConfEnv, conf)
	module, err := FindSoftHSM()
	if err != nil {
		t.Fatalf("%v; run deploy/setup.sh --test", err)
	}
	if _, err := Init(t.Context(), module, "blank", testPIN(t, soSecret), testPIN(t, userSecret)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"a#b", "a=b", "a\nb"} {
		if _, err := WriteSoftHSM(filepath.Join(t.TempDir(), bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteSoftHSM(file); err == nil {
		t.Error("a file was accepted as a directory")
	}
}
