package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// TestWrongPINIsTriedOnce checks that a wrong PIN causes one C_Login and ErrPIN, and does not lock the HSM.
func TestWrongPINIsTriedOnce(t *testing.T) {
	b := newTestBench(t, "pin")
	before := b.count("Login")
	_, err := b.reg.open(t.Context(), b.config("pin"), testPIN(t, "not-the-pin"))
	if !errors.Is(err, ErrPIN) || temporary(err) {
		t.Fatalf("Open with a wrong PIN: %v, want ErrPIN", err)
	}
	if n := b.count("Login") - before; n != 1 {
		t.Errorf("a wrong PIN was tried %d times", n)
	}
	b.open(t, b.config("pin"))
	info, err := b.GetTokenInfo(b.slotOf(t, "pin"))
	if err != nil || info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0 {
		t.Errorf("the HSM is locked: flags %x, %v", info.Flags, err)
	}
}

// TestChangedPINIsTriedOnceByAllCallers changes the PIN, and then makes the device fail. However many callers sign at
// the same time, the HSM must receive the old PIN once.
func TestChangedPINIsTriedOnceByAllCallers(t *testing.T) {
	b := newTestBench(t, "pin")
	k := mustGenerate(t, b.open(t, b.config("pin")), "k", P256)
	b.pkcs11Tool(t, "pin", "--change-pin", "--new-pin", "env:NEW_PIN")
	b.inject(fault{call: "Sign", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
	before := b.count("Login")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				_, err := signed(k)
				if errors.Is(err, ErrPIN) {
					return
				}
				// A signature may have succeeded before the fault.
				if err != nil {
					t.Errorf("signing with a changed PIN: %v, want ErrPIN", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := b.count("Login") - before; n != 1 {
		t.Errorf("the old PIN was tried %d times", n)
	}
	b.heal()
	if _, err := signed(k); !errors.Is(err, ErrPIN) {
		t.Errorf("signing later with a changed PIN: %v, want ErrPIN", err)
	}
	if n := b.count("Login") - before; n != 1 {
		t.Errorf("the old PIN was tried %d times, want once", n)
	}
}

// TestRetryCuresEachError injects each error after which a retry helps, before or after the library's function takes
// effect. The caller must get a signature.
func TestRetryCuresEachError(t *testing.T) {
	restarts := map[uint]int{
		pkcs11.CKR_SESSION_CLOSED:           0,
		pkcs11.CKR_SESSION_HANDLE_INVALID:   0,
		pkcs11.CKR_USER_NOT_LOGGED_IN:       0,
		pkcs11.CKR_OBJECT_HANDLE_INVALID:    0,
		pkcs11.CKR_KEY_HANDLE_INVALID:       0,
		pkcs11.CKR_DEVICE_ERROR:             1,
		pkcs11.CKR_DEVICE_REMOVED:           1,
		pkcs11.CKR_TOKEN_NOT_PRESENT:        1,
		pkcs11.CKR_GENERAL_ERROR:            1,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: 1,
	}
	b := newTestBench(t, "heal")
	k := mustGenerate(t, b.open(t, b.config("heal")), "k", P256)
	mustSign(t, k)
	for code, restarts := range restarts {
		for _, call := range []string{"SignInit", "Sign"} {
			for _, applies := range []bool{false, true} {
				name := fmt.Sprintf("%v from %s, applied %v", pkcs11.Error(code), call, applies)
				inits, closed := b.count("Initialize"), b.count("CloseSession")
				b.inject(fault{call: call, times: 1, applies: applies, err: pkcs11.Error(code)})
				sig, err := signed(k)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				verify(t, k, sig)
				if n := b.count("Initialize") - inits; n != restarts {
					t.Errorf("%s: the library was initialized %d times", name, n)
				}
				if b.count("CloseSession") == closed {
					t.Errorf("%s: the failed session was kept", name)
				}
				b.heal()
			}
		}
	}
}

// TestForeignCallsAreRecovered simulates other code in the process that closes the sessions, logs out or finalizes the
// library.
func TestForeignCallsAreRecovered(t *testing.T) {
	b := newTestBench(t, "acts")
	tok := b.open(t, b.config("acts"))
	k := mustGenerate(t, tok, "k", P256)
	for name, act := range map[string]func() error{
		"C_CloseAllSessions": func() error { return b.real(t).CloseAllSessions(b.slotOf(t, "acts")) },
		"C_Finalize":         func() error { return b.real(t).Finalize() },
		"C_Logout": func() error {
			s, err := b.real(t).OpenSession(b.slotOf(t, "acts"), pkcs11.CKF_SERIAL_SESSION)
			return errors.Join(err, b.real(t).Logout(s))
		},
	} {
		for call, use := range map[string]func() error{
			"Sign": func() error { _, err := signed(k); return err },
			"Find": func() error { _, err := tok.Find(t.Context(), k.Ref()); return err },
			"Keys": func() error {
				infos, err := tok.Keys(t.Context())
				if err == nil && len(infos) != 1 {
					err = fmt.Errorf("%d keys", len(infos))
				}
				return err
			},
		} {
			mustSign(t, k)
			if err := act(); err != nil {
				t.Fatal(err)
			}
			if err := use(); err != nil {
				t.Errorf("%s after %s: %v", call, name, err)
			}
		}
	}
}

// TestFaultUnderLoadIsRecovered injects faults while many callers sign. All callers must get their signatures, and each
// fault may cause at most one restart.
func TestFaultUnderLoadIsRecovered(t *testing.T) {
	b := newTestBench(t, "load")
	k := mustGenerate(t, b.open(t, b.config("load")), "k", P256)
	const faults = 5
	inits := b.count("Initialize")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 40 {
				eventually(t, func() error {
					sig, err := signed(k)
					if err == nil {
						verify(t, k, sig)
					}
					return err
				})
			}
		})
	}
	for i := range faults {
		b.inject(fault{call: "Sign", skip: 20 * i, times: 1, applies: i%2 == 0, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
	}
	wg.Wait()
	if n := b.count("Initialize") - inits; n < 1 || n > faults {
		t.Errorf("the library was initialized %d times for %d faults", n, faults)
	}
}

// TestBrokenDeviceGivesTemporaryErrors checks a device that stays broken for some time. Callers must get temporary
// errors with RetryAfter, and not every call may restart the library. After the repair, the device must work again.
func TestBrokenDeviceGivesTemporaryErrors(t *testing.T) {
	for name, broken := range map[string]fault{
		"signing":      {call: "Sign", times: -1, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)},
		"initialising": {call: "Initialize", times: -1, err: pkcs11.Error(pkcs11.CKR_HOST_MEMORY)},
		"sessions":     {call: "OpenSession", times: -1, err: pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)},
		"logging in":   {call: "Login", times: -1, err: pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBench(t, "broken")
			k := mustGenerate(t, b.open(t, b.config("broken")), "k", P256)
			b.inject(broken)
			b.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
			inits := b.count("Initialize")
			for range 50 {
				if _, err := signed(k); !errors.Is(err, ErrUnavailable) || !temporary(err) || retryAfter(err) <= 0 {
					t.Fatalf("signing with a broken HSM: %v, want temporary ErrUnavailable", err)
				}
			}
			if n := b.count("Initialize") - inits; n < 1 || n > 10 {
				t.Errorf("50 calls initialized the library %d times", n)
			}
			b.heal()
			eventually(t, func() error { _, err := signed(k); return err })
			mustSign(t, k)
		})
	}
}

