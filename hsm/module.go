package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/miekg/pkcs11"
)

// cryptoki is what this package calls of a PKCS#11 library; *pkcs11.Ctx satisfies it. All
// methods are safe for concurrent use, except that Initialize and Finalize must not overlap
// any other call.
//
//nolint:interfacebloat // a foreign library's calls, listed so that tests can put faults around the real one
type cryptoki interface {
	Initialize(...pkcs11.InitializeOption) error
	Finalize() error
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slot uint) (pkcs11.TokenInfo, error)
	GetMechanismList(slot uint) ([]*pkcs11.Mechanism, error)
	InitToken(slot uint, pin, label string) error
	InitPIN(s pkcs11.SessionHandle, pin string) error
	OpenSession(slot uint, flags uint) (pkcs11.SessionHandle, error)
	CloseSession(s pkcs11.SessionHandle) error
	Login(s pkcs11.SessionHandle, userType uint, pin string) error
	Logout(s pkcs11.SessionHandle) error
	FindObjectsInit(s pkcs11.SessionHandle, template []*pkcs11.Attribute) error
	FindObjects(s pkcs11.SessionHandle, most int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(s pkcs11.SessionHandle) error
	GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	GenerateKeyPair(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, public, private []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error)
	DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error
	SignInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error
	Sign(s pkcs11.SessionHandle, message []byte) ([]byte, error)
}

// errDraining is the error of a restart that timed out waiting for calls inside the library.
var errDraining = errors.New("calls are still inside the PKCS#11 library, so it cannot be restarted")

// process is a global variable because PKCS#11 has global state: a loaded library is
// initialized once for the whole process (v2.40 section 5.4).
var process = registry{load: load}

// registry holds the libraries of a process by their real path.
type registry struct {
	load func(path string) (cryptoki, error)

	mu      sync.Mutex
	modules map[string]*module
}

// load maps a PKCS#11 library into the process.
func load(path string) (cryptoki, error) {
	lib := pkcs11.New(path)
	if lib == nil {
		return nil, fmt.Errorf("%s is not a PKCS#11 library that this process can load: check the path and that it is built for this machine", path)
	}
	return lib, nil
}

// acquire returns the library at path and counts one more user of it. A library stays
// loaded when its last user has gone: unloading one that registered exit handlers or
// started threads crashes the process.
func (r *registry) acquire(path string) (*module, error) {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no PKCS#11 module at %s: install it or correct the path", path)
	} else if err != nil {
		return nil, fmt.Errorf("PKCS#11 module: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.modules[target]
	if m == nil {
		lib, err := r.load(target)
		if err != nil {
			return nil, err
		}
		m = &module{lib: lib}
		if r.modules == nil {
			r.modules = make(map[string]*module)
		}
		r.modules[target] = m
	}
	m.users++
	return m, nil
}

// release undoes one acquire, and finalizes the library after the last.
func (r *registry) release(m *module) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.users--; m.users > 0 {
		return nil
	}
	return m.stop()
}

// module is one loaded library, shared by every HSM of the process that lives in it. It
// owns the generation: the time from one C_Initialize to the next C_Finalize. Session and
// object handles mean nothing outside the generation they were made in.
type module struct {
	lib   cryptoki
	users int // guarded by registry.mu

	mu         sync.Mutex
	gen        uint64        // counts attempts to initialize; 0 before the first
	err        error         // why the newest attempt failed, or nil
	ours       bool          // initialized by this package, here or by a restart, so finalized by it
	busy       int           // calls inside the library
	restarting chan struct{} // closed when the current restart has ended; nil without one
	drained    chan struct{} // closed when busy reaches 0; nil unless a restart waits for it
}

// enter counts the caller as being inside the library, in a generation newer than stale,
// which it starts where needed; leave must follow. Every user of the library waits while
// it restarts, as long as ctx allows. On an error that comes from the library the
// generation is the one whose start failed.
func (m *module) enter(ctx context.Context, stale uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case m.restarting != nil:
			if err := m.await(ctx, m.restarting); err != nil {
				return stale, err
			}
		case m.gen <= stale:
			if err := m.restart(ctx); err != nil {
				return stale, err
			}
		case m.err != nil:
			return m.gen, m.err
		default:
			m.busy++
			return m.gen, nil
		}
	}
}

// leave undoes enter.
func (m *module) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy--
	if m.busy == 0 && m.drained != nil {
		close(m.drained)
		m.drained = nil
	}
}

// during calls f inside the library if generation gen is current. It does nothing if that
// generation has ended or a restart is in progress.
func (m *module) during(gen uint64, f func()) {
	m.mu.Lock()
	if m.restarting != nil || m.gen != gen {
		m.mu.Unlock()
		return
	}
	m.busy++
	m.mu.Unlock()
	defer m.leave()
	f()
}

// await waits for c without holding m.mu, which is held before and after.
func (m *module) await(ctx context.Context, c <-chan struct{}) error {
	m.mu.Unlock()
	defer m.mu.Lock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// restart begins a new generation: it waits until no call is inside the library, finalizes
// it and initializes it again. It stores the result in m.gen and m.err, and returns an error
// only if it could not restart. m.mu is held before and after.
func (m *module) restart(ctx context.Context) error {
	over := make(chan struct{})
	m.restarting = over
	defer func() {
		m.restarting = nil
		close(over)
	}()
	if m.busy > 0 {
		m.drained = make(chan struct{})
		if err := m.await(ctx, m.drained); err != nil && m.busy > 0 {
			m.drained = nil
			return fmt.Errorf("%w: %w", errDraining, err)
		}
	}
	finalize := m.gen > 0
	m.mu.Unlock()
	if finalize {
		// The library may have failed already; what matters is whether Initialize succeeds.
		_ = m.lib.Finalize()
	}
	err := m.lib.Initialize()
	m.mu.Lock()

	m.ours = err == nil
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		err = nil // by other code in this process; this package can use it too
	}
	m.gen++
	m.err = nil
	if err != nil {
		m.err = fmt.Errorf("%w: %w", errLibrary, err)
	}
	return nil
}

// stop finalizes the library after its last user has left.
func (m *module) stop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	started := m.gen > 0 && m.err == nil && m.ours
	m.gen, m.err, m.ours = 0, nil, false
	if !started {
		return nil
	}
	return m.lib.Finalize()
}
