package hsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

// someCodes are return values that do not reveal the cause, and that libraries returned when a device was lost.
var someCodes = []uint{
	pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
	pkcs11.CKR_VENDOR_DEFINED + 9,
}

// lossyBench is a testBench with a shim between the package and SoftHSM. The shim can simulate a lost device.
type lossyBench struct {
	*testBench
	control string
}

// newLossyBench compiles the shim, and initializes an HSM that is reached through it.
func newLossyBench(t *testing.T) *lossyBench {
	t.Helper()
	b := newTestBench(t)
	l := &lossyBench{b, filepath.Join(b.dir, "control")}
	t.Setenv("SHIM_MODULE", b.module)
	t.Setenv("SHIM_CONTROL", l.control)
	b.module = filepath.Join(b.dir, "shim.so")
	tool(t, "gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-I/usr/include/p11-kit-1", "-o", b.module, "testdata/shim.c")
	if _, err := b.reg.initialize(t.Context(), b.module, "lossy", testPIN(t, soSecret), testPIN(t, userSecret)); err != nil {
		t.Fatal(err)
	}
	return l
}

// lose makes a function of the library fail with a code. If how is "returns", the function works again after the
// library is finalized. Otherwise it fails until the control file is removed.
func (l *lossyBench) lose(t *testing.T, code uint, call, how string) {
	t.Helper()
	if err := os.WriteFile(l.control, fmt.Appendf(nil, "%x %s %s\n", code, call, how), 0o600); err != nil {
		t.Fatal(err)
	}
}

// forceCall makes the next signature call a function of the library that it would otherwise not need.
func (l *lossyBench) forceCall(call string) {
	codes := map[string]uint{
		"OpenSession": pkcs11.CKR_SESSION_CLOSED, "Login": pkcs11.CKR_USER_NOT_LOGGED_IN, "FindObjectsInit": pkcs11.CKR_OBJECT_HANDLE_INVALID,
	}
	if code, ok := codes[call]; ok {
		l.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(code)})
	}
}

// TestLostDeviceIsRecoveredWhateverTheCode simulates a lost device with codes that do not reveal the cause. If the
// device works again after a restart of the library, the caller gets its signature. If it does not, the error is
// temporary.
func TestLostDeviceIsRecoveredWhateverTheCode(t *testing.T) {
	l := newLossyBench(t)
	k := mustGenerate(t, l.open(t, l.config("lossy")), "k", P256)
	for _, code := range someCodes {
		for _, call := range []string{"SignInit", "OpenSession", "Login", "FindObjectsInit"} {
			name := fmt.Sprintf("%s with %v", call, pkcs11.Error(code))
			mustSign(t, k)
			inits := l.count("Initialize")
			l.lose(t, code, call, "returns")
			l.forceCall(call)
			sig, err := signed(k)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			verify(t, k, sig)
			if n := l.count("Initialize") - inits; n != 1 {
				t.Errorf("%s: the library was initialized %d times", name, n)
			}
			l.lose(t, code, call, "stays")
			l.forceCall(call)
			if _, err := signed(k); !errors.Is(err, ErrUnavailable) || !temporary(err) || retryAfter(err) <= 0 {
				t.Errorf("%s, while the device is away: %v, want temporary ErrUnavailable", name, err)
			}
			if err := os.Remove(l.control); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error { _, err := signed(k); return err })
		}
	}
}

// TestProveRecoversLostDevice checks that Prove recovers a lost device without a call of Sign.
func TestProveRecoversLostDevice(t *testing.T) {
	l := newLossyBench(t)
	tok := l.open(t, l.config("lossy"))
	w := Watched{tok, []*Key{mustGenerate(t, tok, "one", P256), mustGenerate(t, tok, "two", P384)}}
	for _, code := range append(someCodes, pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_FUNCTION_NOT_SUPPORTED) {
		if err := w.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.lose(t, code, "OpenSession", "returns")
		l.forceCall("OpenSession")
		inits := l.count("Initialize")
		if err := w.Prove(t.Context()); err != nil {
			t.Errorf("Prove after %v: %v", pkcs11.Error(code), err)
		}
		if n := l.count("Initialize") - inits; n != 1 {
			t.Errorf("%v: the library was initialized %d times", pkcs11.Error(code), n)
		}
	}
}

// TestChangedPINIsTriedOnceAfterDeviceLoss changes the PIN, and then simulates a lost device with a vendor's code. The
// HSM must receive the old PIN only once.
func TestChangedPINIsTriedOnceAfterDeviceLoss(t *testing.T) {
	l := newLossyBench(t)
	k := mustGenerate(t, l.open(t, l.config("lossy")), "k", P256)
	l.pkcs11Tool(t, "lossy", "--change-pin", "--new-pin", "env:NEW_PIN")
	l.lose(t, pkcs11.CKR_VENDOR_DEFINED+9, "SignInit", "returns")
	before := l.count("Login")
	for range 5 {
		if _, err := signed(k); !errors.Is(err, ErrPIN) || temporary(err) {
			t.Errorf("signing with a changed PIN: %v, want ErrPIN", err)
		}
	}
	if n := l.count("Login") - before; n != 1 {
		t.Errorf("the old PIN was tried %d times", n)
	}
}

// TestUnclearCodeAfterSelfTestIsReturned checks what happens if signing fails with an unclear code, but the HSM passes
// the self-test. Sign then returns the error, because the request caused it, and the library is not restarted.
func TestUnclearCodeAfterSelfTestIsReturned(t *testing.T) {
	b := newTestBench(t, "fault")
	k := mustGenerate(t, b.open(t, b.config("fault")), "k", P256)
	mustSign(t, k)
	code := pkcs11.Error(pkcs11.CKR_VENDOR_DEFINED + 9)
	b.inject(fault{call: "Sign", times: 1, err: code})
	b.inject(fault{call: "Sign", skip: 1, times: 1, err: code}) // fails the second signature, after the self-test
	inits := b.count("Initialize")
	if _, err := signed(k); !errors.Is(err, code) || temporary(err) {
		t.Errorf("signing returns %v, want the HSM's code", err)
	}
	if n := b.count("Initialize") - inits; n != 0 {
		t.Errorf("the library was initialized %d times", n)
	}
	mustSign(t, k)
}