// TestMissingStorageIsTemporary moves SoftHSM's storage away and back: once all of it, and once the storage of one HSM.
func TestMissingStorageIsTemporary(t *testing.T) {
	for name, path := range map[string]string{"the store": "tokens", "the HSM": "tokens/*-*"} {
		t.Run(name, func(t *testing.T) {
			b := newTestBench(t, "away")
			tok := b.open(t, b.config("away"))
			k := mustGenerate(t, tok, "k", P256)
			found, err := filepath.Glob(filepath.Join(b.dir, path))
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			away := filepath.Join(b.dir, "elsewhere")
			if err := os.Rename(found[0], away); err != nil {
				t.Fatal(err)
			}
			if _, err := signed(k); !errors.Is(err, ErrUnavailable) || !temporary(err) {
				t.Errorf("signing while the storage is away: %v, want temporary ErrUnavailable", err)
			}
			if _, err := tok.Generate(t.Context(), "k", P256); err == nil {
				t.Error("a key was made while the storage was away")
			}
			if err := os.Rename(away, found[0]); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error { _, err := signed(k); return err })
			if infos, err := tok.Keys(t.Context()); err != nil || len(infos) != 1 {
				t.Errorf("after the storage is back: %d keys, %v, want 1", len(infos), err)
			}
		})
	}
}

