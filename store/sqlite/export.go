package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/store/engine"
)

// Export opens the store at path as [Open] does, and calls read with a consistent snapshot of its tables. No server can open
// the store meanwhile. There must be a store.
func Export(ctx context.Context, path string, read func(context.Context, engine.Querier) error) (err error) {
	if err := checkRetired(path); err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	db, err := openFile(ctx, path, &sqlite3.SQLiteDriver{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.reader.BeginTx(ctx, nil)
	if err != nil {
		return fail("read the store", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return read(ctx, transaction{tx})
}

// Retire renames the store at path, so that no server opens it by accident, and returns its new path. It fails if a process has
// the store open.
func Retire(path string) (to string, err error) {
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, giveLock(lock)) }()
	to = path + retiredSuffix
	if _, err := os.Lstat(to); err == nil {
		return "", fmt.Errorf("%s exists already: move it away, and run the command again", to)
	}
	if err := os.Rename(path, to); err != nil {
		return "", err
	}
	return to, files.Flush(filepath.Dir(path))
}
