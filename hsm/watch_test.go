package hsm

import (
	"errors"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

func TestProveChecksEveryKey(t *testing.T) {
	b := newTestBench(t, "watched")
	tok := b.open(t, b.config("watched"))
	w := Watched{tok, []*Key{mustGenerate(t, tok, "one", P256), mustGenerate(t, tok, "two", P384)}}
	if err := w.Prove(t.Context()); err != nil { // the first call also finds the keys
		t.Fatal(err)
	}
	before := b.count("Sign")
	if err := w.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := b.count("Sign") - before; n != 2 {
		t.Errorf("Prove of two keys makes %d signatures, want 2", n)
	}
	b.inject(fault{call: "Sign", times: 1 << 20, err: pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)})
	if err := w.Prove(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Prove with a removed HSM: %v, want ErrUnavailable", err)
	}
	if tok.Failures() == 0 {
		t.Error("the failure is not counted")
	}
	b.heal()
	eventually(t, func() error { return w.Prove(t.Context()) })
	if n := tok.Failures(); n != 0 {
		t.Errorf("%d failures of a working HSM, want 0", n)
	}
}

// TestMonitorDoesNotWaitForHangingHSM checks that Calls and Failures return at once while the HSM hangs, even during a
// login.
func TestMonitorDoesNotWaitForHangingHSM(t *testing.T) {
	for _, call := range []string{"Sign", "Login"} {
		t.Run(call, func(t *testing.T) {
			b := newTestBench(t, "slow")
			cfg := b.config("slow")
			cfg.Sessions, cfg.Wait = 2, 100*time.Millisecond
			tok := b.open(t, cfg)
			k := mustGenerate(t, tok, "k", P256)
			// A caller may get its result just before Calls no longer counts the call.
			for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				now, most := tok.Calls()
				if now == 0 && most == 2 {
					break
				}
				if time.Now().After(until) {
					t.Fatalf("%d calls of %d in an idle HSM", now, most)
				}
			}
			release := b.stall(call)
			b.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
			if _, err := signed(k); !errors.Is(err, ErrBusy) {
				t.Errorf("a hanging call returns %v, want ErrBusy", err)
			}
			if now, _ := tok.Calls(); now != 1 {
				t.Errorf("%d calls in an HSM that hangs, want 1", now)
			}
			if n := tok.Failures(); n != 1 {
				t.Errorf("%d failures, want 1", n)
			}
			release()
			eventually(t, func() error { _, err := signed(k); return err })
		})
	}
}
