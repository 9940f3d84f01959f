package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite/internal/acmetable"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/caller"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/expiry"
)

// The statements of an issuance.
const SelectCaller = caller.Select

var (
	SelectGuarded       = selectGuarded + unexpired(7, pki.Order{}) + fromGuarded
	SelectIssuanceState = selectIssuanceState + unexpired(7, pki.Order{}) + fromIssuanceState
)

// The statements about ACME orders, whose number grows.
const (
	CountOpenOrders      = acmetable.CountOpen
	CountUnexpiredOrders = acmetable.CountUnexpired + `7)`
	DeleteAuthorizations = expiry.DeleteAuthorizations
	DeleteOrders         = expiry.DeleteOrders
	IsReplaced           = acmetable.IsReplaced

	DeleteAbandonedAuthorizations = expiry.DeleteAbandonedAuthorizations
	DeleteAbandonedOrders         = expiry.DeleteAbandonedOrders

	EraseExternalKeys = expiry.EraseExternalKeys
)

// OpenWith opens a store through a driver, so that tests can break commits.
func OpenWith(ctx context.Context, path string, d driver.Driver) (*DB, error) {
	return open(ctx, path, d)
}

// OnWriter executes a statement on the writing connection, outside a transaction.
func (db *DB) OnWriter(ctx context.Context, statement string) error {
	_, err := db.file.Writer().ExecContext(ctx, statement)
	return err
}

// CertificatesQuery returns the query that finds a page of certificates.
func (db *DB) CertificatesQuery(ctx context.Context, f ra.CertificateFilter, after ra.CertificatePosition) (query string, err error) {
	err = db.file.Read(ctx, "plan a page", func(ctx context.Context, tx *sql.Tx) error {
		var q engine.Clause
		err := selectCertificates(ctx, tx, &q, bulk.Open{}, f, after)
		query = q.String()
		return err
	})
	return query, err
}

// TokensQuery returns the query that finds a page of tokens.
func TokensQuery(f ra.TokenFilter, after ra.TokenPosition) (string, error) {
	var q engine.Clause
	err := selectTokens(&q, f, time.Time{}, after)
	return q.String(), err
}

// Statements of a retention step, of the census and of a repeated CreateToken.
const (
	SelectExpired       = expiry.SelectExpired
	DeleteExpired       = expiry.DeleteExpired
	DeleteTokens        = expiry.DeleteTokens
	DeleteNonces        = expiry.DeleteNonces
	SelectHolder        = selectHolder
	SelectNonce         = selectNonce
	CountRange          = countRange
	ReplaceRequestToken = replaceRequestToken
)

// WorthPacking is how many changes are packed beside so many records, and how many are looked at.
func (db *DB) WorthPacking(packed int) (worth, looked int) { return db.crls.WorthPacking(packed) }

// PackSmall has changes packed however few they are, in segments of so many records.
func (db *DB) PackSmall(records int) { db.crls.PackFrom(1, records) }

// Hold has the writing connection until release is closed, and says when it has it. It commits nothing.
func (db *DB) Hold(held chan<- struct{}, release <-chan struct{}) error {
	errHeld := errors.New("held")
	err := db.write(context.Background(), "hold the writer", func(context.Context, *writeTx) error {
		close(held)
		<-release
		return errHeld
	})
	if errors.Is(err, errHeld) {
		return nil
	}
	return err
}

// HoldLooks has the short reads wait until release is closed, and says when they do.
func (db *DB) HoldLooks(held chan<- struct{}, release <-chan struct{}) error {
	return db.file.Look(context.Background(), "hold the short reads", func(context.Context, engine.Querier) error {
		close(held)
		<-release
		return nil
	})
}

// PanicLooking panics in a short read.
func (db *DB) PanicLooking() error {
	return db.file.Look(context.Background(), "panic", func(context.Context, engine.Querier) error { panic("on purpose") })
}

// WaitingLooks is how many short reads wait for the next transaction.
func (db *DB) WaitingLooks() int { return db.file.WaitingLooks() }

// Waiting is how many jobs wait for the next transaction.
func (db *DB) Waiting() int { return db.file.Waiting() }

// FailAfterWriting registers an identity, and fails in the same job.
func (db *DB) FailAfterWriting(id ra.Identity, err error) error {
	id.State, id.Revision = pki.Registered, 1
	return db.write(context.Background(), "fail", func(ctx context.Context, tx *writeTx) error {
		return errors.Join(tx.insertIdentity(ctx, id), err)
	})
}

// PanicAfterWriting registers an identity, and panics in the same job.
func (db *DB) PanicAfterWriting(id ra.Identity) error {
	id.State, id.Revision = pki.Registered, 1
	return db.write(context.Background(), "panic", func(ctx context.Context, tx *writeTx) error {
		if err := tx.insertIdentity(ctx, id); err != nil {
			return err
		}
		panic("on purpose")
	})
}
