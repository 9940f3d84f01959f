package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Tx is the writing transaction as one job sees it. It must be used by one goroutine.
type Tx struct {
	*sql.Tx
	// Pages is the approximate number of pages that the job has changed. The job adds to it.
	Pages uint64
}

// Read runs do in a read-only transaction with a consistent snapshot.
func (db *DB) Read(ctx context.Context, what string, do func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxRead)
	defer cancel()
	tx, err := db.reader.BeginTx(ctx, nil)
	if err != nil {
		return Fail(what, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return Fail(what, do(ctx, tx))
}

// ReadMany is Read for operations that may visit very many rows. They leave at least one connection to short reads, so
// that requests, the feed of statuses and the sequencer do not wait for them.
func (db *DB) ReadMany(ctx context.Context, what string, do func(context.Context, *sql.Tx) error) error {
	select {
	case db.many <- struct{}{}:
		defer func() { <-db.many }()
		return db.Read(ctx, what, do)
	case <-ctx.Done():
		return Fail(what, ctx.Err())
	}
}

// Look runs do, which reads few rows, in a read-only transaction with a consistent snapshot. Calls that wait share one
// transaction: SQLite discards the pages that a connection has cached at the first transaction after a write, and the
// calls read mostly the same ones.
//
// The context limits the wait for the transaction. A call that has started runs to its end.
func (db *DB) Look(ctx context.Context, what string, do func(context.Context, Querier) error) error {
	detached := context.WithoutCancel(ctx)
	return Fail(what, db.looks.run(ctx, func(tx *sql.Tx) error { return do(detached, tx) }))
}

// lookAll runs short reads in one transaction.
func (db *DB) lookAll(jobs []*job) {
	tx, err := db.reader.BeginTx(context.Background(), nil) // not the context of any one caller
	if err != nil {
		failAll(jobs, err)
		return
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	for _, j := range jobs {
		j.run(tx)
	}
}

// ExecOne runs a statement that must change exactly one row.
func (tx *Tx) ExecOne(ctx context.Context, query string, args ...any) error {
	result, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows changed instead of one", n)
	}
	return err
}

// Rows is the result of a query, including its error.
type Rows struct {
	rows *sql.Rows
	err  error
}

// Query runs a query. [Rows.Each] reads and closes its result.
func Query(ctx context.Context, q Querier, query string, args ...any) Rows {
	rows, err := q.QueryContext(ctx, query, args...) //nolint:rowserrcheck // Each does
	return Rows{rows, err}
}

// ErrStop ends [Rows.Each] early.
var ErrStop = errors.New("the remaining rows are not needed")

// Each calls visit for every row. It returns the first error of the query, of visit or of reading. If visit returns
// [ErrStop], Each reads no more rows and returns nil.
func (r Rows) Each(visit func(*sql.Rows) error) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	for r.rows.Next() {
		err := visit(r.rows)
		if errors.Is(err, ErrStop) {
			return nil
		}
		if err != nil {
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

// Millis returns a time in the encoding of the file: milliseconds since 1970.
func Millis(t time.Time) int64 { return t.UnixMilli() }

// CeilMillis is Millis, rounded up. It is a lower bound for times of whole milliseconds.
func CeilMillis(t time.Time) int64 { return Millis(t.Add(time.Millisecond - 1)) }

// FromMillis decodes the result of Millis.
func FromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// OptionalMillis returns NULL for the zero time, and otherwise the result of Millis.
func OptionalMillis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return Millis(t)
}

// RestoreMillis decodes the result of OptionalMillis.
func RestoreMillis(ms sql.NullInt64) time.Time {
	if !ms.Valid {
		return time.Time{}
	}
	return FromMillis(ms.Int64)
}
