package sqlite

import (
	"context"
	"database/sql/driver"
)

// OpenWith opens a store through a driver, so that tests can break commits.
func OpenWith(ctx context.Context, path string, d driver.Driver) (*DB, error) {
	return open(ctx, path, d)
}

// OnWriter runs a statement on the writing connection, outside any transaction.
func (db *DB) OnWriter(ctx context.Context, statement string) error {
	_, err := db.writer.ExecContext(ctx, statement)
	return err
}

// The statements of a page of one identity's certificates.
const (
	SelectCertificate = selectCertificate
	PageOfOne         = pageOfOne
)

// The statements of a step of a sweep, and what counts certificates.
const (
	SelectExpired = selectExpired
	DeleteExpired = deleteExpired
	DeleteTokens  = deleteTokens
	CountRange    = countRange
)

// Hold has the writing connection until release is closed, and says when it has it.
func (db *DB) Hold(held chan<- struct{}, release <-chan struct{}) error {
	return db.write(context.Background(), "hold the writer", func(context.Context, *writeTx) error {
		close(held)
		<-release
		return nil
	})
}

// Fail puts an error of SQLite into words.
func Fail(err error) error { return fail("try", err) }
