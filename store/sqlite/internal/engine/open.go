// Package engine runs transactions on the one SQLite file of a store, and knows nothing of its tables.
//
// [Open] takes the store's lock, refuses a file that is not the store's, and migrates its tables. [DB.Write] makes
// durable what several callers write with one commit; [DB.Read], [DB.ReadMany] and [DB.Look] read beside it. Errors of
// SQLite become errors that name the next step, and report whether they may pass ([Fail]).
package engine

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/files"
)

// The bounds of a DB.
const (
	maxReaders = 4               // read transactions at a time; more wait for their turn
	maxRead    = 5 * time.Minute // of one read transaction: while it is open, the WAL file cannot be taken in
	maxBusy    = 5 * time.Second // how long to wait for a lock that another program has on the file
)

// DB is an open file. It is safe for concurrent use.
type DB struct {
	path   string
	lock   *os.File
	writer *sql.DB       // one connection, whose transactions begin IMMEDIATE
	turn   chan struct{} // holds one value while somebody has the writing connection
	next   group         // what waits for it
	reader *sql.DB
	many   chan struct{} // holds a value for each who reads very many rows

	written      atomic.Uint64 // about how many pages the WAL file got so far
	checkpointer checkpointer

	closing  sync.Once
	closeErr error
}

// Open opens the file at path through a driver, or makes a new one in a directory that exists, and migrates its tables.
// It takes the lock path+".lock" with flock, which the kernel releases when the process ends: one process has a file
// open at a time. The error is a *LockedError, *MissingDirectoryError, *NewerError or *ModeError if one of them is the
// cause.
func Open(ctx context.Context, path string, schema Schema, d driver.Driver) (_ *DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", path, err)
	}
	if dir := filepath.Dir(path); !isDirectory(dir) {
		return nil, &MissingDirectoryError{Dir: dir}
	}
	db := &DB{path: path, turn: make(chan struct{}, 1), many: make(chan struct{}, maxReaders-1)}
	if db.lock, err = takeLock(path + ".lock"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = db.Close() // the error that matters is the first one
		}
	}()
	if err := createFile(path); err != nil {
		return nil, err
	}
	if err := schema.checkVersion(ctx, d, path); err != nil {
		return nil, err
	}
	db.writer = sql.OpenDB(connector{d, writerDSN(path), writerPragmas})
	db.writer.SetMaxOpenConns(1)
	db.writer.SetMaxIdleConns(1)
	if err := schema.migrate(ctx, db.writer); err != nil {
		return nil, Fail("bring the tables up to date", err)
	}
	db.reader = sql.OpenDB(connector{d, readerDSN(path), readerPragmas})
	db.reader.SetMaxOpenConns(maxReaders)
	db.reader.SetMaxIdleConns(maxReaders)
	if err := db.reader.PingContext(ctx); err != nil {
		return nil, Fail("open for reading", err)
	}
	db.checkpointer.db = sql.OpenDB(connector{d, writerDSN(path), writerPragmas})
	db.checkpointer.db.SetMaxOpenConns(1)
	db.checkpointer.start(db)
	return db, nil
}

// Close waits for the transaction that is writing, takes the WAL into the file, and gives the lock back. Closing again
// does nothing.
func (db *DB) Close() error {
	db.closing.Do(func() {
		errs := []error{db.checkpointer.close()}
		if db.reader != nil {
			errs = append(errs, db.reader.Close())
		}
		if db.writer != nil {
			errs = append(errs, closeWriter(db.writer))
		}
		if err := errors.Join(append(errs, giveLock(db.lock))...); err != nil {
			db.closeErr = fmt.Errorf("close %s: %w", db.path, err)
		}
	})
	return db.closeErr
}

// closeWriter waits for its turn: database/sql would close the connection only after somebody's transaction, and by
// then the lock would be gone.
func closeWriter(writer *sql.DB) error {
	conn, err := writer.Conn(context.Background())
	if err != nil {
		return writer.Close() // there is no connection to wait for
	}
	return errors.Join(writer.Close(), conn.Close())
}

// Writer returns the writing connection, for statements outside any transaction.
func (db *DB) Writer() *sql.DB { return db.writer }

// Waiting returns how many jobs wait for the next transaction.
func (db *DB) Waiting() int {
	db.next.mu.Lock()
	defer db.next.mu.Unlock()
	return len(db.next.jobs)
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// createFile makes an empty file for its owner alone where there is none. SQLite gives its other files the same mode.
func createFile(path string) error {
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return openError(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return openError(path, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return &ModeError{Path: path, Mode: mode}
	}
	return nil
}

func openError(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the store cannot be opened for writing: give %s and its directory to the account that runs brevet: %w", path, err)
	}
	return &unavailable{"the store cannot be opened for writing: look at its disk", retryDisk, err}
}
