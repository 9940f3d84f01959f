// Package hsm uses a hardware security module (HSM) over PKCS#11, which calls an HSM a token. It generates keys that
// cannot leave the HSM, and finds them again. Each key is a [crypto.Signer] that continues to work after sessions,
// logins, the library or the HSM were lost.
//
// An [HSM] holds one login and a limited number of sessions. A call into a PKCS#11 library cannot be canceled, so each
// call has its own goroutine and session. If a caller's timeout ends first, the caller gets a temporary error. The call
// still counts toward the limit until the library returns.
//
// The package refuses to send a PIN again that the HSM has refused. It refuses keys that can be read or exported, or
// that were not generated in the HSM. It refuses to generate a key whose label exists. It does not trust a library that
// finds no key, because the library may have lost its storage. It refuses digests whose length does not match their
// hash, and SHA-1.
//
// Sources: PKCS#11 v2.40 (base and mechanisms), PKCS#11 v3.0 section 2.3 for Edwards keys,
// RFC 8017 for RSA, SEC 1 for points and signatures, RFC 8032 for Ed25519.
package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// Defaults and limits of [Config].
const (
	DefaultSessions = 8
	MaxSessions     = 256
	DefaultWait     = 10 * time.Second
)

// Config selects the HSM and limits its use.
type Config struct {
	// Module is the path of the PKCS#11 library, for instance the result of [FindSoftHSM].
	Module string
	// Label or Serial identifies the HSM; exactly one of them must be set. A slot number does not identify an HSM,
	// because it changes when the library restarts.
	Label, Serial string
	// Sessions is the maximum number of calls for this HSM that may be inside the library at the same time, 1 to
	// [MaxSessions]. 0 means [DefaultSessions]. In addition, one idle session keeps the login, and one is open while a
	// key is generated.
	Sessions int
	// Wait is how long [Key.Sign] waits for a session and for the HSM's response, and how long [HSM.Close] waits for
	// calls in progress. 0 means [DefaultWait].
	Wait time.Duration
}

// validated checks c and returns it with the default values.
func (c Config) validated() (Config, error) {
	switch {
	case c.Module == "":
		return c, errors.New("the path of the PKCS#11 module is missing: set it, for SoftHSM usually /usr/lib/softhsm/libsofthsm2.so")
	case (c.Label == "") == (c.Serial == ""):
		return c, errors.New("name the HSM by its label or by its serial number, one of the two")
	case c.Sessions < 0 || c.Sessions > MaxSessions:
		return c, fmt.Errorf("sessions is %d: set 1 to %d, or 0 for %d", c.Sessions, MaxSessions, DefaultSessions)
	case c.Wait < 0:
		return c, fmt.Errorf("wait is %v: set a positive duration, or 0 for %v", c.Wait, DefaultWait)
	}
	if c.Sessions == 0 {
		c.Sessions = DefaultSessions
	}
	if c.Wait == 0 {
		c.Wait = DefaultWait
	}
	return c, nil
}

// matches reports whether info describes the HSM that c identifies.
func (c Config) matches(info pkcs11.TokenInfo) bool {
	if c.Serial != "" {
		return info.SerialNumber == c.Serial
	}
	return info.Label == c.Label
}

// name returns the HSM's label or serial number for messages.
func (c Config) name() string {
	if c.Serial != "" {
		return fmt.Sprintf("HSM with serial %q", c.Serial)
	}
	return fmt.Sprintf("HSM %q", c.Label)
}

// HSM is a hardware security module with a login. It is safe for concurrent use.
type HSM struct {
	cfg    Config
	pin    PIN
	reg    *registry
	module *module

	calls     chan struct{} // one element for each call in progress; capacity cfg.Sessions
	done      chan struct{} // closed when Close begins
	beginDone sync.Once
	closing   sync.Mutex // serializes Close
	released  bool       // guarded by closing

	failures atomic.Int64 // copy of breaker.failures, for callers that must not wait for mu

	mu      sync.Mutex  // guards the fields below; held across a login
	current *attachment // login in the newest generation that this HSM uses
	stale   uint64      // generations up to this one must not be used again
	refused error       // error of the login with a refused PIN; after it there are no more logins
	breaker breaker
}

// Open loads the module, finds the HSM and logs in. If the HSM refuses the PIN, Open returns [ErrPIN] after this single
// try. HSMs in the same module share the library. Closing the last of them finalizes it. If the process is already
// logged in to the HSM, PKCS#11 does not check the PIN again.
func Open(ctx context.Context, cfg Config, pin PIN) (*HSM, error) {
	return process.open(ctx, cfg, pin)
}

