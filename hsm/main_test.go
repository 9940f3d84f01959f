package hsm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	userSecret = "user-246810"
	soSecret   = "officer-13579"
)

// testPIN returns a PIN from a constant.
func testPIN(t testing.TB, s string) PIN {
	t.Helper()
	pin, err := NewPIN([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

// softModule returns the SoftHSM module, and makes the process use a private store. SoftHSM reads its location when the
// next HSM is opened.
func softModule(t testing.TB) (module, dir string) {
	t.Helper()
	module, err := FindSoftHSM()
	if err != nil {
		t.Fatalf("%v; run deploy/setup.sh --test", err)
	}
	dir = t.TempDir()
	conf, err := WriteSoftHSM(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(SoftHSMConfEnv, conf)
	return module, dir
}

// testBench is a private SoftHSM whose library can fail on demand.
type testBench struct {
	*faultyLibrary
	reg    *registry
	module string
	dir    string
}

// newTestBench creates a store with one HSM for each label.
func newTestBench(t testing.TB, labels ...string) *testBench {
	t.Helper()
	b := &testBench{faultyLibrary: &faultyLibrary{}}
	b.module, b.dir = softModule(t)
	b.reg = &registry{load: func(path string) (cryptoki, error) {
		lib, err := load(path)
		if err == nil {
			b.cryptoki = lib
		}
		return b.faultyLibrary, err
	}}
	for _, label := range labels {
		if _, err := b.reg.initialize(t.Context(), b.module, label, testPIN(t, soSecret), testPIN(t, userSecret)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *testBench) config(label string) Config {
	return Config{Module: b.module, Label: label}
}

// open opens an HSM and closes it at the end of the test.
func (b *testBench) open(t testing.TB, cfg Config) *HSM {
	t.Helper()
	tok, err := b.reg.open(t.Context(), cfg, testPIN(t, userSecret))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return tok
}

// fault makes calls of one function fail. The first skip calls succeed, and the next times calls fail. If applies is
// true, a failing call takes effect, and only its result is replaced.
type fault struct {
	call    string
	skip    int
	times   int
	applies bool
	err     error
}

// faultyLibrary is the real library with injected faults.
type faultyLibrary struct {
	cryptoki

	mu        sync.Mutex
	faults    []*fault
	counts    map[string]int
	attribute map[uint][]byte          // result of GetAttributeValue; nil if the HSM does not know the type
	holds     map[string]chan struct{} // calls that hang until the channel is closed, keyed by function
	blind     bool                     // whether searches find nothing until Initialize
	inside    int
	most      int // most calls that were inside Sign at the same time
}

// inject adds a fault.
func (f *faultyLibrary) inject(x fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &x)
}

// stall makes a call hang until release is called.
func (f *faultyLibrary) stall(call string) (release func()) {
	c := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds = map[string]chan struct{}{call: c}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.holds = nil
		close(c)
	}
}

// heal removes all faults.
func (f *faultyLibrary) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// count returns how often a function was called.
func (f *faultyLibrary) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[call]
}

// setBlind makes searches find nothing, like SoftHSM after its store was moved away and back.
func (f *faultyLibrary) setBlind(blind bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blind = blind
}

// signing returns how many calls of Sign are inside the library.
func (f *faultyLibrary) signing() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inside
}

// through calls do, or returns an injected error, or both.
func (f *faultyLibrary) through(call string, do func() error) error {
	f.mu.Lock()
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.counts[call]++
	hold := f.holds[call]
	var hit *fault
	for _, x := range f.faults {
		if x.call != call || x.times == 0 {
			continue
		}
		if x.skip > 0 {
			x.skip--
			continue
		}
		x.times--
		hit = x
		break
	}
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if hit == nil {
		return do()
	}
	if hit.applies {
		_ = do()
	}
	return hit.err
}

func (f *faultyLibrary) Initialize(o ...pkcs11.InitializeOption) error {
	f.setBlind(false)
	return f.through("Initialize", func() error { return f.cryptoki.Initialize(o...) })
}

func (f *faultyLibrary) Finalize() error { return f.through("Finalize", f.cryptoki.Finalize) }

func (f *faultyLibrary) Login(s pkcs11.SessionHandle, user uint, pin string) error {
	call := "Login"
	if user == pkcs11.CKU_SO {
		call = "LoginSO"
	}
	return f.through(call, func() error { return f.cryptoki.Login(s, user, pin) })
}

func (f *faultyLibrary) OpenSession(slot uint, flags uint) (h pkcs11.SessionHandle, err error) {
	err = f.through("OpenSession", func() error { h, err = f.cryptoki.OpenSession(slot, flags); return err })
	return h, err
}

func (f *faultyLibrary) CloseSession(s pkcs11.SessionHandle) error {
	return f.through("CloseSession", func() error { return f.cryptoki.CloseSession(s) })
}

func (f *faultyLibrary) FindObjects(s pkcs11.SessionHandle, most int) (h []pkcs11.ObjectHandle, more bool, err error) {
	err = f.through("FindObjects", func() error { h, more, err = f.cryptoki.FindObjects(s, most); return err })
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blind {
		return nil, false, err
	}
	return h, more, err
}

func (f *faultyLibrary) SignInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return f.through("SignInit", func() error { return f.cryptoki.SignInit(s, m, o) })
}

func (f *faultyLibrary) Sign(s pkcs11.SessionHandle, message []byte) (sig []byte, err error) {
	f.mu.Lock()
	f.inside++
	f.most = max(f.most, f.inside)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inside--
		f.mu.Unlock()
	}()
	err = f.through("Sign", func() error { sig, err = f.cryptoki.Sign(s, message); return err })
	if err != nil {
		return nil, err
	}
	return sig, nil
}

