package enroll

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/files"
)

// A change is one write operation on the file system. The power may fail between any two changes.
type change struct {
	kind   changeKind
	path   string
	data   []byte // content, for create
	to     string // target, for link and move
	access access // access, for create
}

type changeKind uint8

const (
	makeDir changeKind = iota + 1 // creates path as a directory with mode 0755
	create                        // writes data to path, which must not exist, and sets its access
	flush                         // makes the content of path, a file or a directory, durable
	link                          // makes path a symbolic link to to
	move                          // renames path to to, replacing it
	remove                        // removes path and everything below it; a missing path is no error
)

// disk applies a change. If it returns an error, it may still have applied the change.
type disk func(change) error

// apply applies a change to the real file system. Flushing a file makes its content durable, and flushing a directory
// its entries (fsync(2)).
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
	return os.Chmod(path, 0o755) //nolint:gosec // the files inside have their own modes
}

// createFile creates a file, sets its access, and then writes the data. The file must not exist.
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

// makeAll creates a directory and its missing parents with mode 0711, and flushes them. With this mode, other users can
// enter the directories but not list them.
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
		if err := os.Chmod(p, 0o711); err != nil { //nolint:gosec // other users need to reach the certificates
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

// replace replaces a file atomically. Readers always see the complete old or new content, even after a power failure.
// When replace returns nil, the new content is durable.
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

// maxFile is the maximum size in bytes of the files that the package reads.
const maxFile = 256 << 10

// readFile reads a regular file of at most maxFile bytes.
func readFile(path string) ([]byte, error) { return files.Read(path, maxFile) }
