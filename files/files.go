// Package files opens and writes files in directories to which other accounts may write.
//
// In such a directory, a name can lead to a file of the server, a FIFO or a device. [Open] and [OpenFile] open only
// regular files, and never wait for the other end of a FIFO. [Create] and [Directory.Replace] write only to files that
// they have created themselves. A [Directory] never accesses anything outside of itself.
//
// [Unsupported], [ProbeFlush] and [ProbeLinks] detect a file system that lacks a feature which is necessary for
// durability. They distinguish it from a file system that fails.
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

// ErrNotRegular means that a path leads to something other than a regular file.
var ErrNotRegular = errors.New("not a regular file")

// NoFollow makes [OpenFile] refuse a path whose last element is a symbolic link.
const NoFollow = syscall.O_NOFOLLOW

// Open opens a regular file for reading. It follows symbolic links.
func Open(path string) (*os.File, error) { return OpenFile(path, os.O_RDONLY, 0) }

// OpenFile opens a regular file like [os.OpenFile]. It returns ErrNotRegular if the path leads to something else. The
// flags must not contain O_TRUNC, which would take effect before OpenFile checks the file.
func OpenFile(path string, flag int, perm fs.FileMode) (*os.File, error) {
	return requireRegular(os.OpenFile(path, flag|syscall.O_NONBLOCK, perm))
}

// requireRegular returns an open file. If it is not a regular file, requireRegular closes it and returns an error.
func requireRegular(f *os.File, err error) (*os.File, error) {
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

// Read reads a regular file that has at most limit bytes. It follows symbolic links.
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

// Create replaces the file at a path by a new one, and opens it for reading and writing. If the path is a link, Create
// removes the link and does not follow it.
func Create(path string, perm fs.FileMode) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
}

// Flush makes the content of a file or directory durable. If the file system cannot flush directories, Flush returns an
// error for which [Unsupported] returns true.
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

// CheckPrivate returns an error if a directory has one of the permission bits in mask. Accounts that can write to the
// directory could replace files in it.
func CheckPrivate(path string, mask fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return fmt.Errorf("other accounts can write to %s, which has mode %04o, and replace the files there: give it "+
			"mode 0700", filepath.Clean(path), mode)
	}
	return nil
}
