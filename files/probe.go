package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Unsupported reports whether an error says that the file system cannot do something, rather than that it failed to.
func Unsupported(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS)
}

// ProbeFlush returns an error if a directory is on a file system that cannot flush directories. Other failures are left to
// whoever writes there.
func ProbeFlush(path string) error {
	if err := Flush(path); Unsupported(err) {
		return err
	}
	return nil
}

// ProbeLinks returns an error if a directory is on a file system without symbolic links. Other failures are left to
// whoever writes there.
func ProbeLinks(path string) error {
	link := filepath.Join(path, unfinished+"probe")
	_ = os.Remove(link) // what a crash has left
	err := os.Symlink("nowhere", link)
	if errors.Is(err, syscall.EPERM) || Unsupported(err) { // EPERM is what symlink(2) returns on FAT
		return fmt.Errorf("the file system of %s has no symbolic links, which put a credential in use: "+
			"use a file system such as ext4, UBIFS or tmpfs: %w", path, err)
	}
	if err == nil {
		_ = os.Remove(link)
	}
	return nil
}
