package hsm

import (
	"errors"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestSharedModule: two tokens in one module outlive each other's restarts and closing.
func TestSharedModule(t *testing.T) {
	b := newBench(t, "root", "issuing")
	root, issuing := b.open(t, b.config("root")), b.open(t, b.config("issuing"))
	rk, ik := mustGenerate(t, root, "root", P384), mustGenerate(t, issuing, "issuing", P256)
	for range 3 {
		b.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)})
		mustSign(t, rk)
		mustSign(t, ik)
	}
	if _, err := issuing.Find(t.Context(), KeyRef{Label: "root"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a key of the other token: %v", err)
	}

	finalized := b.count("Finalize")
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	mustSign(t, ik)
	if b.count("Finalize") != finalized {
		t.Error("closing one token finalized the library of both")
	}
	if err := issuing.Close(); err != nil {
		t.Fatal(err)
	}
	if n := b.count("Finalize") - finalized; n != 1 {
		t.Errorf("closing the last token finalized the library %d times", n)
	}
	mustSign(t, mustFind(t, b.open(t, b.config("root")), rk.Ref()))
}

func mustFind(t testing.TB, tok *Token, ref KeyRef) *Key {
	t.Helper()
	k, err := tok.Find(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestSharedModuleUnderLoad: both tokens sign while one of them is made to restart the
// library over and over.
func TestSharedModuleUnderLoad(t *testing.T) {
	b := newBench(t, "one", "two")
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
		third.renew()
		if _, err := third.Keys(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

// TestForeignInitialize: a library that other code of the process has initialised serves,
// and stays initialised for it, as long as it needs no restart.
func TestForeignInitialize(t *testing.T) {
	b := newBench(t, "foreign")
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
		t.Errorf("the library is not initialised any more: %v", err)
	}
}

// TestOpenRefuses: configurations that name no token, or more than one.
