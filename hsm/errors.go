package hsm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/miekg/pkcs11"
)

// The reasons for which a call can fail; use [errors.Is]. [ErrUnavailable] and [ErrBusy] are temporary.
var (
	// ErrPIN: the HSM refused the PIN. The [HSM] does not send it again. To continue, open a new HSM.
	ErrPIN = errors.New("the HSM refused the PIN; it was tried once and will not be tried again, so that the HSM does not lock: correct the PIN, then open the HSM again")
	// ErrUnavailable: the HSM, its library or its storage does not work. Later calls on an open [HSM] restart the
	// library, with growing pauses, until it works.
	ErrUnavailable = errors.New("the HSM is not available: check the device, its connection and its storage")
	// ErrBusy: the HSM did not respond in time.
	ErrBusy = errors.New("the HSM did not respond in time: try again, and raise the number of sessions if this lasts")
	// ErrClosed: the [HSM] has been closed.
	ErrClosed = errors.New("the HSM has been closed")
	// ErrNotFound: the library finds no such key, even after a restart. The package never generates a missing key on
	// its own.
	ErrNotFound = errors.New("no such key on the HSM: check the HSM and the key's label or ID; nothing was made")
	// ErrAmbiguous: more than one HSM or key matches.
	ErrAmbiguous = errors.New("the name is not unique")
	// ErrExists: a key or HSM with this label exists.
	ErrExists = errors.New("a key with this label exists: choose another label or use that key")
	// ErrUnsupported: the HSM does not have the mechanism, or this package does not support the type of key.
	ErrUnsupported = errors.New("not supported")
	// ErrKey: the key pair in the HSM is damaged. Its private or public key is missing, the public key has changed, or
	// a signature does not verify.
	ErrKey = errors.New("the key on the HSM cannot be trusted")
	// ErrDigest: the key cannot sign the digest with these options.
	ErrDigest = errors.New("digest refused")
)

var (
	errLibrary  = errors.New("the PKCS#11 library does not start")
	errAbsent   = errors.New("the HSM is not present")
	errKeyLost  = errors.New("the key is no longer on the HSM")
	errNoAnswer = errors.New("the wait timed out")
	errUnusable = errors.New("the HSM fails basic operations")
)

// Error is the error of a failed call. Use [errors.As], or its methods Temporary and RetryAfter.
type Error struct {
	Op     string // what the package was doing
	HSM    string // label or serial number of the HSM
	Reason error  // one of the errors above, or nil if none applies
	Err    error  // error of the library or the context, or nil
	after  time.Duration
}

func (e *Error) Error() string {
	s := e.Op + " on " + e.HSM
	if e.Reason != nil {
		s += ": " + e.Reason.Error()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the reason and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Reason, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Temporary reports whether the same call may succeed later.
func (e *Error) Temporary() bool {
	return errors.Is(e.Reason, ErrUnavailable) || errors.Is(e.Reason, ErrBusy)
}

// RetryAfter returns how long the caller should wait before it retries, or 0 if that is unknown.
func (e *Error) RetryAfter() time.Duration { return e.after }

// AttributeError reports that the HSM does not protect a key as required. [HSM.Generate] has then destroyed the key
// pair, unless Err says that this failed.
type AttributeError struct {
	Attribute string // name of the attribute, for instance CKA_EXTRACTABLE
	Want      bool
	Err       error // why reading the attribute or destroying the pair failed, or nil
}

func (e *AttributeError) Error() string {
	s := fmt.Sprintf("the key does not have %s = %v, so it is not used: use an HSM that protects its keys, and keys made in it", e.Attribute, e.Want)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *AttributeError) Unwrap() error { return e.Err }

// class says how to continue after an error.
type class int

const (
	classNone    class = iota
	classSession       // the session is lost: retry with a new one
	classLogin         // the login is lost: log in again
	classObject        // the key's handle is invalid: find the key again
	classDevice        // the library or the device is lost: restart the library
	classPIN           // the HSM refused the PIN: do not retry
	classOther         // a retry would not help
	classes
)

// classify returns the class of an error, according to its return value (PKCS#11 v2.40 section 5.1).
func classify(err error) class {
	if err == nil {
		return classNone
	}
	for _, lost := range []error{errLibrary, errAbsent, errKeyLost, errUnusable} {
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
		pkcs11.CKR_KEY_HANDLE_INVALID: // the code for an invalid handle in C_SignInit
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

// undecided reports whether err is a return value that does not reveal the cause, such as a vendor's code or
// CKR_FUNCTION_FAILED. The cause may be in the request, the library or the device.
func undecided(err error) bool {
	var rv pkcs11.Error
	return classify(err) == classOther && errors.As(err, &rv) && uint(rv) != pkcs11.CKR_SESSION_COUNT
}

// unusable marks undecided errors of the steps that do not depend on the request: opening a session, logging in, and
// the self-test of a key that has worked before. After such an error the library is restarted.
func unusable(err error) error {
	if !undecided(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnusable, err)
}

// wrapError converts an internal error to the [Error] for the caller.
func (t *HSM) wrapError(what string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: what, HSM: t.cfg.name(), Err: err}
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

// pause returns how long callers should wait before they retry.
func (t *HSM) pause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.breaker.remaining(time.Now()), firstPause)
}

// The minimum and maximum pause between restarts of a library whose HSM stays unavailable.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 30 * time.Second
)

// breaker limits how often callers restart a broken HSM. After the first failure there is no pause. From the second
// failure on, each pause is about twice as long as the one before.
type breaker struct {
	failures int
	until    time.Time
	cause    error
}

// check returns the last failure until the pause after it has ended, and then nil.
func (b *breaker) check(now time.Time) error {
	if b.remaining(now) == 0 {
		return nil
	}
	return b.cause
}

// trip records a failure. It ignores failures during a pause: their calls began before the pause.
func (b *breaker) trip(now time.Time, cause error) {
	if b.remaining(now) > 0 {
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
	// A jitter of 20 %, so that replicas that failed together do not retry together.
	return d*4/5 + rand.N(d*2/5) //nolint:gosec // jitter is not a secret
}

func (b *breaker) remaining(now time.Time) time.Duration { return max(b.until.Sub(now), 0) }

func (b *breaker) reset() { *b = breaker{} }
