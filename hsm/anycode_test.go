package hsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

// someCodes are return values that say nothing of how to go on, and were met when a device was lost.
var someCodes = []uint{
	pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
	pkcs11.CKR_VENDOR_DEFINED + 9,
}

// lossy is a bench on the shim, which loses SoftHSM.
type lossy struct {
	*bench
	control string
}

// newLossy compiles the shim and makes a token behind it.
func newLossy(t *testing.T) *lossy {
	t.Helper()
	b := newBench(t)
	l := &lossy{b, filepath.Join(b.dir, "control")}
	t.Setenv("SHIM_MODULE", b.module)
	t.Setenv("SHIM_CONTROL", l.control)
	b.module = filepath.Join(b.dir, "shim.so")
	tool(t, "gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-I/usr/include/p11-kit-1", "-o", b.module, "testdata/shim.c")
	if _, err := b.reg.initToken(t.Context(), b.module, "lossy", testPIN(t, soSecret), testPIN(t, userSecret)); err != nil {
		t.Fatal(err)
	}
	return l
}

// lose has a call fail with a code, until the library is finalized or restored.
func (l *lossy) lose(t *testing.T, code uint, call, how string) {
	t.Helper()
	if err := os.WriteFile(l.control, fmt.Appendf(nil, "%x %s %s\n", code, call, how), 0o600); err != nil {
		t.Fatal(err)
	}
}

// leads has the next signature come to a call that it does not need otherwise.
func (l *lossy) leads(call string) {
	codes := map[string]uint{
		"OpenSession": pkcs11.CKR_SESSION_CLOSED, "Login": pkcs11.CKR_USER_NOT_LOGGED_IN, "FindObjectsInit": pkcs11.CKR_OBJECT_HANDLE_INVALID,
	}
	if code, ok := codes[call]; ok {
		l.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(code)})
	}
}

// TestHealWhateverTheCode: a device that is lost with any code comes back with the next generation of the library. If that is enough, the
// caller does not notice; if the device stays away, the error is temporary.
func TestHealWhateverTheCode(t *testing.T) {
	l := newLossy(t)
	k := mustGenerate(t, l.open(t, l.config("lossy")), "k", P256)
	for _, code := range someCodes {
		for _, call := range []string{"SignInit", "OpenSession", "Login", "FindObjectsInit"} {
			name := fmt.Sprintf("%s with %v", call, pkcs11.Error(code))
			mustSign(t, k)
			inits := l.count("Initialize")
			l.lose(t, code, call, "returns")
			l.leads(call)
			sig, err := signed(k)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			verify(t, k, sig)
			if n := l.count("Initialize") - inits; n != 1 {
				t.Errorf("%s: the library was initialised %d times", name, n)
			}
			l.lose(t, code, call, "stays")
			l.leads(call)
			if _, err := signed(k); !errors.Is(err, ErrUnavailable) || !temporary(err) || retryAfter(err) <= 0 {
				t.Errorf("%s, while the device is away: %v", name, err)
			}
			if err := os.Remove(l.control); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error { _, err := signed(k); return err })
		}
	}
}

// TestProveHealsWhateverTheCode: nobody asks for a signature, and the device comes back all the same.
func TestProveHealsWhateverTheCode(t *testing.T) {
	l := newLossy(t)
	tok := l.open(t, l.config("lossy"))
	w := Watched{tok, []*Key{mustGenerate(t, tok, "one", P256), mustGenerate(t, tok, "two", P384)}}
	for _, code := range append(someCodes, pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_FUNCTION_NOT_SUPPORTED) {
		if err := w.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.lose(t, code, "OpenSession", "returns")
		l.leads("OpenSession")
		inits := l.count("Initialize")
		if err := w.Prove(t.Context()); err != nil {
			t.Errorf("%v: %v", pkcs11.Error(code), err)
		}
		if n := l.count("Initialize") - inits; n != 1 {
			t.Errorf("%v: the library was initialised %d times", pkcs11.Error(code), n)
		}
	}
}

// TestWrongPINEndsHealing: the device is lost with a vendor's code, and the PIN has changed when it is back. It is offered once.
func TestWrongPINEndsHealing(t *testing.T) {
	l := newLossy(t)
	k := mustGenerate(t, l.open(t, l.config("lossy")), "k", P256)
	l.pkcs11Tool(t, "lossy", "--change-pin", "--new-pin", "env:NEW_PIN")
	l.lose(t, pkcs11.CKR_VENDOR_DEFINED+9, "SignInit", "returns")
	before := l.count("Login")
	for range 5 {
		if _, err := signed(k); !errors.Is(err, ErrPIN) || temporary(err) {
			t.Errorf("want ErrPIN: %v", err)
		}
	}
	if n := l.count("Login") - before; n != 1 {
		t.Errorf("the old PIN was tried %d times", n)
	}
}

// TestARequestAtFault: a code that says nothing, from a token that passes the self-test, is about the request. It restarts nothing.
func TestARequestAtFault(t *testing.T) {
	b := newBench(t, "fault")
	k := mustGenerate(t, b.open(t, b.config("fault")), "k", P256)
	mustSign(t, k)
	code := pkcs11.Error(pkcs11.CKR_VENDOR_DEFINED + 9)
	b.inject(fault{call: "Sign", times: 1, err: code})
	b.inject(fault{call: "Sign", skip: 1, times: 1, err: code}) // after the self-test
	inits := b.count("Initialize")
	if _, err := signed(k); !errors.Is(err, code) || temporary(err) {
		t.Errorf("want the token's code: %v", err)
	}
	if n := b.count("Initialize") - inits; n != 0 {
		t.Errorf("the library was initialised %d times", n)
	}
	mustSign(t, k)
}