// TestAbsentKeyIsCheckedByRestart moves the storage away and back. SoftHSM then finds no objects, and returns no error.
// Find must restart the library before it returns ErrNotFound, and Generate must not generate a second key.
func TestAbsentKeyIsCheckedByRestart(t *testing.T) {
	b := newTestBench(t, "absent")
	tok := b.open(t, b.config("absent"))
	k := mustGenerate(t, tok, "k", P256)
	blink := func() {
		tokens := filepath.Join(b.dir, "tokens")
		if err := os.Rename(tokens, tokens+".away"); err != nil {
			t.Fatal(err)
		}
		if _, err := tok.Keys(t.Context()); err != nil { // SoftHSM notices here that its storage is missing
			t.Fatal(err)
		}
		if err := os.Rename(tokens+".away", tokens); err != nil {
			t.Fatal(err)
		}
		if infos, err := tok.Keys(t.Context()); err != nil || len(infos) != 0 {
			t.Fatalf("this SoftHSM does not hide the keys as the test assumes: %d keys, %v", len(infos), err)
		}
	}
	blink()
	if found, err := tok.Find(t.Context(), KeyRef{Label: "k"}); err != nil || !k.pub.Equal(found.Public()) {
		t.Errorf("Find while the library hides the key: %v", err)
	}
	blink()
	if _, err := tok.Generate(t.Context(), "k", P256); !errors.Is(err, ErrExists) {
		t.Errorf("Generate while the library hides the key: %v, want ErrExists", err)
	}
	blink()
	mustSign(t, k)
	if _, err := tok.Find(t.Context(), KeyRef{Label: "other"}); !errors.Is(err, ErrNotFound) || temporary(err) {
		t.Errorf("Find of a missing key: %v, want ErrNotFound", err)
	}
}

// TestAbsentKeyIsCheckedIfOnlySearchFails does the same with a library whose searches find nothing, but which can
// generate keys.
func TestAbsentKeyIsCheckedIfOnlySearchFails(t *testing.T) {
	b := newTestBench(t, "blind")
	tok := b.open(t, b.config("blind"))
	k := mustGenerate(t, tok, "k", P256)
	b.setBlind(true)
	if found, err := tok.Find(t.Context(), k.Ref()); err != nil || !k.pub.Equal(found.Public()) {
		t.Errorf("Find while the library hides the key: %v", err)
	}
	b.setBlind(true)
	if _, err := tok.Generate(t.Context(), "k", P256); !errors.Is(err, ErrExists) {
		t.Errorf("Generate while the library hides the key: %v, want ErrExists", err)
	}
}

// signTogether starts n signatures, and returns when all of them are inside the library. finish lets them continue and
// returns their errors.
func signTogether(b *testBench, k *Key, n int) (finish func() error) {
	release := b.stall("Sign")
	ended := make(chan error, n)
	for range n {
		go func() {
			_, err := signed(k)
			ended <- err
		}()
	}
	for b.signing() < n {
		time.Sleep(time.Millisecond)
	}
	return func() error {
		release()
		var err error
		for range n {
			err = errors.Join(err, <-ended)
		}
		return err
	}
}

// TestLostSessionsAreReplacedWithoutRestart closes every session in the pool. Each call must open a new session,
// without a restart.
func TestLostSessionsAreReplacedWithoutRestart(t *testing.T) {
	b := newTestBench(t, "pool")
	k := mustGenerate(t, b.open(t, b.config("pool")), "k", P256)
	if err := signTogether(b, k, 6)(); err != nil {
		t.Fatal(err)
	}
	if err := b.real(t).CloseAllSessions(b.slotOf(t, "pool")); err != nil {
		t.Fatal(err)
	}
	inits := b.count("Initialize")
	for range 8 {
		mustSign(t, k)
	}
	if b.count("Initialize") != inits {
		t.Error("the library was restarted for lost sessions")
	}
}

// TestOneFaultRestartsOnce makes many calls fail with one fault. One restart must be enough for all of them.
func TestOneFaultRestartsOnce(t *testing.T) {
	b := newTestBench(t, "together")
	k := mustGenerate(t, b.open(t, b.config("together")), "k", P256)
	inits := b.count("Initialize")
	const n = 6
	finish := signTogether(b, k, n)
	// The calls are past the point at which faults can be injected, so finalize the library itself.
	if err := b.real(t).Finalize(); err != nil {
		t.Fatal(err)
	}
	if err := finish(); err != nil {
		t.Error(err)
	}
	if got := b.count("Initialize") - inits; got != 1 {
		t.Errorf("the library was initialized %d times", got)
	}
}

