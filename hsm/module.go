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

// cryptoki lists the functions of a PKCS#11 library that this package calls. *pkcs11.Ctx implements it. All methods are
// safe for concurrent use, except that no other call may run during Initialize and Finalize.
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

// process is global because PKCS#11 has global state: a loaded library is initialized once for the whole process (v2.40
// section 5.4).
var process = registry{load: load}

// registry holds the loaded libraries of a process, keyed by their path without symbolic links.
type registry struct {
	load func(path string) (cryptoki, error)

	mu      sync.Mutex
	modules map[string]*module
}

// load loads a PKCS#11 library into the process.
func load(path string) (cryptoki, error) {
	lib := pkcs11.New(path)
	if lib == nil {
		return nil, fmt.Errorf("%s is not a PKCS#11 library that this process can load: check the path and that it is built for this machine", path)
	}
	return lib, nil
}

// acquire returns the library at path, and adds one to its users. A library stays loaded without users: unloading it
// would crash the process if it has registered exit handlers or started threads.
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

// release reverses one acquire. After the last one it finalizes the library.
func (r *registry) release(m *module) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.users--; m.users > 0 {
		return nil
	}
	return m.stop()
}

// module is a loaded library that all of its HSMs share. It counts generations: a generation lasts from one
// C_Initialize to the next C_Finalize. Handles of sessions and objects are only valid in the generation in which they
// were created.
type module struct {
	lib   cryptoki
	users int // guarded by registry.mu

	mu         sync.Mutex
	gen        uint64        // number of tries to initialize; 0 before the first
	err        error         // why the last try failed, or nil
	ours       bool          // whether this package initialized the library, and therefore must finalize it
	busy       int           // number of calls inside the library
	restarting chan struct{} // closed at the end of the restart in progress; nil if there is none
	drained    chan struct{} // closed when busy reaches 0; nil if no restart waits for that
}

// enter counts the caller as being inside the library. It returns the current generation, which is newer than stale: if
// necessary, enter restarts the library. The caller must call leave. During a restart every caller of enter waits, at
// most until ctx ends. If Initialize failed, enter returns the failed generation with the error.
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

// leave reverses enter.
func (m *module) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy--
	if m.busy == 0 && m.drained != nil {
		close(m.drained)
		m.drained = nil
	}
}

// during calls f inside the library, if gen is the current generation and no restart is in progress. Otherwise it does
// nothing.
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

// await waits for c or the end of ctx. It unlocks m.mu, which the caller holds, while it waits.
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

// restart begins a new generation. It waits until no call is inside the library, finalizes the library and initializes
// it again. It stores the result in m.gen and m.err. It returns an error only if the calls inside did not end in time.
// The caller holds m.mu.
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
		// Finalize may fail if the library failed before. Only the result of Initialize matters.
		_ = m.lib.Finalize()
	}
	err := m.lib.Initialize()
	m.mu.Lock()

	m.ours = err == nil
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		err = nil // other code in this process has initialized the library, and this package can use it
	}
	m.gen++
	m.err = nil
	if err != nil {
		m.err = fmt.Errorf("%w: %w", errLibrary, err)
	}
	return nil
}

// stop finalizes the library, which has no users any more.
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
