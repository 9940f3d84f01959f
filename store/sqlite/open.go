// Package sqlite keeps everything that Brevet must not forget in one SQLite file: the journal of issuance, identities,
// tokens, certificates and their statuses, CRLs and the log. A DB owns the file and its one writing connection, and
// hands out small views that satisfy the interfaces of their consumers: CA, RA, Revocation and Log.
//
// What a method has written when it returns without an error survives a crash of the machine: the file is in WAL mode
// with synchronous=FULL, which is read back from every connection. A caller that gives up stops waiting for its turn,
// but does not abort a transaction that has begun. The store has no clock; every time comes with the call.
//
// It refuses to open a file that another process holds, that a newer Brevet has written, that another program owns, or
// that others than its owner may read or write.
package sqlite

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

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/files"
)

// The bounds of a DB.
const (
	maxReaders = 4               // read transactions at a time; more wait for their turn
	maxRead    = 5 * time.Minute // of one read transaction: while it is open, the WAL file cannot be taken in
	maxBusy    = 5 * time.Second // how long to wait for a lock that another program has on the file
)

// DB is an open store. Its views are safe for concurrent use.
type DB struct {
	path   string
	lock   *os.File
	writer *sql.DB       // one connection, whose transactions begin IMMEDIATE
	turn   chan struct{} // holds one value while somebody has the writing connection
	next   group         // what waits for it
	reader *sql.DB
	many   chan struct{} // holds a value for each who reads very many rows

	packing packing // what CRLs list

	written      atomic.Uint64 // about how many pages the WAL file got so far
	checkpointer checkpointer
	following    following

	closing  sync.Once
	closeErr error
}

// Open opens the store at path, or makes a new one in a directory that exists, and brings its tables up to date. It
// takes the store's lock, an flock on path+".lock", which the kernel gives back when the process ends: one process has
// a store open at a time. The error is a *LockedError, *MissingDirectoryError, *NewerError or *ModeError where one of
// them is the cause.
func Open(ctx context.Context, path string) (*DB, error) {
	return open(ctx, path, &sqlite3.SQLiteDriver{})
}

func open(ctx context.Context, path string, d driver.Driver) (_ *DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("sqlite: find %s: %w", path, err)
	}
	if dir := filepath.Dir(path); !isDirectory(dir) {
		return nil, &MissingDirectoryError{Dir: dir}
	}
	db := &DB{path: path, turn: make(chan struct{}, 1), many: make(chan struct{}, maxReaders-1), packing: packing{make(chan struct{}, 1), packFrom, segmentRecords}}
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
	if err := checkVersion(ctx, d, path); err != nil {
		return nil, err
	}
	db.writer = sql.OpenDB(connector{d, writerDSN(path), writerPragmas})
	db.writer.SetMaxOpenConns(1)
	db.writer.SetMaxIdleConns(1)
	if err := migrate(ctx, db.writer); err != nil {
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
			db.closeErr = fmt.Errorf("sqlite: close %s: %w", db.path, err)
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

// CA returns the issuer's view.
func (db *DB) CA() *CA { return &CA{db} }

// RA returns the registration authority's view.
func (db *DB) RA() *RA { return &RA{db} }

// Revocation returns the view of the revocation authority and of responders.
func (db *DB) Revocation() *Revocation { return &Revocation{db} }

// Log returns the sequencer's view.
func (db *DB) Log() *Log { return &Log{db} }

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
		return fmt.Errorf("sqlite: the store cannot be opened for writing: give %s and its directory to the account that runs brevet: %w", path, err)
	}
	return &unavailable{"the store cannot be opened for writing: look at its disk", retryDisk, err}
}
