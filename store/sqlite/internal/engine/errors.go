package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Waits before a retry. A lock is released soon; a failing disk needs an operator.
const (
	retryBusy = 500 * time.Millisecond
	retryDisk = 5 * time.Second
)

// MissingDirectoryError means that the directory of a store does not exist. It wraps [fs.ErrNotExist].
type MissingDirectoryError struct{ Dir string }

// Error names the directory and the next step.
func (e *MissingDirectoryError) Error() string {
	return fmt.Sprintf("there is no directory %s for the store: create it, mode 0700, for the account that runs brevet", e.Dir)
}

// Unwrap returns fs.ErrNotExist.
func (e *MissingDirectoryError) Unwrap() error { return fs.ErrNotExist }

// ModeError means that accounts other than the owner may read or write a store.
type ModeError struct {
	Path string
	Mode fs.FileMode
}

// Error names the file, its mode and the next step.
func (e *ModeError) Error() string {
	return fmt.Sprintf("others may use the store %s (mode %04o): run chmod 600 on it", e.Path, e.Mode)
}

// unavailable is a temporary failure of the store.
type unavailable struct {
	what  string
	after time.Duration
	cause error
}

func (e *unavailable) Error() string { return fmt.Sprintf("%s: %v", e.what, e.cause) }

func (e *unavailable) Unwrap() error { return e.cause }

// Temporary returns true: the same operation may succeed later.
func (e *unavailable) Temporary() bool { return true }

// RetryAfter returns the wait before a retry.
func (e *unavailable) RetryAfter() time.Duration { return e.after }

// passing maps temporary errors of SQLite to advice.
var passing = map[sqlite3.ErrNo]struct {
	advice string
	after  time.Duration
}{
	sqlite3.ErrBusy:     {"another program has the store's file locked: end it", retryBusy},
	sqlite3.ErrLocked:   {"another program has the store's file locked: end it", retryBusy},
	sqlite3.ErrProtocol: {"another program has the store's file locked: end it", retryBusy},
	sqlite3.ErrFull:     {"there is no space for the store: free some on its disk", retryDisk},
	sqlite3.ErrIoErr:    {"the disk of the store fails: look at the kernel's log", retryDisk},
	sqlite3.ErrReadonly: {"the store has become read-only: mount its disk for writing", retryDisk},
	sqlite3.ErrCantOpen: {"the store's file cannot be opened: look at its directory", retryDisk},
	sqlite3.ErrNomem:    {"there is no memory for the store", retryDisk},
}

// Fail wraps an error of the database with the operation, the advice for the operator, and whether it is temporary. It
// returns refusals and [ca.ErrFenced] unchanged.
func Fail(what string, err error) error {
	if _, refused := pki.AsRefusal(err); err == nil || refused || errors.Is(err, ca.ErrFenced) {
		return err
	}
	var soft *unavailable
	if errors.As(err, &soft) {
		return err
	}
	var cause sqlite3.Error
	if errors.As(err, &cause) {
		if p, ok := passing[codeOf(cause)]; ok {
			return &unavailable{what + ": " + p.advice, p.after, err}
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &unavailable{what + ": no answer in time", retryBusy, err}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// codeOf returns the code of an error. If SQLite reports only a disk error, it uses the system's error number.
func codeOf(err sqlite3.Error) sqlite3.ErrNo {
	switch {
	case err.Code == sqlite3.ErrIoErr && err.SystemErrno == syscall.ENOSPC:
		return sqlite3.ErrFull
	case err.Code == sqlite3.ErrIoErr && err.SystemErrno == syscall.EROFS:
		return sqlite3.ErrReadonly
	default:
		return err.Code
	}
}

// isBroken reports whether a connection should be closed after an error, because its cached state of the file may be
// wrong.
func isBroken(err error) bool {
	var cause sqlite3.Error
	if !errors.As(err, &cause) {
		return false
	}
	switch cause.Code {
	case sqlite3.ErrConstraint, sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrFull, sqlite3.ErrInterrupt:
		return false
	default:
		return true
	}
}

// IsDuplicate reports whether a row was not inserted because of a UNIQUE constraint.
func IsDuplicate(err error) bool {
	var cause sqlite3.Error
	return errors.As(err, &cause) && cause.ExtendedCode == sqlite3.ErrConstraintUnique
}
