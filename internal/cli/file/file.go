package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Vacant checks that WriteNew can create the files, before a command creates the key or token that they will contain.
func Vacant(paths ...string) error {
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			return existsError(path)
		}
		probe, err := os.CreateTemp(filepath.Dir(path), ".brevet-*")
		if err == nil {
			err = errors.Join(probe.Close(), os.Remove(probe.Name()))
		}
		var cause *fs.PathError
		if errors.As(err, &cause) {
			err = cause.Err // the error names a temporary file
		}
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
	}
	return nil
}

func existsError(path string) error {
	return fmt.Errorf("%s exists already: move it away or choose another name", path)
}

// WriteNew writes a new file completely and durably, or leaves no file. It fails if the file exists.
func WriteNew(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return existsError(path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
