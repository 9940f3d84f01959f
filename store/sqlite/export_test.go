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

// Fail puts an error of SQLite into words.
func Fail(err error) error { return fail("try", err) }
