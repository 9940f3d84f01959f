package engine

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

// LockedError says that another process has the store open.
type LockedError struct {
	Path string // of the lock file
	PID  int    // of the process that wrote it; zero where that is not readable
}

// Error names the lock file, its holder and the next step.
func (e *LockedError) Error() string {
	holder := "another process"
	if e.PID != 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%s has the store open and holds %s: stop it first, or ask it over gRPC", holder, e.Path)
}

// takeLock locks a file of its own: SQLite's locks on the database are let go whenever any descriptor of it is closed.
// The file stays when the lock goes; removing it would let two processes lock two files of one name.
func takeLock(path string) (*os.File, error) {
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE|files.NoFollow, 0o600) // its content is written over
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
		_ = giveLock(f) // the error that matters is the first one
		return nil, openError(path, err)
	}
	return f, nil
}

// giveLock lets the lock go. To close the file is not enough: a process that is being started just now has it open, too,
// until it runs its program.
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
