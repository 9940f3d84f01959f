// Package engine runs transactions on the SQLite file of a store. It does not depend on the tables in it.
//
// [Open] takes the store's lock, refuses files of other programs, and migrates the tables. [DB.Write] runs the writes
// of several callers with one durable commit. [DB.Look] runs the short reads of several callers in one transaction.
// [DB.Read] and [DB.ReadMany] each have a transaction of their own. All of them read in parallel to the writes. [Fail]
// turns errors of SQLite into errors that name the next step and report whether they are temporary.
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

// Limits of a DB.
const (
	maxReaders = 4               // concurrent read transactions; others wait
	maxRead    = 5 * time.Minute // duration of a read transaction, which prevents checkpoints
	lookYields = 4               // yields of the processor before a transaction for short reads
	maxBusy    = 5 * time.Second // wait for a lock that another program holds on the file
)

// DB is an open file. It is safe for concurrent use.
type DB struct {
	path   string
	lock   *os.File
	writer *sql.DB // one connection; its transactions begin IMMEDIATE
	writes *group  // the writes that wait for it
	reader *sql.DB
	looks  *group        // the short reads that wait for a transaction
	many   chan struct{} // holds a value for each read of very many rows

	written      atomic.Uint64 // approximate number of pages written to the WAL file
	checkpointer checkpointer

	closing  sync.Once
	closeErr error
}

// Open opens the file at path with a driver and migrates its tables. If the file does not exist, Open creates it in an
// existing directory. It locks path+".lock" with flock, so that only one process has the file open; the kernel releases
// the lock when the process ends. The error is a *[LockedError], *[MissingDirectoryError], *[NewerError] or
// *[ModeError] if that is the cause.
func Open(ctx context.Context, path string, schema Schema, d driver.Driver) (_ *DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", path, err)
	}
	if dir := filepath.Dir(path); !isDirectory(dir) {
		return nil, &MissingDirectoryError{Dir: dir}
	}
	db := &DB{path: path, many: make(chan struct{}, maxReaders-1)}
	db.writes = &group{turn: make(chan struct{}, 1), runAll: db.writeAll}
	db.looks = &group{turn: make(chan struct{}, 1), runAll: db.lookAll, yields: lookYields}
	if db.lock, err = takeLock(path + ".lock"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = db.Close() // the first error is reported
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

// Close waits for the running transaction, checkpoints the WAL, and releases the lock. It may be called again.
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

// closeWriter waits for the writing connection. Otherwise database/sql would close it only after a running transaction,
// when the lock is already released.
func closeWriter(writer *sql.DB) error {
	conn, err := writer.Conn(context.Background())
	if err != nil {
		return writer.Close() // no connection is open
	}
	return errors.Join(writer.Close(), conn.Close())
}

// Writer returns the writing connection, for statements outside of transactions.
func (db *DB) Writer() *sql.DB { return db.writer }

// Waiting returns the number of writes that wait for the next transaction.
func (db *DB) Waiting() int { return db.writes.waiting() }

// WaitingLooks returns the number of short reads that wait for the next transaction.
func (db *DB) WaitingLooks() int { return db.looks.waiting() }

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// createFile creates an empty file for its owner unless it exists. SQLite gives its other files the same mode.
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
