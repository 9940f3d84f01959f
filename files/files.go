// Package files opens and writes files in directories that other accounts may write to.
//
// There a name can lead to anything: a symbolic or hard link to a file of the server's own, a FIFO without a reader, a
// device, a directory. [Open] and [OpenFile] return regular files only, and do not wait for the other end of a FIFO.
// [Create] and [Directory.Replace] write to a file that they have created exclusively, and so never to one that was
// there. A [Directory] reaches nothing outside of itself.
//
// [Unsupported] and [Probe] tell a file system that lacks what durability needs from one that fails.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrNotRegular says that a path leads to something other than a regular file.
var ErrNotRegular = errors.New("not a regular file")

// NoFollow has [OpenFile] refuse a path whose last element is a symbolic link.
const NoFollow = syscall.O_NOFOLLOW

// Open opens a regular file to read. It follows symbolic links.
func Open(path string) (*os.File, error) { return OpenFile(path, os.O_RDONLY, 0) }

// OpenFile opens a regular file as [os.OpenFile] does, and returns ErrNotRegular for anything else. The flags must not
// include O_TRUNC, which would take effect before OpenFile sees what it has opened.
func OpenFile(path string, flag int, perm fs.FileMode) (*os.File, error) {
	return regular(os.OpenFile(path, flag|syscall.O_NONBLOCK, perm))
}

// regular passes on a file that was opened, or closes it and returns an error.
func regular(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: ErrNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Read reads a regular file of at most so many bytes. It follows symbolic links.
func Read(path string, limit int64) (content []byte, err error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return content, err
}

// Create makes a new file in place of what the path names, and opens it to read and write. Links are removed, not followed.
func Create(path string, perm fs.FileMode) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
}

// Flush makes durable what a file or directory holds. If the file system cannot do that for directories, the error says so,
// and [Unsupported] reports it.
func Flush(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	if Unsupported(err) {
		return fmt.Errorf("the file system of %s cannot flush directories, so a power failure could lose files there: "+
			"use a local file system such as ext4, XFS or Btrfs: %w", path, err)
	}
	return err
}

// CheckPrivate returns an error if accounts whose permission bits are in the mask can write to a directory: they could put
// files of their own in place of those that are read there.
func CheckPrivate(path string, mask fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return fmt.Errorf("other accounts can write to %s, which has mode %04o, and replace the files there: give it mode 0700", filepath.Clean(path), mode)
	}
	return nil
}
