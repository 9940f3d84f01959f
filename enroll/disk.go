package enroll

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/files"
)

// A change is one step of writing, as small as the file system makes them: power may fail between any two.
type change struct {
	kind changeKind
	path string
	data []byte // of create
	to   string // of link and move
	keep access // of create
}

type changeKind uint8

const (
	makeDir changeKind = iota + 1 // path, mode 0755
	create                        // path with data, for those that keep names; it must not exist
	flush                         // what path, a file or a directory, holds, to the medium
	link                          // path becomes a symbolic link to to
	move                          // path becomes to, in place of what to was
	remove                        // path and all below it; nothing to do where it does not exist
)

// disk applies a change, or fails; when it fails, the change may have been applied all the same.
type disk func(change) error

// apply makes a change to the real file system. A directory's entries are durable after a flush of the directory
// (fsync(2)), a file's content after a flush of the file.
func apply(c change) error {
	switch c.kind {
	case makeDir:
		return makeDirectory(c.path)
	case create:
		return createFile(c.path, c.data, c.keep)
	case flush:
		return files.Flush(c.path)
	case link:
		return os.Symlink(c.to, c.path)
	case move:
		return os.Rename(c.path, c.to)
	case remove:
		return os.RemoveAll(c.path)
	default:
		return fmt.Errorf("enroll: no such change: %d", c.kind)
	}
}

func makeDirectory(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) //nolint:gosec // its files have modes of their own, and the umask shall not matter
}

func createFile(path string, data []byte, keep access) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = keep.apply(f); err == nil {
		_, err = f.Write(data)
	}
	return errors.Join(err, f.Close())
}

// makeAll makes a directory and those above it that are missing, durably. Other users may pass through them, and not
// list them.
func makeAll(path string) error {
	var made []string
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil || p == filepath.Dir(p) {
			break
		}
		made = append(made, p)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	for _, p := range made {
		if err := os.Chmod(p, 0o711); err != nil { //nolint:gosec // as makeDirectory
			return err
		}
		if err := files.Flush(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}

// all applies changes in order, up to the first that fails.
func (d disk) all(changes ...change) error {
	for _, c := range changes {
		if err := d(c); err != nil {
			return err
		}
	}
	return nil
}

// replace puts a file in place of what is there: whoever reads sees the old content or the new one, also after a
// power cut, and the new one once replace has returned nil.
func (d disk) replace(path string, data []byte) error {
	next := path + ".new"
	return d.all(
		change{kind: remove, path: next},
		change{kind: create, path: next, data: data},
		change{kind: flush, path: next},
		change{kind: move, path: next, to: path},
		change{kind: flush, path: filepath.Dir(path)},
	)
}

// maxFile bounds what is read, in bytes.
const maxFile = 256 << 10

// readFile reads a regular file of at most maxFile bytes.
func readFile(path string) ([]byte, error) { return files.Read(path, maxFile) }
