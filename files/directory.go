package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// unfinished begins the names of files that are being written.
const unfinished = ".unfinished-"

// directoryOnly opens a directory, and nothing that somebody has put in its place.
const directoryOnly = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_DIRECTORY

// Directory is an open directory. Names are relative to it, with slashes. Symbolic links in it are followed only to what
// is in it.
type Directory struct{ root *os.Root }

// OpenDirectory opens a directory. Its own path may contain symbolic links. It does not wait for a FIFO of that name.
func OpenDirectory(path string) (*Directory, error) {
	root, err := os.OpenRoot(path + "/.") // the dot has the kernel refuse what is no directory before it opens it
	if err != nil {
		return nil, err
	}
	return &Directory{root}, nil
}

// Close closes the directory. Files that were opened in it stay open.
func (d *Directory) Close() error { return d.root.Close() }

// Handle opens the directory itself, to lock or flush it.
func (d *Directory) Handle() (*os.File, error) { return d.root.Open(".") }

// Open opens a regular file to read.
func (d *Directory) Open(name string) (*os.File, error) {
	return regular(d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0))
}

// Make makes a directory with exactly these permissions where there is none.
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
	return errors.Join(made.Chmod(perm), made.Close()) // whatever the process masks
}

// Flush makes the names in a directory durable; "." is the directory itself.
func (d *Directory) Flush(name string) error {
	f, err := d.root.OpenFile(name, directoryOnly, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Replace puts a new file with exactly these permissions in place of what name is. Its content is durable when it gets
// the name; call Flush to make the name durable. Callers that replace one name exclude each other.
func (d *Directory) Replace(name string, perm fs.FileMode, write func(io.Writer) error) error {
	temporary := path.Join(path.Dir(name), unfinished+path.Base(name))
	if err := d.root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) { // what a crash has left
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

func (d *Directory) create(name string, perm fs.FileMode, write func(io.Writer) error) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(perm); err != nil { // whatever the process masks
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	return f.Sync()
}
