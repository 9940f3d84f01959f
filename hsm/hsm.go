// Package hsm uses a hardware security module (HSM) over PKCS#11, which calls it a token: it
// makes keys that cannot leave the HSM, and finds them again. Each key is a [crypto.Signer] that recovers from the loss of sessions, logins,
// the library or the HSM itself.
//
// An [HSM] holds one login and a bounded number of sessions. Calls into a PKCS#11 library
// cannot be canceled, so each runs on a goroutine of its own with a session of its own. A
// caller that stops waiting gets a temporary error, and the call counts toward the bound
// until the library returns.
//
// The package refuses: a second try with a PIN that the HSM has refused; keys that can be
// read or exported, or were not made in the HSM; a label that exists already; "no such
// key" from a library that may have lost its storage; digests that do not match their hash;
// SHA-1.
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
	// Module is the path of the PKCS#11 library, for instance what [FindSoftHSM] returns.
	Module string
	// Label or Serial names the HSM; exactly one is set. Slot numbers do not
	// identify an HSM: they change when the library restarts.
	Label, Serial string
	// Sessions is how many calls may be inside the library at once for this HSM, 1 to
	// [MaxSessions]; 0 means [DefaultSessions]. One more session stays idle to keep the
	// login, and one more is open while a key is made.
	Sessions int
	// Wait is how long [Key.Sign] waits for a session and the HSM's response, and
	// [HSM.Close] for calls in flight; 0 means [DefaultWait].
	Wait time.Duration
}

// validated returns c with its defaults filled in.
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

// matches reports whether info describes the HSM that c names.
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

	calls     chan struct{} // one element per call in flight, capacity cfg.Sessions
	done      chan struct{} // closed when closing begins
	beginDone sync.Once
	closing   sync.Mutex // serializes Close
	released  bool       // guarded by closing

	failures atomic.Int64 // copy of breaker.failures, for readers that must not wait for mu

	mu      sync.Mutex  // guards the fields below; held across a login
	current *attachment // the login in the newest generation that this HSM has entered
	stale   uint64      // generations up to this one must not be used again
	refused error       // the error of a refused PIN; once set, no login is tried again
	breaker breaker
}

// Open loads the module, finds the HSM and logs in. If the HSM refuses the PIN, Open
// returns [ErrPIN] after this single try. HSMs in one module share the library; closing
// the last one finalizes it. If the application is already logged in to the HSM, PKCS#11
// does not check the PIN again.
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

// Close waits for the calls in flight, at most Config.Wait, and closes this HSM's
// sessions. It finalizes the module if this was its last user. When a call does not return
// in time, Close returns a temporary error, does not finalize the library and may be called
// again. Calls that begin after Close return [ErrClosed].
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
	t.released = true // t.calls stays full: no further call of this HSM can begin
	if t.current != nil {
		t.module.during(t.current.gen, t.current.closeSessions)
	}
	if err := t.reg.release(t.module); err != nil {
		return t.wrapError("close", err)
	}
	return nil
}

// attach enters the module and returns the login of its current generation, and logs in if
// there is none. On success the caller is inside the module and must leave it.
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

// mayTry returns an error if the HSM must not be used now. t.mu is held.
func (t *HSM) mayTry() error {
	if t.refused != nil {
		return t.refused
	}
	return t.breaker.check(time.Now())
}

// loginNew finds the slot in generation gen and logs in. t.mu is held.
func (t *HSM) loginNew(gen uint64) (*attachment, error) {
	// Another call may have tried, and failed, while this one waited for the mutex.
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

// login logs in again within an attachment, for instance after the login ended with the last
// session.
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

// markStale records that generation gen failed with err: it is not used again, and the next
// call restarts the library, at once after the first failure and later with growing delay.
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

// recordResult records the result of a call in generation gen. If one fault fails several calls,
// only the first one counts.
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

// requireRestart makes the next call restart the library. If SoftHSM's directory was moved away and
// back, every search finds nothing until the library is initialized again. So a missing key
// counts as missing only if the library was started after the request.
func (t *HSM) requireRestart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil {
		t.stale = max(t.stale, t.current.gen)
	}
}
