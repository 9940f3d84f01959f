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
	"database/sql/driver"
	"embed"
	"io/fs"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/store/sqlite/internal/crlindex"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// The errors of [Open] that a caller may tell apart.
type (
	// LockedError says that another process has the store open.
	LockedError = engine.LockedError
	// MissingDirectoryError says that the directory of a store does not exist. It wraps fs.ErrNotExist.
	MissingDirectoryError = engine.MissingDirectoryError
	// ModeError says that others than its owner may read or write a store.
	ModeError = engine.ModeError
	// NewerError says that a newer Brevet has written the store, which was left untouched.
	NewerError = engine.NewerError
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID is what the first migration sets: "BRVT".
const applicationID = 1112692308

// DB is an open store. Its views are safe for concurrent use.
type DB struct {
	file      *engine.DB
	crls      *crlindex.Index
	following following
}

// Open opens the store at path, or makes a new one in a directory that exists, and migrates its tables. It takes the
// lock path+".lock" with flock, which the kernel releases when the process ends: one process has a store open at a
// time. The error is a *LockedError, *MissingDirectoryError, *NewerError or *ModeError if one of them is the cause.
func Open(ctx context.Context, path string) (*DB, error) {
	return open(ctx, path, &sqlite3.SQLiteDriver{})
}

func open(ctx context.Context, path string, d driver.Driver) (*DB, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	file, err := engine.Open(ctx, path, engine.Schema{Migrations: dir, ApplicationID: applicationID}, d)
	if err != nil {
		return nil, err
	}
	return &DB{file: file, crls: crlindex.New(file)}, nil
}

// Close waits for the transaction that is writing, takes the WAL into the file, and releases the lock. Closing again
// does nothing.
func (db *DB) Close() error { return db.file.Close() }

// CA returns the issuer's view.
func (db *DB) CA() *CA { return &CA{db} }

// RA returns the registration authority's view.
func (db *DB) RA() *RA { return &RA{db} }

// Revocation returns the view of the revocation authority and of responders.
func (db *DB) Revocation() *Revocation { return &Revocation{db} }

// Log returns the sequencer's view.
func (db *DB) Log() *Log { return &Log{db} }
