// Package sqlite implements the durable store of Brevet in one SQLite file. It keeps the journal of issuance, identities,
// tokens, certificates with their statuses, CRLs and the log. A [DB] owns the file and its only writing connection. Its
// views [CA], [RA], [Revocation] and [Log] implement the interfaces of the packages that use them.
//
// A change is durable when its method returns without an error, even if the machine crashes. For this, the file is in WAL
// mode with synchronous=FULL, and both settings are verified on every connection.
//
// If the context of a caller ends, the caller stops waiting for the writer. A transaction that has begun is not aborted. The
// store has no clock: the caller passes every time as an argument.
//
// [Open] refuses a file that
//   - another process has open
//   - a newer version of Brevet has written
//   - belongs to another program
//   - users other than its owner can read or write
package sqlite

import (
	"context"
	"database/sql/driver"
	"embed"
	"errors"
	"io/fs"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/store/sqlite/internal/acmetable"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/crlindex"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/sealing"
)

// Errors of [Open] that a caller can distinguish.
type (
	// LockedError means that another process has the store open.
	LockedError = engine.LockedError
	// MissingDirectoryError means that the directory of a store does not exist. It wraps fs.ErrNotExist.
	MissingDirectoryError = engine.MissingDirectoryError
	// ModeError means that users other than the owner of a store can read or write it.
	ModeError = engine.ModeError
	// NewerError means that a newer version of Brevet has written the store. Open does not change it.
	NewerError = engine.NewerError
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID is the application_id of SQLite that the first migration sets: "BRVT".
const applicationID = 1112692308

// DB is an open store. Its views are safe for concurrent use.
type DB struct {
	file      *engine.DB
	crls      *crlindex.Index
	remaining bulk.Cache
}

// Open opens the store at path, or creates it in an existing directory, and migrates its tables. It locks the file
// path+".lock" with flock, so that only one process can have the store open. The kernel releases the lock when the process
// ends. The error is a *LockedError, *MissingDirectoryError, *NewerError or *ModeError if one of them is the cause.
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
	db := &DB{file: file, crls: crlindex.New(file)}
	if err := sealing.Make(ctx, db.file); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// Close waits for the current write transaction, checkpoints the WAL, and releases the lock. A second Close does nothing.
func (db *DB) Close() error { return db.file.Close() }

// CA returns the issuer's view.
func (db *DB) CA() *CA { return &CA{db} }

// RA returns the registration authority's view.
func (db *DB) RA() *RA { return &RA{db} }

// Revocation returns the view of the revocation authority and of responders.
func (db *DB) Revocation() *Revocation { return &Revocation{db} }

// ACME returns the view for ACME. It implements acme.Store.
func (db *DB) ACME() *acmetable.Store { return acmetable.New(db.file) }

// Log returns the sequencer's view.
func (db *DB) Log() *Log { return &Log{db} }
