package enroll

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/files"
)

// A change is one step of writing to the file system. Power may fail between any two steps.
type change struct {
	kind   changeKind
	path   string
	data   []byte // for create
	to     string // for link and move
	access access // for create
}

type changeKind uint8

const (
	makeDir changeKind = iota + 1 // creates path as a directory with mode 0755
	create                        // writes data to path, which must not exist, with the access in keep
	flush                         // makes the content of path, a file or a directory, durable
	link                          // makes path a symbolic link to to
	move                          // renames path to to, replacing it
	remove                        // removes path and everything below it; a missing path is no error
)

// disk applies a change or returns an error. After an error the change may have been applied nevertheless.
type disk func(change) error

// apply makes a change to the real file system. Flushing a directory makes its entries durable (fsync(2)); flushing a
// file makes its content durable.
func apply(c change) error {
	switch c.kind {
	case makeDir:
		return makeDirectory(c.path)
	case create:
		return createFile(c.path, c.data, c.access)
	case flush:
		return files.Flush(c.path)
	case link:
		return os.Symlink(c.to, c.path)
	case move:
		return os.Rename(c.path, c.to)
	case remove:
		return os.RemoveAll(c.path)
	default:
		return fmt.Errorf("no such change: %d", c.kind)
	}
}

// makeDirectory creates a directory with mode 0755, independently of the umask.
func makeDirectory(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) //nolint:gosec // the files inside have modes of their own
}

// createFile creates a file that must not exist, sets its access, then writes the data.
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

// makeAll creates a directory and its missing parents, durably, with mode 0711: other users can traverse but not list
// them.
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
		if err := os.Chmod(p, 0o711); err != nil { //nolint:gosec // other users may need to reach the certificates
			return err
		}
		if err := files.Flush(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}

// applyAll applies changes in order and stops at the first error.
func (d disk) applyAll(changes ...change) error {
	for _, c := range changes {
		if err := d(c); err != nil {
			return err
		}
	}
	return nil
}

// replace replaces a file. Readers see either the old or the new content, also after a power failure; after replace
// returns nil, the new content is durable.
func (d disk) replace(path string, data []byte) error {
	next := path + ".new"
	return d.applyAll(
		change{kind: remove, path: next},
		change{kind: create, path: next, data: data},
		change{kind: flush, path: next},
		change{kind: move, path: next, to: path},
		change{kind: flush, path: filepath.Dir(path)},
	)
}

// maxFile bounds the files that are read, in bytes.
const maxFile = 256 << 10

// readFile reads a regular file of at most maxFile bytes.
func readFile(path string) ([]byte, error) { return files.Read(path, maxFile) }
