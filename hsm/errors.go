package hsm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/miekg/pkcs11"
)

// What a call can fail with; use [errors.Is]. [ErrUnavailable] and [ErrBusy] are temporary.
var (
	// ErrPIN: the token refused the PIN. It was offered once and is not offered again, by
	// this Token, until it is opened anew.
	ErrPIN = errors.New("the token refused the PIN; it was tried once and will not be tried again, so that the token does not lock: correct the PIN, then open the token again")
	// ErrUnavailable: the token, its library or its storage does not work. Later calls on an
	// open Token restart the library, with pauses, until it does.
	ErrUnavailable = errors.New("the token is not available: check the device, its connection and its storage")
	// ErrBusy: no answer in time.
	ErrBusy = errors.New("the token gave no answer in time: try again, and raise the number of sessions if this lasts")
	// ErrClosed: the Token has been closed.
	ErrClosed = errors.New("the token has been closed")
	// ErrNotFound: a library started for the purpose shows no such key. No key is ever
	// made in answer to it.
	ErrNotFound = errors.New("no such key on the token: check the token and the key's label or ID; nothing was made")
	// ErrAmbiguous: more than one token or key answers to the name.
	ErrAmbiguous = errors.New("the name is not unique")
	// ErrExists: the label is taken.
	ErrExists = errors.New("a key with this label exists: choose another label or use that key")
	// ErrUnsupported: the token does not offer the mechanism, or the key is of a kind that
	// this package does not use.
	ErrUnsupported = errors.New("not supported")
	// ErrKey: the pair in the token is not what it should be: a half is missing, the public
	// key has changed, or a signature does not verify with it.
	ErrKey = errors.New("the key on the token cannot be trusted")
	// ErrDigest: the digest, or the options with it, cannot be signed by this key.
	ErrDigest = errors.New("digest refused")
)

var (
	errLibrary     = errors.New("the PKCS#11 library does not start")
	errTokenAbsent = errors.New("the token is not there")
	errKeyLost     = errors.New("the key is not on the token any more")
	errNoAnswer    = errors.New("the time to wait has passed")
	errUnusable    = errors.New("the token fails what every use of it takes")
)

// Error is a failed call. It is found with [errors.As], or by its behaviour.
type Error struct {
	Op     string // what was tried
	Token  string // on which token
	Reason error  // one of the errors above, or nil where none fits
	Err    error  // what the library or the context said, or nil
	after  time.Duration
}

func (e *Error) Error() string {
	s := "hsm: " + e.Op + " on " + e.Token
	if e.Reason != nil {
		s += ": " + e.Reason.Error()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the reason and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Reason, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Temporary reports whether the same call can succeed later without anybody changing it.
func (e *Error) Temporary() bool {
	return errors.Is(e.Reason, ErrUnavailable) || errors.Is(e.Reason, ErrBusy)
}

// RetryAfter is how long to wait before the next try; 0 when there is no advice.
func (e *Error) RetryAfter() time.Duration { return e.after }

// AttributeError says that a key is not protected as it must be. [Token.Generate] has then
// destroyed the pair, unless its text says otherwise.
type AttributeError struct {
	Attribute string // for instance CKA_EXTRACTABLE
	Want      bool
	Err       error // why the attribute could not be read, or what destroying the pair met; or nil
}

func (e *AttributeError) Error() string {
	s := fmt.Sprintf("the token holds the key without %s = %v, so it is not used: use a token that protects its keys, and keys made in it", e.Attribute, e.Want)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *AttributeError) Unwrap() error { return e.Err }

// class is what an error says about how to go on.
type class int

const (
	classNone    class = iota
	classSession       // this session is gone: use a new one
	classLogin         // the login is gone: log in again
	classObject        // the handle is gone: find the key again
	classDevice        // the library or the device is gone: start a new generation
	classPIN           // the PIN is wrong: stop
	classOther         // trying again would not help
	classes
)

// classify sorts an error by its return value (PKCS#11 v2.40 section 5.1).
func classify(err error) class {
	if err == nil {
		return classNone
	}
	for _, lost := range []error{errLibrary, errTokenAbsent, errKeyLost, errUnusable} {
		if errors.Is(err, lost) {
			return classDevice
		}
	}
	var rv pkcs11.Error
	if !errors.As(err, &rv) {
		return classOther
	}
	switch uint(rv) {
	case pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_HANDLE_INVALID:
		return classSession
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return classLogin
	case pkcs11.CKR_OBJECT_HANDLE_INVALID,
		pkcs11.CKR_KEY_HANDLE_INVALID: // the standard's name for it in C_SignInit
		return classObject
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return classDevice
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LOCKED,
		pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED:
		return classPIN
	}
	return classOther
}

// undecided reports whether err is a return value that says nothing of how to go on: a vendor's, or CKR_FUNCTION_FAILED. The request
// may be at fault, or the library or the device.
func undecided(err error) bool {
	var rv pkcs11.Error
	return classify(err) == classOther && errors.As(err, &rv) && uint(rv) != pkcs11.CKR_SESSION_COUNT
}

// unusable marks the error of a step that cannot be at fault, since it has no content of a caller's: opening a session, logging in, or
// the self-test of a key that has worked before. A new generation of the library is then what is left to try, whatever the code.
func unusable(err error) error {
	if !undecided(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnusable, err)
}

// explain turns what went wrong inside into what the caller is told.
func (t *Token) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: what, Token: t.cfg.name(), Err: err}
	switch c := classify(err); {
	case c == classPIN:
		e.Reason = ErrPIN
	case errors.Is(err, errNoAnswer), errors.Is(err, errDraining),
		errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)):
		e.Reason, e.after = ErrBusy, time.Second
	case c == classDevice, c == classSession, c == classLogin, c == classObject:
		e.Reason, e.after = ErrUnavailable, t.pause()
	case errors.Is(err, ErrClosed):
		e.Reason, e.Err = ErrClosed, nil
	}
	return e
}

// pause is how long the token wants to be left alone.
func (t *Token) pause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.brake.wait(time.Now()), firstPause)
}

// The pauses between restarts of a library whose token does not come back.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 30 * time.Second
)

// breaker keeps callers from restarting a broken token again and again. The first failure
// may be cured at once; from the second on each pause is about twice the one before.
type breaker struct {
	failures int
	until    time.Time
	cause    error
}

// check returns the newest failure while the pause lasts.
func (b *breaker) check(now time.Time) error {
	if b.wait(now) == 0 {
		return nil
	}
	return b.cause
}

// trip records a failure. Calls that fail while the pause lasts began before it.
func (b *breaker) trip(now time.Time, cause error) {
	if b.wait(now) > 0 {
		return
	}
	b.failures++
	b.cause = cause
	b.until = now.Add(b.delay())
}

func (b *breaker) delay() time.Duration {
	if b.failures < 2 {
		return 0
	}
	d := min(firstPause<<min(b.failures-2, 10), lastPause)
	// A fifth up or down, so that replicas that failed together do not return together.
	return d*4/5 + rand.N(d*2/5) //nolint:gosec // jitter is no secret
}

func (b *breaker) wait(now time.Time) time.Duration { return max(b.until.Sub(now), 0) }

func (b *breaker) reset() { *b = breaker{} }