func (r *registry) open(ctx context.Context, cfg Config, pin PIN) (*HSM, error) {
	cfg, err := cfg.validated()
	if err != nil {
		return nil, err
	}
	if pin.empty() {
		return nil, errors.New("the PIN is empty: read it from a file, a systemd credential or the terminal")
	}
	m, err := r.acquire(cfg.Module)
	if err != nil {
		return nil, err
	}
	t := &HSM{
		cfg: cfg, pin: pin, reg: r, module: m,
		calls: make(chan struct{}, cfg.Sessions),
		done:  make(chan struct{}),
	}
	_, err = run(ctx, t, "open", func(*session) (struct{}, error) { return struct{}{}, nil })
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Close waits for the calls in progress, at most for Config.Wait, and closes this HSM's sessions. If no other HSM uses
// the module, it finalizes the library. If a call does not return in time, Close returns a temporary error and does not
// finalize the library. It may then be called again. Calls that begin after Close return [ErrClosed].
func (t *HSM) Close() error {
	t.beginDone.Do(func() { close(t.done) })
	t.closing.Lock()
	defer t.closing.Unlock()
	if t.released {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), t.cfg.Wait, errNoAnswer)
	defer cancel()
	for taken := range cap(t.calls) {
		select {
		case t.calls <- struct{}{}:
		case <-ctx.Done():
			for range taken {
				<-t.calls
			}
			return t.wrapError("close", context.Cause(ctx))
		}
	}
	t.released = true // t.calls stays full, so that no call of this HSM can begin
	if t.current != nil {
		t.module.during(t.current.gen, t.current.closeSessions)
	}
	if err := t.reg.release(t.module); err != nil {
		return t.wrapError("close", err)
	}
	return nil
}

// attach enters the module and returns the login of the module's current generation. If there is no login, attach logs
// in. After success the caller must leave the module.
func (t *HSM) attach(ctx context.Context) (*attachment, error) {
	t.mu.Lock()
	stale, err := t.stale, t.mayTry()
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	gen, err := t.module.enter(ctx, stale)
	if err != nil {
		if errors.Is(err, errLibrary) || errors.Is(err, errDraining) {
			t.markStale(gen, err)
		}
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil && t.current.gen == gen {
		return t.current, nil
	}
	a, err := t.loginNew(gen)
	if err != nil {
		t.module.leave()
		return nil, err
	}
	t.current = a
	return a, nil
}

// mayTry returns an error if a caller must not use the HSM now: the PIN was refused, or the pause after a failure has
// not ended. t.mu is held.
func (t *HSM) mayTry() error {
	if t.refused != nil {
		return t.refused
	}
	return t.breaker.check(time.Now())
}

// loginNew finds the HSM's slot in generation gen, and logs in. t.mu is held.
func (t *HSM) loginNew(gen uint64) (*attachment, error) {
	// While this call waited for the mutex, another one may have failed.
	if err := t.mayTry(); err != nil {
		return nil, err
	}
	a, err := newAttachment(t.module.lib, gen, t.cfg)
	if err == nil {
		if err = t.loginLocked(a); err != nil {
			a.closeSessions()
		}
	}
	err = unusable(err)
	if classify(err) == classDevice {
		t.markStaleLocked(gen, err)
	}
	return a, err
}

// login logs in again within an attachment, for instance because the HSM ended the login when the last session closed.
func (t *HSM) login(a *attachment) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loginLocked(a)
}

func (t *HSM) loginLocked(a *attachment) error {
	if t.refused != nil {
		return t.refused
	}
	err := a.login(t.pin)
	if classify(err) == classPIN {
		t.refused = err
	}
	return err
}

// markStale records that generation gen failed with err. The generation is not used again. After the first failure the
// next call restarts the library at once, and after more failures with growing delays.
func (t *HSM) markStale(gen uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.markStaleLocked(gen, err)
}

func (t *HSM) markStaleLocked(gen uint64, err error) {
	t.stale = max(t.stale, gen)
	t.breaker.trip(time.Now(), err)
	t.failures.Store(int64(t.breaker.failures))
}

// recordResult records the result of a call in generation gen. If one fault makes several calls fail, it counts only
// the first.
func (t *HSM) recordResult(gen uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case gen <= t.stale:
	case err == nil:
		t.breaker.reset()
		t.failures.Store(0)
	case classify(err) == classDevice:
		t.markStaleLocked(gen, err)
	}
}

// requireRestart makes the next call restart the library. If SoftHSM's directory was moved away and back, every search
// finds nothing until the library is initialized again. A key is therefore only considered missing if the library was
// started after the search was requested.
func (t *HSM) requireRestart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil {
		t.stale = max(t.stale, t.current.gen)
	}
}
