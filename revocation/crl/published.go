package crl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/files"
)

// publishedDirectory is the directory in which the updater stores published CRLs. No other process writes to it.
type publishedDirectory struct{ dir string }

// path returns the path of the published CRL of a scope.
func (p publishedDirectory) path(scope Scope) string {
	return filepath.Join(p.dir, filepath.FromSlash(scope.Path()))
}

// temporaryPath returns the path of a CRL that is being written.
func (p publishedDirectory) temporaryPath(scope Scope) string { return p.path(scope) + ".new" }

// makeParent makes the directory of an issuer's CRLs.
func (p publishedDirectory) makeParent(scope Scope) error {
	return os.MkdirAll(filepath.Dir(p.path(scope)), 0o700)
}

// install renames recorded CRLs to their published paths, and makes the names durable.
func (p publishedDirectory) install(crls []CRL) error {
	for _, c := range crls {
		if err := os.Rename(p.temporaryPath(c.Scope()), p.path(c.Scope())); err != nil {
			return err
		}
	}
	return p.flush(crls)
}

// flush makes the names of the CRLs' files, and those of their directories, durable.
func (p publishedDirectory) flush(crls []CRL) error {
	dirs := map[string]bool{p.dir: true}
	for _, c := range crls {
		dirs[filepath.Dir(p.path(c.Scope()))] = true
	}
	for dir := range dirs {
		if err := syncDirectory(dir); err != nil {
			return err
		}
	}
	return nil
}

// recover restores the file of a recorded CRL, and reports whether it is at its published path. After a crash between
// recording and renaming, it is still at its temporary path. If the CRL was signed elsewhere, recover writes the file
// from the record.
func (p publishedDirectory) recover(c CRL) (bool, error) {
	scope := c.Scope()
	if c.isThis(p.path(scope)) {
		return true, nil
	}
	if !c.isThis(p.temporaryPath(scope)) {
		if c.DER == nil {
			return false, nil
		}
		if err := p.write(c); err != nil {
			return false, err
		}
	}
	return true, p.install([]CRL{c})
}

// write writes the file of a CRL from its record, and flushes it.
func (p publishedDirectory) write(c CRL) error {
	if err := p.makeParent(c.Scope()); err != nil {
		return err
	}
	return writeFile(p.temporaryPath(c.Scope()), c.DER)
}

func writeFile(path string, content []byte) error {
	return createFile(path, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// createFile writes a file and flushes it.
func createFile(path string, write func(io.Writer) error) (err error) {
	file, err := files.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := write(file); err != nil {
		return err
	}
	return file.Sync()
}

// syncDirectory makes the names in a directory durable.
func syncDirectory(path string) error {
	if err := files.Flush(path); err != nil {
		return fmt.Errorf("flush the directory %s: %w", path, err)
	}
	return nil
}

// pointOf returns the issuing distribution point in the published file of a scope, or nil if there is no such file.
func (p publishedDirectory) pointOf(scope Scope) []byte {
	file, err := files.Open(p.path(scope))
	if err != nil {
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	m, err := readMetadata(file, info.Size())
	if err != nil {
		return nil
	}
	return m.point
}
