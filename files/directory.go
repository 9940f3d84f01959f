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

// directoryOnly are flags with which opening fails if the name is not that of a directory.
const directoryOnly = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_DIRECTORY

// Directory is an open directory. All names are relative to it, with slashes as separators. It follows symbolic links
// only within the directory.
type Directory struct{ root *os.Root }

// OpenDirectory opens a directory. The path may contain symbolic links. If the path leads to a FIFO, OpenDirectory
// returns an error instead of waiting.
func OpenDirectory(path string) (*Directory, error) {
	root, err := os.OpenRoot(path + "/.") // with "/." the kernel refuses anything except a directory before opening it
	if err != nil {
		return nil, err
	}
	return &Directory{root}, nil
}

// Close closes the directory. Files that were opened through it stay open.
func (d *Directory) Close() error { return d.root.Close() }

// Handle opens the directory itself, for locking or flushing it.
func (d *Directory) Handle() (*os.File, error) { return d.root.Open(".") }

// Open opens a regular file for reading.
func (d *Directory) Open(name string) (*os.File, error) {
	return requireRegular(d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0))
}

// Make creates a directory with exactly the given permissions. It does not change an existing directory.
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
	return errors.Join(made.Chmod(perm), made.Close()) // the umask does not affect Chmod
}

// Flush makes the entries of a directory durable. The name "." stands for the Directory itself.
func (d *Directory) Flush(name string) error {
	f, err := d.root.OpenFile(name, directoryOnly, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Replace replaces a file by a new one with exactly the given permissions. The content is durable before the file gets
// its name. To make the name durable, call Flush. Callers must not replace the same name concurrently.
func (d *Directory) Replace(name string, perm fs.FileMode, write func(io.Writer) error) error {
	temporary := path.Join(path.Dir(name), temporaryPrefix+path.Base(name))
	if err := d.root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) { // a crash may have left it
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

// create creates a file, writes its content and flushes it. If the file exists, create returns an error.
func (d *Directory) create(name string, perm fs.FileMode, write func(io.Writer) error) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(perm); err != nil { // the umask does not affect Chmod
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	return f.Sync()
}
