package engine

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Tx is the one transaction that is writing, as one job sees it. It belongs to one goroutine.
type Tx struct {
	*sql.Tx
	// Pages is about how many pages of the file the job has changed. The job adds to it.
	Pages uint64
}

// Read runs do in a transaction that sees one state of the store and changes nothing.
func (db *DB) Read(ctx context.Context, what string, do func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxRead)
	defer cancel()
	tx, err := db.reader.BeginTx(ctx, nil)
	if err != nil {
		return Fail(what, err)
	}
	defer func() { _ = tx.Rollback() }() // there is nothing to lose
	return Fail(what, do(ctx, tx))
}

// ReadMany is Read for what may visit very many rows. Those leave a connection to whoever reads few: a request, the feed of
// statuses and the sequencer wait for none of them.
func (db *DB) ReadMany(ctx context.Context, what string, do func(context.Context, *sql.Tx) error) error {
	select {
	case db.many <- struct{}{}:
		defer func() { <-db.many }()
		return db.Read(ctx, what, do)
	case <-ctx.Done():
		return Fail(what, ctx.Err())
	}
}

// Look runs do, which reads with one statement: that sees one state of the store by itself. The context bounds the wait
// for a connection; a statement that has begun is not far from its end.
func (db *DB) Look(ctx context.Context, what string, do func(context.Context, *sql.Conn) error) error {
	conn, err := db.reader.Conn(ctx)
	if err != nil {
		return Fail(what, err)
	}
	defer conn.Close()
	return Fail(what, do(context.WithoutCancel(ctx), conn))
}

// ExecOne runs a statement that must change exactly one row.
func (tx *Tx) ExecOne(ctx context.Context, query string, args ...any) error {
	result, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows changed where one should have", n)
	}
	return err
}

// Rows is the result of a query, with its error.
type Rows struct {
	rows *sql.Rows
	err  error
}

// Query runs a query. [Rows.Each] reads and closes its result.
func Query(ctx context.Context, q Querier, query string, args ...any) Rows {
	rows, err := q.QueryContext(ctx, query, args...) //nolint:rowserrcheck // Each does
	return Rows{rows, err}
}

// Each calls visit for every row, and returns the first error: of the query, of visit or of reading.
func (r Rows) Each(visit func(*sql.Rows) error) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	for r.rows.Next() {
		if err := visit(r.rows); err != nil {
			return err
		}
	}
	return r.rows.Err()
}

// Querier is a connection, or a transaction on one.
type Querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Scanner is a *sql.Row or *sql.Rows.
type Scanner interface{ Scan(dest ...any) error }

// Millis returns a time as the file has it: milliseconds since 1970.
func Millis(t time.Time) int64 { return t.UnixMilli() }

// FromMillis reads back what Millis returned.
func FromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// OptionalMillis returns NULL for no time.
func OptionalMillis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return Millis(t)
}

// RestoreMillis reads back what OptionalMillis wrote.
func RestoreMillis(ms sql.NullInt64) time.Time {
	if !ms.Valid {
		return time.Time{}
	}
	return FromMillis(ms.Int64)
}
