package sqlite

import (
	"context"
	"database/sql"
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
func Retire(ctx context.Context, path string) (to string, err error) {
	to = path + retiredSuffix
	if err := alone(path, func() error {
		if _, err := os.Lstat(to); err == nil {
			return fmt.Errorf("%s exists already: move it away, and run the command again", to)
		}
		if err := complete(ctx, path); err != nil {
			return err
		}
		return errors.Join(os.Rename(path, to), files.Flush(filepath.Dir(path)))
	}); err != nil {
		return "", err
	}
	return to, nil
}

// Complete makes the file at path contain the whole store, so that it can be moved. Usually the last Close does: but it leaves
// commits in the WAL if the disk is full. Complete fails if a process has the store open, or for the reasons of [IsFull].
func Complete(ctx context.Context, path string) error {
	return alone(path, func() error { return complete(ctx, path) })
}

// alone calls do while no process has the store at path open.
func alone(path string, do func() error) error {
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return err
	}
	return errors.Join(do(), giveLock(lock))
}

func complete(ctx context.Context, path string) (err error) {
	db := sql.OpenDB(connector{&sqlite3.SQLiteDriver{}, writerDSN(path), writerPragmas})
	defer func() { err = errors.Join(err, db.Close()) }()
	var busy, pages, taken int
	if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &taken); err != nil {
		return fail("complete "+path, err)
	}
	if busy != 0 {
		return fmt.Errorf("another program has %s open: end it, and run the command again", path)
	}
	return nil
}