// TestReplacedKeyIsRefused replaces a key with one that has the same ID but another public key. The HSM must not sign
// with it.
func TestReplacedKeyIsRefused(t *testing.T) {
	b := newTestBench(t, "swap")
	k := mustGenerate(t, b.open(t, b.config("swap")), "k", P256)
	id := fmt.Sprintf("%x", k.ID())
	b.pkcs11Tool(t, "swap", "--delete-object", "--type", "privkey", "--id", id)
	b.pkcs11Tool(t, "swap", "--delete-object", "--type", "pubkey", "--id", id)
	if _, err := signed(k); !errors.Is(err, ErrUnavailable) {
		t.Errorf("signing with a deleted key: %v, want ErrUnavailable", err)
	}
	b.pkcs11Tool(t, "swap", "--keypairgen", "--key-type", "EC:prime256v1", "--sensitive", "--label", "k", "--id", id)
	var err error
	for err = errors.New("not tried"); !errors.Is(err, ErrKey); {
		if _, err = signed(k); err == nil || !temporary(err) && !errors.Is(err, ErrKey) {
			t.Fatalf("signing with another key under the same ID: %v, want ErrKey", err)
		}
		time.Sleep(retryAfter(err))
	}
}

// TestOpenRefusesBadConfig calls Open with invalid configurations, PINs and contexts.
func TestOpenRefusesBadConfig(t *testing.T) {
	b := newTestBench(t, "here")
	b.open(t, b.config("here")) // the restarts below must not affect this HSM
	for name, c := range map[string]struct {
		cfg       Config
		temporary bool
	}{
		"no module":       {Config{Label: "here"}, false},
		"missing module":  {Config{Module: "/nonexistent.so", Label: "here"}, false},
		"no name":         {Config{Module: b.module}, false},
		"two names":       {Config{Module: b.module, Label: "here", Serial: "1"}, false},
		"sessions":        {Config{Module: b.module, Label: "here", Sessions: -1}, false},
		"wait":            {Config{Module: b.module, Label: "here", Wait: -1}, false},
		"unknown label":   {Config{Module: b.module, Label: "there"}, true},
		"unknown serial":  {Config{Module: b.module, Serial: "there"}, true},
		"not for loading": {Config{Module: os.Args[0], Label: "here"}, false},
	} {
		tok, err := b.reg.open(t.Context(), c.cfg, testPIN(t, userSecret))
		if err == nil || tok != nil || temporary(err) != c.temporary {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.reg.open(t.Context(), b.config("here"), PIN{}); err == nil {
		t.Error("an empty PIN was accepted")
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.reg.open(canceled, b.config("here"), testPIN(t, userSecret)); !errors.Is(err, context.Canceled) {
		t.Errorf("Open with a context that has ended: %v", err)
	}
}

// TestOpenBySerial opens an HSM by the serial number that Init returned.
func TestOpenBySerial(t *testing.T) {
	b := newTestBench(t)
	serial, err := b.reg.initialize(t.Context(), b.module, "by serial", testPIN(t, soSecret), testPIN(t, userSecret))
	if err != nil {
		t.Fatal(err)
	}
	b.open(t, Config{Module: b.module, Serial: serial})
}

// TestBreakerPausesGrow checks that there is no pause after the first failure, and that later pauses grow up to a
// limit.
func TestBreakerPausesGrow(t *testing.T) {
	var b breaker
	now := time.Unix(1_000_000, 0)
	cause := errors.New("cause")
	b.trip(now, cause)
	if err := b.check(now); err != nil {
		t.Errorf("the breaker after one failure: %v, want nil", err)
	}
	var last time.Duration
	for range 40 {
		b.trip(now, cause)
		if err := b.check(now); !errors.Is(err, cause) {
			t.Fatalf("the breaker during a pause: %v, want its cause", err)
		}
		pause := b.remaining(now)
		b.trip(now, errors.New("late")) // from a call that began before the pause
		if b.remaining(now) != pause || !errors.Is(b.check(now), cause) {
			t.Error("a failure during the pause counted")
		}
		if pause > lastPause*6/5 || last < lastPause/2 && pause <= last {
			t.Errorf("pause %v after %v", pause, last)
		}
		last = pause
		now = now.Add(pause)
	}
	if last < lastPause*4/5 {
		t.Errorf("the longest pause is %v", last)
	}
	b.reset()
	b.trip(now, cause)
	if err := b.check(now); err != nil {
		t.Errorf("the breaker after a reset and one failure: %v, want nil", err)
	}
}
