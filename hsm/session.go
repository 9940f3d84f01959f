package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"
)

// attachment is one login to one HSM, in one generation of its library. It holds all handles that become invalid at the
// end of that generation.
type attachment struct {
	lib  cryptoki
	gen  uint64
	slot uint

	mu     sync.Mutex // guards the fields below
	anchor pkcs11.SessionHandle
	idle   []pkcs11.SessionHandle
	keys   map[string]knownKey // keyed by CKA_ID
}

// knownKey is a key that has passed the self-test in this attachment.
type knownKey struct {
	handle pkcs11.ObjectHandle
	pub    publicKey
}

// session is a session of an attachment. Only one goroutine uses it at a time.
type session struct {
	*attachment
	hsm *HSM
	h   pkcs11.SessionHandle
}

// newAttachment finds the HSM in cfg and opens a session, the anchor, that stays open to keep the login. PKCS#11 logs a
// process out when its last session closes (v2.40 section 5.6).
func newAttachment(lib cryptoki, gen uint64, cfg Config) (*attachment, error) {
	slot, err := findSlot(lib, cfg)
	if err != nil {
		return nil, err
	}
	anchor, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	return &attachment{
		lib: lib, gen: gen, slot: slot, anchor: anchor,
		keys: make(map[string]knownKey),
	}, nil
}

// findSlot returns the slot that currently contains the HSM in cfg.
func findSlot(lib cryptoki, cfg Config) (uint, error) {
	slots, err := lib.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list slots: %w", err)
	}
	var found []uint
	var seen []string
	for _, slot := range slots {
		info, err := lib.GetTokenInfo(slot)
		// If another HSM in the module is broken, ignore it.
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		seen = append(seen, fmt.Sprintf("%q serial %q", info.Label, info.SerialNumber))
		if cfg.matches(info) {
			found = append(found, slot)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if len(seen) == 0 {
			seen = []string{"no initialized HSM"}
		}
		return 0, fmt.Errorf("%w, or has another name: the module shows %s", errAbsent, strings.Join(seen, ", "))
	default:
		return 0, fmt.Errorf("%w: %d HSMs carry this name: use the serial number (%s)",
			ErrAmbiguous, len(found), strings.Join(seen, ", "))
	}
}

// login logs in on the anchor session. If the anchor was lost, login opens a new one. It returns nil if the user is
// already logged in. There must be only one login at a time.
func (a *attachment) login(pin PIN) error {
	a.mu.Lock()
	anchor := a.anchor
	a.mu.Unlock()
	err := a.lib.Login(anchor, pkcs11.CKU_USER, pin.reveal())
	if classify(err) == classSession {
		// The library refused the session before it checked the PIN, so the PIN may be sent again.
		if anchor, err = a.lib.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
			return fmt.Errorf("open session: %w", err)
		}
		a.mu.Lock()
		a.anchor = anchor
		a.mu.Unlock()
		err = a.lib.Login(anchor, pkcs11.CKU_USER, pin.reveal())
	}
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	return nil
}

// take returns an idle session. If there is none, or if fresh is true, it opens a new one.
func (a *attachment) take(t *HSM, fresh bool) (*session, error) {
	a.mu.Lock()
	if n := len(a.idle); n > 0 && !fresh {
		h := a.idle[n-1]
		a.idle = a.idle[:n-1]
		a.mu.Unlock()
		return &session{attachment: a, hsm: t, h: h}, nil
	}
	a.mu.Unlock()
	h, err := a.lib.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	return &session{attachment: a, hsm: t, h: h}, nil
}

// put makes a session idle. If a call failed, it closes the session, in which an operation may still be active (v2.40
// section 5.2).
func (a *attachment) put(s *session, failed bool) {
	if failed {
		_ = a.lib.CloseSession(s.h)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.idle = append(a.idle, s.h)
}

// closeSessions closes all idle sessions, and then the anchor.
func (a *attachment) closeSessions() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range append(a.idle, a.anchor) {
		_ = a.lib.CloseSession(h)
	}
	a.idle = nil
}

// known returns the key with this ID, if the key has passed the self-test in this attachment.
func (a *attachment) known(id []byte) (knownKey, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.keys[string(id)]
	return k, ok
}

func (a *attachment) remember(id []byte, k knownKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[string(id)] = k
}

// forget deletes all key handles. If one has become invalid, the others may have, too.
func (a *attachment) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.keys)
}

// writable calls f with a read-write session, which is necessary to generate and destroy keys.
func (s *session) writable(f func(*session) error) error {
	h, err := s.lib.OpenSession(s.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	defer func() { _ = s.lib.CloseSession(h) }()
	return f(&session{attachment: s.attachment, hsm: s.hsm, h: h})
}

// sign makes one signature with SignInit and Sign. No other call may use the session between them.
func (s *session) sign(mech *pkcs11.Mechanism, key pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	if err := s.lib.SignInit(s.h, []*pkcs11.Mechanism{mech}, key); err != nil {
		return nil, fmt.Errorf("begin signature: %w", err)
	}
	sig, err := s.lib.Sign(s.h, data)
	if err != nil {
		return nil, fmt.Errorf("finish signature: %w", err)
	}
	return sig, nil
}

// run calls op with a session of t, and retries if the error allows it. At most Config.Sessions calls of op run at the
// same time. If ctx ends first, run returns, and op continues until it ends by itself.
func run[T any](ctx context.Context, t *HSM, what string, op func(*session) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var none T
	select {
	case <-t.done:
		return none, t.wrapError(what, ErrClosed)
	default:
	}
	select {
	case t.calls <- struct{}{}:
	case <-t.done:
		return none, t.wrapError(what, ErrClosed)
	case <-ctx.Done():
		return none, t.wrapError(what, context.Cause(ctx))
	}
	out := make(chan result, 1)
	go func() {
		defer func() { <-t.calls }()
		v, err := attempt(ctx, t, op)
		// wrapError waits for t.mu, which a login may hold. The goroutine calls it, so that run does not wait.
		out <- result{v, t.wrapError(what, err)}
	}()
	select {
	case r := <-out:
		return r.v, r.err
	case <-ctx.Done():
		return none, t.wrapError(what, context.Cause(ctx))
	}
}

// attempt calls op, and retries once for each class of error after which a retry helps. Such errors can follow each
// other: first the session is lost, then the login, then the handle.
func attempt[T any](ctx context.Context, t *HSM, op func(*session) (T, error)) (T, error) {
	var tried [classes]bool
	for {
		v, err := once(ctx, t, tried[classSession], op)
		c := classify(err)
		if c == classNone || c == classPIN || c == classOther || tried[c] || ctx.Err() != nil {
			return v, err
		}
		tried[c] = true
	}
}

// once calls op with one session. After an error it prepares a retry: it forgets handles, or logs in again.
func once[T any](ctx context.Context, t *HSM, fresh bool, op func(*session) (T, error)) (T, error) {
	var none T
	a, err := t.attach(ctx)
	if err != nil {
		return none, err
	}
	defer t.module.leave()
	s, err := a.take(t, fresh)
	if err = unusable(err); err != nil {
		t.recordResult(a.gen, err)
		return none, err
	}
	v, err := op(s)
	a.put(s, err != nil)
	switch classify(err) {
	case classObject:
		a.forget()
	case classLogin:
		if lerr := t.login(a); lerr != nil {
			err = unusable(lerr)
		}
	}
	t.recordResult(a.gen, err)
	if err != nil {
		return none, err
	}
	return v, nil
}
