// Package sqlite keeps a store in one SQLite file. The statements are in package tables.
//
// A change is durable when its method returns without an error, even if the machine crashes. For this, the file is in WAL
// mode with synchronous=FULL, and both settings are verified on every connection.
//
// [Open] refuses a file that
//   - another process has open
//   - a newer version of Brevet has written
//   - belongs to another program
//   - users other than its owner can read or write
package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables"
)

// Limits of a DB.
const (
	maxReaders = 4               // concurrent read transactions; others wait
	maxRead    = 5 * time.Minute // duration of a read transaction, which prevents checkpoints
	lookYields = 4               // yields of the processor before a transaction for short reads
	maxBusy    = 5 * time.Second // wait for a lock that another program holds on the file
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID is the application_id of SQLite that the first migration sets: "BRVT".
const applicationID = 1112692308

// file is an open file. It implements engine.DB.
type file struct {
	path   string
	lock   *os.File
	writer *sql.DB                  // one connection; its transactions begin IMMEDIATE
	writes *engine.Group[engine.Do] // the writes that wait for it
	reader *sql.DB
	looks  *engine.Group[engine.Do] // the short reads that wait for a transaction
	many   chan struct{}            // holds a value for each read of very many rows

	written      atomic.Uint64 // approximate number of pages written to the WAL file
	checkpointer checkpointer

	closing  sync.Once
	closeErr error
}

// Open opens the store at path, or creates it in an existing directory, and migrates its tables. It locks path+".lock" with
// flock, so that only one process has the store open; the kernel releases the lock when the process ends. The error is a
// *[LockedError], *[MissingDirectoryError], *[RetiredError], *[NewerError] or *[ModeError] if that is the cause.
func Open(ctx context.Context, path string) (*tables.DB, error) {
	return OpenWith(ctx, path, &sqlite3.SQLiteDriver{})
}

// OpenWith is Open with a driver that wraps that of mattn/go-sqlite3, so that tests can break commits.
func OpenWith(ctx context.Context, path string, d driver.Driver) (*tables.DB, error) {
	file, err := openFile(ctx, path, d)
	if err != nil {
		return nil, err
	}
	return tables.Open(ctx, file, "")
}

func openFile(ctx context.Context, path string, d driver.Driver) (_ *file, err error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	schema := schema{migrations: dir, applicationID: applicationID}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", path, err)
	}
	if dir := filepath.Dir(path); !isDirectory(dir) {
		return nil, &MissingDirectoryError{Dir: dir}
	}
	db := &file{path: path, many: make(chan struct{}, maxReaders-1)}
	db.writes = engine.NewGroup(db.writeAll, 0)
	db.looks = engine.NewGroup(db.lookAll, lookYields)
	if db.lock, err = takeLock(path + ".lock"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = db.Close() // the first error is reported
		}
	}()
	if err := checkRetired(path); err != nil {
		return nil, err
	}
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
		return nil, fail("bring the tables up to date", err)
	}
	db.reader = sql.OpenDB(connector{d, readerDSN(path), readerPragmas})
	db.reader.SetMaxOpenConns(maxReaders)
	db.reader.SetMaxIdleConns(maxReaders)
	if err := db.reader.PingContext(ctx); err != nil {
		return nil, fail("open for reading", err)
	}
	db.checkpointer.db = sql.OpenDB(connector{d, writerDSN(path), writerPragmas})
	db.checkpointer.db.SetMaxOpenConns(1)
	db.checkpointer.start(db)
	return db, nil
}

// Close waits for the running transaction, checkpoints the WAL, and releases the lock. It may be called again.
func (db *file) Close() error {
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

// Waiting returns the number of writes that wait for the next transaction.
func (db *file) Waiting() int { return db.writes.Waiting() }

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
	return &engine.Unavailable{What: "the store cannot be opened for writing: look at its disk", After: retryDisk, Cause: err}
}
