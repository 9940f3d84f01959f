// Package engine declares what the statements of a store need from a database engine, and has what all engines share.
//
// The statements are in package tables. They are SQL that SQLite and PostgreSQL execute as it is written, except for what
// the engines translate: the parameters (? and ?1), INDEXED BY, which is for SQLite alone, and the comment /*+*/, which is a
// plus sign for PostgreSQL.
package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// ApartConnections is the number of transactions of [DB.Apart] that run at a time. All but the leases, which need one of
// them, limit themselves to fewer.
const ApartConnections = 4

// DB is an open database. It is safe for concurrent use.
//
//nolint:interfacebloat // the whole of what the statements need, with two implementations
type DB interface {
	// Write runs do in a transaction, and returns when it is durable. No other transaction of any process writes at the same
	// time. Writes that arrive during a transaction share the next one, because a durable commit costs the same for many
	// as for one; a failure or panic of one does not affect the others.
	//
	// The context limits the wait for the transaction. A transaction that has started runs to its end, so that one caller's
	// deadline does not abort the writes of others. If Write returns an error, nothing was written, unless the COMMIT
	// failed.
	Write(ctx context.Context, what string, do func(context.Context, *Tx) error) error
	// Read runs do in a read-only transaction with a consistent snapshot.
	Read(ctx context.Context, what string, do func(context.Context, Querier) error) error
	// ReadMany is Read for operations that may visit very many rows. They leave at least one connection to short reads, so
	// that requests, the feed of statuses and the sequencer do not wait for them.
	ReadMany(ctx context.Context, what string, do func(context.Context, Querier) error) error
	// Look is Read for operations that read few rows. The context limits the wait for the transaction. A call that has
	// started runs to its end.
	Look(ctx context.Context, what string, do func(context.Context, Querier) error) error
	// Find runs a query for one row in a snapshot of its own. It scans the row, and reports whether there is one. Calls that
	// wait with the same query may share a statement, so it has the form of [Querier.QueryEach]. The context limits the wait
	// for it. dest holds no [sql.RawBytes].
	Find(ctx context.Context, what, query string, args []any, dest ...any) (found bool, err error)
	// Fail wraps an error of the database with the operation and the next step, and makes it temporary if it is. Write, Read,
	// ReadMany, Look and Find do so already.
	Fail(what string, err error) error
	// Apart runs do in a transaction of its own on one of [ApartConnections], which does not wait for those of Write, nor for
	// reads. It is not durable: a crash may undo it after it has returned nil. It is for rows that no transaction of Write
	// changes, except for those of a process that has ended.
	Apart(ctx context.Context, what string, do func(context.Context, *Tx) error) error
	// IsExclusive reports whether no other process can have the database open.
	IsExclusive() bool
	// Now is an SQL expression: the time by the clock of the database, in the encoding of [Millis].
	Now() string
	// Waiting returns the number of writes that wait for the next transaction.
	Waiting() int
	// Size returns the size of the tables, and how much of it is free for new rows, in bytes.
	Size(ctx context.Context) (all, free uint64, err error)
	// Close waits for the running transaction. It may be called again.
	Close() error
}

// Querier runs queries in a transaction. It must be used by one goroutine.
type Querier interface {
	// QueryRow runs a query for one row. Scan returns sql.ErrNoRows if there is none.
	QueryRow(ctx context.Context, query string, args ...any) Scanner
	// QueryEach runs a query for each row of arguments. For each result it calls visit with the index of the arguments,
	// in any order. The query begins with WITH q AS MATERIALIZED (SELECT …), which has all parameters, and its result is
	// one row at most.
	QueryEach(ctx context.Context, query string, rows [][]any, visit func(i int, row Scanner) error) error
	// Query runs a query. [Query] is what callers use.
	Query(ctx context.Context, query string, args ...any) (Cursor, error)
}

// Executor also runs statements that write.
//
//nolint:interfacebloat // the whole of what the statements need, with two implementations
type Executor interface {
	Querier
	// Exec runs a statement, and returns the number of rows that it changed.
	Exec(ctx context.Context, query string, args ...any) (changed int64, err error)
	// Later runs a statement at the latest before the next statement or the commit. An error may be returned by that.
	Later(ctx context.Context, query string, args ...any) error
	// QueryLater runs a query as Later does, and calls visit with its first row, if there is one. It may write, too. Its row
	// has been visited when the next statement that is not of Later returns, or Flush.
	QueryLater(ctx context.Context, query string, args []any, visit func(Scanner) error) error
	// Flush runs the statements of Later that have not run.
	Flush(ctx context.Context) error
	// Insert runs an INSERT of one row into a table with a column id, and returns the ID. It returns zero if the statement
	// says ON CONFLICT DO NOTHING, and there was a conflict.
	Insert(ctx context.Context, query string, args ...any) (id int64, err error)
	// InsertEachLater runs an INSERT of one row for each row of arguments, in order, as Later does. All parameters are in
	// VALUES (…).
	InsertEachLater(ctx context.Context, query string, rows [][]any) error
}

// Scanner is a row. Scan copies its columns. Destinations are as in database/sql, [sql.RawBytes] among them, which is valid
// until the next row.
type Scanner interface{ Scan(dest ...any) error }

// Cursor is the result of a query.
type Cursor interface {
	Scanner
	Next() bool
	Err() error
	Close() error
}

// Tx is the writing transaction as one job sees it. It must be used by one goroutine.
type Tx struct {
	Executor
	// Pages is the approximate number of pages that the job has changed. The job adds to it.
	Pages uint64
}

// ExecOne runs a statement that must change exactly one row.
func (tx *Tx) ExecOne(ctx context.Context, query string, args ...any) error {
	n, err := tx.Exec(ctx, query, args...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows changed instead of one", n)
	}
	return err
}

// Rows is the result of a query, including its error.
type Rows struct {
	rows Cursor
	err  error
}

// Query runs a query. [Rows.Each] reads and closes its result.
func Query(ctx context.Context, q Querier, query string, args ...any) Rows {
	rows, err := q.Query(ctx, query, args...)
	return Rows{rows, err}
}

// ErrStop ends [Rows.Each] early.
var ErrStop = errors.New("the remaining rows are not needed")

// Each calls visit for every row. It returns the first error of the query, of visit or of reading. If visit returns
// [ErrStop], Each reads no more rows and returns nil.
func (r Rows) Each(visit func(Scanner) error) error {
	if r.err != nil {
		return r.err
	}
	defer func() { _ = r.rows.Close() }() // Err has its error
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

// Millis returns a time in the encoding of the tables: milliseconds since 1970.
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
