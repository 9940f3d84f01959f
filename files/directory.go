package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// temporaryPrefix is the prefix of the names of incomplete files.
const temporaryPrefix = ".unfinished-"

// directoryOnly makes opening fail if the name is not a directory.
const directoryOnly = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_DIRECTORY

// Directory is an open directory. Names are relative to it, separated by slashes. Symbolic links are followed only
// within the directory.
type Directory struct{ root *os.Root }

// OpenDirectory opens a directory. Its path may contain symbolic links. OpenDirectory never waits for a FIFO of that
// name.
func OpenDirectory(path string) (*Directory, error) {
	root, err := os.OpenRoot(path + "/.") // with the dot the kernel refuses anything but a directory before opening it
	if err != nil {
		return nil, err
	}
	return &Directory{root}, nil
}

// Close closes the directory. Files opened through it stay open.
func (d *Directory) Close() error { return d.root.Close() }

// Handle opens the directory itself, for locking or flushing it.
func (d *Directory) Handle() (*os.File, error) { return d.root.Open(".") }

// Open opens a regular file for reading.
func (d *Directory) Open(name string) (*os.File, error) {
	return requireRegular(d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0))
}

// Make creates a directory with exactly these permissions. An existing directory is left as it is.
func (d *Directory) Make(name string, perm fs.FileMode) error {
	err := d.root.Mkdir(name, perm)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	made, err := d.root.OpenFile(name, directoryOnly, 0)
	if err != nil {
		return err
	}
	return errors.Join(made.Chmod(perm), made.Close()) // independently of the umask
}

// Flush makes the entries of a directory durable. The name "." means the Directory itself.
func (d *Directory) Flush(name string) error {
	f, err := d.root.OpenFile(name, directoryOnly, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Replace replaces a file by a new one with exactly these permissions. The content is durable before the file gets its
// name; call Flush to make the name durable. Callers must not replace the same name concurrently.
func (d *Directory) Replace(name string, perm fs.FileMode, write func(io.Writer) error) error {
	temporary := path.Join(path.Dir(name), temporaryPrefix+path.Base(name))
	if err := d.root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by a crash
		return err
	}
	err := d.create(temporary, perm, write)
	if err == nil {
		err = d.root.Rename(temporary, name)
	}
	if err == nil {
		return nil
	}
	if rerr := d.root.Remove(temporary); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// create creates a file, writes it and flushes it. It returns an error if the file exists.
func (d *Directory) create(name string, perm fs.FileMode, write func(io.Writer) error) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(perm); err != nil { // independently of the umask
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	return f.Sync()
}
