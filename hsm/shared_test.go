package hsm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestHSMsOfOneModuleAreIndependent opens two HSMs in one module. Closing or restarting one must not affect the other.
func TestHSMsOfOneModuleAreIndependent(t *testing.T) {
	b := newTestBench(t, "root", "issuing")
	root, issuing := b.open(t, b.config("root")), b.open(t, b.config("issuing"))
	rk, ik := mustGenerate(t, root, "root", P384), mustGenerate(t, issuing, "issuing", P256)
	for range 3 {
		b.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)})
		mustSign(t, rk)
		mustSign(t, ik)
	}
	if _, err := issuing.Find(t.Context(), KeyRef{Label: "root"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Find of a key of the other HSM: %v", err)
	}

	finalized := b.count("Finalize")
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	mustSign(t, ik)
	if b.count("Finalize") != finalized {
		t.Error("closing one HSM finalized the library of both")
	}
	if err := issuing.Close(); err != nil {
		t.Fatal(err)
	}
	if n := b.count("Finalize") - finalized; n != 1 {
		t.Errorf("closing the last HSM finalized the library %d times", n)
	}
	mustSign(t, mustFind(t, b.open(t, b.config("root")), rk.Ref()))
}

func mustFind(t testing.TB, tok *HSM, ref KeyRef) *Key {
	t.Helper()
	k, err := tok.Find(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestHSMsSignWhileNeighborRestarts signs with two HSMs, while one of them repeatedly restarts their library.
func TestHSMsSignWhileNeighborRestarts(t *testing.T) {
	b := newTestBench(t, "one", "two")
	var wg sync.WaitGroup
	for _, label := range []string{"one", "two"} {
		k := mustGenerate(t, b.open(t, b.config(label)), label, P256)
		for range 4 {
			wg.Go(func() {
				for range 30 {
					sig, err := signed(k)
					if err != nil {
						t.Error(err)
						return
					}
					verify(t, k, sig)
				}
			})
		}
	}
	third := b.open(t, b.config("one"))
	for range 10 {
		third.requireRestart()
		if _, err := third.Keys(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

// TestHSMSignsWithoutNeighbor signs with one HSM while another HSM of the module is missing. When that one returns, it
// must work again.
func TestHSMSignsWithoutNeighbor(t *testing.T) {
	b := newTestBench(t, "here")
	before := tokenDirectories(t, b)
	if _, err := b.reg.initialize(t.Context(), b.module, "away", testPIN(t, soSecret), testPIN(t, userSecret)); err != nil {
		t.Fatal(err)
	}
	after := slices.DeleteFunc(tokenDirectories(t, b), func(path string) bool { return slices.Contains(before, path) })
	if len(after) != 1 {
		t.Fatalf("the new HSM has the directories %v", after)
	}
	elsewhere := filepath.Join(b.dir, "elsewhere")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	here := mustGenerate(t, b.open(t, b.config("here")), "here", P256)
	move(after[0], elsewhere)
	if tok, err := b.reg.open(t.Context(), b.config("away"), testPIN(t, userSecret)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("open an HSM that is away: %v, %v", tok, err)
	}
	mustSign(t, here)

	move(elsewhere, after[0])
	away := mustGenerate(t, b.open(t, b.config("away")), "away", P256)
	move(after[0], elsewhere)
	away.hsm.requireRestart() // without a restart, SoftHSM would sign with the key in its memory
	for range 5 {
		if _, err := signed(away); !errors.Is(err, ErrUnavailable) {
			t.Errorf("signing with an HSM that is away: %v", err)
		}
		mustSign(t, here)
	}
	move(elsewhere, after[0])
	eventually(t, func() error { _, err := signed(away); return err })
	mustSign(t, here)
}

// tokenDirectories returns the directory of each HSM in the SoftHSM store.
func tokenDirectories(t *testing.T, b *testBench) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(b.dir, "tokens", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestModulesAreInitializedSeparately opens two libraries in one process. Each must be initialized and finalized
// independently of the other.
func TestModulesAreInitializedSeparately(t *testing.T) {
	b := newTestBench(t, "one", "two")
	library, err := os.ReadFile(b.module)
	if err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "second.so")
	if err := os.WriteFile(second, library, 0o700); err != nil {
		t.Fatal(err)
	}
	reg := &registry{load: load}
	open := func(label, module string) *HSM {
		t.Helper()
		tok, err := reg.open(t.Context(), Config{Module: module, Label: label}, testPIN(t, userSecret))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	one, two := open("one", b.module), open("two", second)
	k1, k2 := mustGenerate(t, one, "k1", P256), mustGenerate(t, two, "k2", P256)
	one.requireRestart()
	mustSign(t, k1)
	mustSign(t, k2)
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	mustSign(t, k2)
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLibraryOfOtherCodeIsUsed uses a library that other code in the process has initialized. The package must not
// finalize it, unless it needs a restart.
func TestLibraryOfOtherCodeIsUsed(t *testing.T) {
	b := newTestBench(t, "foreign")
	tok := b.open(t, b.config("foreign"))
	ref := mustGenerate(t, tok, "k", P256).Ref()
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	lib := b.real(t)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	tok = b.open(t, b.config("foreign"))
	mustSign(t, mustFind(t, tok, ref))
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lib.Finalize(); err != nil {
		t.Errorf("Close finalized the library of other code: %v", err)
	}
}
