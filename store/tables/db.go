// Package tables implements the durable store of Brevet in the tables of a database. It has the statements; packages sqlite
// and postgres have the database, and its schema. The store keeps the journal of issuance, identities, tokens,
// certificates with their statuses, CRLs and the log. The views [CA], [RA], [Revocation] and [Log] of a [DB] implement the
// interfaces of the packages that use them.
//
// If the context of a caller ends, the caller stops waiting for the writer. A transaction that has begun is not aborted. The
// store has no clock: the caller passes every time as an argument.
package tables

import (
	"context"
	"errors"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/crlindex"
	"github.com/brevet-pki/brevet/store/tables/internal/crlshare"
	"github.com/brevet-pki/brevet/store/tables/internal/epochs"
	"github.com/brevet-pki/brevet/store/tables/internal/restoring"
	"github.com/brevet-pki/brevet/store/tables/internal/sealing"
)

// DB is an open store. Its views are safe for concurrent use.
type DB struct {
	file      engine.DB
	epochs    *epochs.Epochs
	exchange  *crlshare.Exchange // nil if no other process can have the store open
	crls      *crlindex.Index
	remaining bulk.Cache
	acme      *acmetable.Store
}

// Open returns the store in a database whose tables are up to date, for a server. Servers that share a database have
// different names. Close of the store closes the database.
func Open(ctx context.Context, file engine.DB, server string) (*DB, error) {
	db := &DB{file: file, epochs: epochs.New(file, server), crls: crlindex.New(file), exchange: crlshare.New(file), acme: acmetable.New(file)}
	if err := sealing.Make(ctx, db.file); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// HasServed reports whether this server ever had an epoch. If so, it has an archive of the log.
func (db *DB) HasServed(ctx context.Context) (has bool, err error) { return db.epochs.HasServed(ctx) }

// Close waits for the current write transaction, and closes the database. A second Close does nothing.
func (db *DB) Close() error { return db.file.Close() }

// CA returns the issuer's view.
func (db *DB) CA() *CA { return &CA{db} }

// RA returns the registration authority's view.
func (db *DB) RA() *RA { return &RA{db} }

// Revocation returns the view of the revocation authority and of responders.
func (db *DB) Revocation() *Revocation { return &Revocation{db} }

// ACME returns the view for ACME. It implements acme.Store.
func (db *DB) ACME() *acmetable.Store { return db.acme }

// Restoring returns the view for the restore of a backup.
func (db *DB) Restoring() *restoring.Store { return restoring.New(db.file, record) }

// Log returns the sequencer's view.
func (db *DB) Log() *Log { return &Log{db} }

// Nonces returns the used nonces of ACME. It implements acme.UsedNonces, and needs PostgreSQL. A server needs only one.
func (db *DB) Nonces() *acmetable.Nonces { return acmetable.NewNonces(db.file) }
