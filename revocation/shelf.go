package revocation

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/files"
)

// shelf is the authority's own directory of CRLs, which no other process writes.
type shelf struct{ dir string }

// path is where a CRL lies once it is on record.
func (s shelf) path(scope Scope) string {
	return filepath.Join(s.dir, filepath.FromSlash(scope.Path()))
}

// pathOfNew is where it is made.
func (s shelf) pathOfNew(scope Scope) string { return s.path(scope) + ".new" }

// prepare makes the directory in which an issuer's CRLs lie.
func (s shelf) prepare(scope Scope) error {
	return os.MkdirAll(filepath.Dir(s.path(scope)), 0o700)
}

// place puts CRLs that are on record where they are published, and makes that last.
func (s shelf) place(crls []CRL) error {
	for _, c := range crls {
		if err := os.Rename(s.pathOfNew(c.Scope()), s.path(c.Scope())); err != nil {
			return err
		}
	}
	return s.flush(crls)
}

// flush makes the names of CRLs' files last, with those of the directories that they lie in.
func (s shelf) flush(crls []CRL) error {
	dirs := map[string]bool{s.dir: true}
	for _, c := range crls {
		dirs[filepath.Dir(s.path(c.Scope()))] = true
	}
	for dir := range dirs {
		if err := syncDirectory(dir); err != nil {
			return err
		}
	}
	return nil
}

// recover finds the file of a recorded CRL: a crash between record and renaming leaves it under its new name. It reports
// whether the CRL lies where it is published. One that was signed elsewhere is written anew.
func (s shelf) recover(c CRL) (bool, error) {
	scope := c.Scope()
	if c.isThis(s.path(scope)) {
		return true, nil
	}
	if !c.isThis(s.pathOfNew(scope)) {
		if c.DER == nil {
			return false, nil
		}
		if err := s.write(c); err != nil {
			return false, err
		}
	}
	return true, s.place([]CRL{c})
}

// write writes the file of a CRL that is at hand, and flushes it.
func (s shelf) write(c CRL) error {
	if err := s.prepare(c.Scope()); err != nil {
		return err
	}
	return writeFile(s.pathOfNew(c.Scope()), c.DER)
}

func writeFile(path string, content []byte) (err error) {
	file, err := files.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(content); err != nil {
		return err
	}
	return file.Sync()
}

// syncDirectory makes the names in a directory last.
func syncDirectory(path string) error {
	if err := files.Flush(path); err != nil {
		return fmt.Errorf("flush the directory %s: %w", path, err)
	}
	return nil
}

// pointOf returns the issuing distribution point of the file that is published for a scope; nil where there is no such file.
func (s shelf) pointOf(scope Scope) []byte {
	file, err := files.Open(s.path(scope))
	if err != nil {
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	h, err := readHead(file, info.Size())
	if err != nil {
		return nil
	}
	return h.point
}