func (f *faultyLibrary) GenerateKeyPair(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, pub, priv []*pkcs11.Attribute) (p, q pkcs11.ObjectHandle, err error) {
	err = f.through("GenerateKeyPair", func() error { p, q, err = f.cryptoki.GenerateKeyPair(s, m, pub, priv); return err })
	return p, q, err
}

func (f *faultyLibrary) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	return f.through("DestroyObject", func() error { return f.cryptoki.DestroyObject(s, o) })
}

func (f *faultyLibrary) GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	got, err := f.cryptoki.GetAttributeValue(s, o, a)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range got {
		claim, ok := f.attribute[got[i].Type]
		if ok && claim == nil {
			return nil, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
		if ok {
			got[i].Value = claim
		}
	}
	return got, err
}

// real returns the library itself, for functions that the package never calls.
func (f *faultyLibrary) real(t testing.TB) *pkcs11.Ctx {
	t.Helper()
	lib, ok := f.cryptoki.(*pkcs11.Ctx)
	if !ok {
		t.Fatalf("the library is a %T", f.cryptoki)
	}
	return lib
}

// slotOf returns the slot of the HSM in the library's current generation.
func (b *testBench) slotOf(t testing.TB, label string) uint {
	t.Helper()
	slot, err := findSlot(b.faultyLibrary, b.config(label))
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// tool runs a program that deploy/setup.sh installs. The program gets the PINs from the environment.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is not installed: run deploy/setup.sh --test", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "USER_PIN="+userSecret, "SO_PIN="+soSecret, "NEW_PIN="+userSecret+"-new")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// pkcs11Tool runs OpenSC's pkcs11-tool as the user of an HSM.
func (b *testBench) pkcs11Tool(t testing.TB, label string, args ...string) string {
	t.Helper()
	return tool(t, "pkcs11-tool", append([]string{"--module", b.module, "--token-label", label, "--login", "--pin", "env:USER_PIN"}, args...)...)
}

// temporary reports whether err says that it is temporary.
func temporary(err error) bool {
	var e interface{ Temporary() bool }
	return errors.As(err, &e) && e.Temporary()
}

// retryAfter returns the delay that err requests.
func retryAfter(err error) time.Duration {
	var e interface{ RetryAfter() time.Duration }
	if !errors.As(err, &e) {
		return 0
	}
	return e.RetryAfter()
}

// eventually repeats a call until it no longer fails with a temporary error. Before each repetition it waits as long as
// the error requests.
func eventually(t testing.TB, call func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := call()
		if err == nil {
			return
		}
		if !temporary(err) || retryAfter(err) <= 0 {
			t.Errorf("the error is not temporary: %v", err)
			return
		}
		select {
		case <-time.After(retryAfter(err)):
		case <-ctx.Done():
			t.Errorf("the HSM did not recover in time: %v", err)
			return
		}
	}
}
