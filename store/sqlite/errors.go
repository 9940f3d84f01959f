package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/store/engine"
)

// Waits before a retry. A lock is released soon; a failing disk needs an operator.
const (
	retryBusy = 500 * time.Millisecond
	retryDisk = 5 * time.Second
)

// retiredSuffix is added to the name of a store that was moved to another engine.
const retiredSuffix = ".migrated"

// RetiredError means that the store was moved to PostgreSQL, so that the file at Path has another name.
type RetiredError struct{ Path string }

// Error names the file and the next step.
func (e *RetiredError) Error() string {
	return fmt.Sprintf("there is no store %s, because it was moved to PostgreSQL: set store.postgres and store.server in the configuration, and keep %s%s as it is",
		e.Path, e.Path, retiredSuffix)
}

// checkRetired returns a [*RetiredError] if the store at path was moved to another engine.
func checkRetired(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(path + retiredSuffix); err != nil {
		return nil //nolint:nilerr // it is not there
	}
	return &RetiredError{path}
}

// MissingDirectoryError means that the directory of a store does not exist. It wraps [fs.ErrNotExist].
type MissingDirectoryError struct{ Dir string }

// Error names the directory and the next step.
func (e *MissingDirectoryError) Error() string {
	return fmt.Sprintf("there is no directory %s for the store and the archive: create it, mode 0700, for the account that runs brevet", e.Dir)
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

// passing maps temporary errors of SQLite to advice.
var passing = map[sqlite3.ErrNo]engine.Advice{
	sqlite3.ErrBusy:     {Text: "another program has the store's file locked: end it", After: retryBusy},
	sqlite3.ErrLocked:   {Text: "another program has the store's file locked: end it", After: retryBusy},
	sqlite3.ErrProtocol: {Text: "another program has the store's file locked: end it", After: retryBusy},
	sqlite3.ErrFull:     {Text: "there is no space for the store: free some on its disk", After: retryDisk},
	sqlite3.ErrIoErr:    {Text: "the disk of the store fails: look at the kernel's log", After: retryDisk},
	sqlite3.ErrReadonly: {Text: "the store has become read-only: mount its disk for writing", After: retryDisk},
	sqlite3.ErrCantOpen: {Text: "the store's file cannot be opened: look at its directory", After: retryDisk},
	sqlite3.ErrNomem:    {Text: "there is no memory for the store", After: retryDisk},
}

// Fail wraps an error of the database with the operation, the advice for the operator, and whether it is temporary.
func (*file) Fail(what string, err error) error { return fail(what, err) }

func fail(what string, err error) error {
	return engine.Fail(what, err, func(err error) (engine.Advice, bool) {
		var cause sqlite3.Error
		if !errors.As(err, &cause) {
			return engine.Advice{}, false
		}
		advice, ok := passing[codeOf(cause)]
		return advice, ok
	})
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

// IsFull reports whether an error is that of a disk without space.
func IsFull(err error) bool {
	var cause sqlite3.Error
	return errors.As(err, &cause) && codeOf(cause) == sqlite3.ErrFull || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
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
