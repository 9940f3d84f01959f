package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Unsupported reports whether an error means that the file system lacks a feature. For other failures it returns false.
func Unsupported(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS)
}

// ProbeFlush returns an error if the file system of a directory cannot flush directories. It ignores other errors,
// which later writes report.
func ProbeFlush(path string) error {
	if err := Flush(path); Unsupported(err) {
		return err
	}
	return nil
}

// ProbeLinks returns an error if the file system of a directory has no symbolic links. It ignores other errors, which
// later writes report.
func ProbeLinks(path string) error {
	link := filepath.Join(path, temporaryPrefix+"probe")
	_ = os.Remove(link) // a crash may have left it
	err := os.Symlink("nowhere", link)
	if errors.Is(err, syscall.EPERM) || Unsupported(err) { // on FAT, symlink(2) returns EPERM
		return fmt.Errorf("the file system of %s has no symbolic links, which put a credential in use: "+
			"use a file system such as ext4, UBIFS or tmpfs: %w", path, err)
	}
	if err == nil {
		_ = os.Remove(link)
	}
	return nil
}
