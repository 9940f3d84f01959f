package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/files"
)

// LockedError means that another process has the store open.
type LockedError struct {
	Path string // of the lock file
	PID  int    // of the process that holds the lock; zero if it cannot be read
}

// Error names the lock file, its holder and the next step.
func (e *LockedError) Error() string {
	holder := "another process"
	if e.PID != 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%s has the store open and holds %s: stop it first, or ask it over gRPC", holder, e.Path)
}

// takeLock locks a separate file, because SQLite's locks on the database are released whenever any of its descriptors
// is closed. The file is never removed: otherwise two processes could lock different files with the same name.
func takeLock(path string) (*os.File, error) {
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE|files.NoFollow, 0o600) // overwritten below
	if err != nil {
		return nil, openError(path, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, &LockedError{Path: path, PID: holder(f)}
	}
	if err == nil {
		err = writeHolder(f)
	}
	if err != nil {
		_ = giveLock(f) // the first error is reported
		return nil, openError(path, err)
	}
	return f, nil
}

// giveLock releases the lock. Closing the file is not enough: a child process that is just being started also has it
// open, until it executes its program.
func giveLock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

func writeHolder(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func holder(f *os.File) int {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}
