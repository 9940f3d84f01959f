package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"

	"github.com/brevet-pki/brevet/store/engine"
)

// transaction is a transaction on a connection. The statements are written for SQLite already.
type transaction struct{ *sql.Tx }

// QueryRow implements engine.Querier.
func (t transaction) QueryRow(ctx context.Context, query string, args ...any) engine.Scanner {
	if err := engine.CheckTexts(args); err != nil {
		return engine.Failed{Err: err}
	}
	return t.QueryRowContext(ctx, query, args...)
}

// Query implements engine.Querier.
func (t transaction) Query(ctx context.Context, query string, args ...any) (engine.Cursor, error) {
	if err := engine.CheckTexts(args); err != nil {
		return nil, err
	}
	return t.QueryContext(ctx, query, args...) //nolint:rowserrcheck // engine.Rows does
}

// Exec implements engine.Executor.
func (t transaction) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := t.exec(ctx, query, args)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// QueryEach implements engine.Querier.
func (t transaction) QueryEach(ctx context.Context, query string, rows [][]any, visit func(int, engine.Scanner) error) error {
	for i, args := range rows {
		if err := present(visit(i, t.QueryRow(ctx, query, args...))); err != nil {
			return err
		}
	}
	return nil
}

// InsertEachLater implements engine.Executor.
func (t transaction) InsertEachLater(ctx context.Context, query string, rows [][]any) error {
	for _, args := range rows {
		if _, err := t.exec(ctx, query, args); err != nil {
			return err
		}
	}
	return nil
}

// Later implements engine.Executor.
func (t transaction) Later(ctx context.Context, query string, args ...any) error {
	_, err := t.exec(ctx, query, args)
	return err
}

// QueryLater implements engine.Executor.
func (t transaction) QueryLater(ctx context.Context, query string, args []any, visit func(engine.Scanner) error) error {
	return present(visit(t.QueryRow(ctx, query, args...)))
}

// present ignores the error of a row that there is not.
func present(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// Flush implements engine.Executor.
func (transaction) Flush(context.Context) error { return nil }

// Insert implements engine.Executor.
func (t transaction) Insert(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := t.exec(ctx, query, args)
	if err != nil {
		return 0, err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return 0, err
	}
	return result.LastInsertId()
}

func (t transaction) exec(ctx context.Context, query string, args []any) (sql.Result, error) {
	if err := engine.CheckTexts(args); err != nil {
		return nil, err
	}
	return t.ExecContext(ctx, query, args...)
}

// Read implements engine.DB.
func (db *file) Read(ctx context.Context, what string, do func(context.Context, engine.Querier) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxRead)
	defer cancel()
	tx, err := db.reader.BeginTx(ctx, nil)
	if err != nil {
		return fail(what, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return fail(what, do(ctx, transaction{tx}))
}

// ReadMany implements engine.DB.
func (db *file) ReadMany(ctx context.Context, what string, do func(context.Context, engine.Querier) error) error {
	select {
	case db.many <- struct{}{}:
		defer func() { <-db.many }()
		return db.Read(ctx, what, do)
	case <-ctx.Done():
		return fail(what, ctx.Err())
	}
}

// Look implements engine.DB. Calls that wait share one transaction: SQLite discards the pages that a connection has cached
// at the first transaction after a write, and the calls read mostly the same ones.
func (db *file) Look(ctx context.Context, what string, do func(context.Context, engine.Querier) error) error {
	detached := context.WithoutCancel(ctx)
	return fail(what, db.looks.Run(ctx, func(tx engine.Executor) error { return do(detached, tx) }))
}

// Find implements engine.DB.
func (db *file) Find(ctx context.Context, what, query string, args []any, dest ...any) (found bool, err error) {
	err = db.Look(ctx, what, func(ctx context.Context, q engine.Querier) error {
		err := q.QueryRow(ctx, query, args...).Scan(dest...)
		if found = !errors.Is(err, sql.ErrNoRows); found {
			return err
		}
		return nil
	})
	return found && err == nil, err
}

// WaitingLooks returns the number of short reads that wait for the next transaction.
func (db *file) WaitingLooks() int { return db.looks.Waiting() }

// lookAll runs short reads in one transaction.
func (db *file) lookAll(jobs []*engine.Job[engine.Do]) {
	tx, err := db.reader.BeginTx(context.Background(), nil) // not the context of any one caller
	if err != nil {
		engine.FailAll(jobs, err)
		return
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	for _, j := range jobs {
		engine.Run(j, transaction{tx})
	}
}

// Write implements engine.DB.
func (db *file) Write(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	detached := context.WithoutCancel(ctx)
	return fail(what, db.writes.Run(ctx, func(tx engine.Executor) error {
		w := &engine.Tx{Executor: tx}
		err := do(detached, w)
		db.written.Add(w.Pages)
		return err
	}))
}

// writeAll runs jobs in one transaction on the writing connection.
func (db *file) writeAll(jobs []*engine.Job[engine.Do]) {
	ctx := context.Background() // not that of any one caller
	conn, err := db.writer.Conn(ctx)
	if err != nil {
		engine.FailAll(jobs, err)
		return
	}
	defer conn.Close()
	if err = transact(ctx, conn, jobs); err != nil {
		engine.FailAll(jobs, err)
	}
	db.written.Add(pagesOfTransaction)
	if isBroken(err) || slices.ContainsFunc(jobs, func(j *engine.Job[engine.Do]) bool { return isBroken(j.Err()) }) {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it; the next caller gets a new one
	}
}

// transact runs jobs in a transaction. An error is that of the transaction.
func transact(ctx context.Context, conn *sql.Conn, jobs []*engine.Job[engine.Do]) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	return engine.RunAll(ctx, transaction{tx}, tx.Commit, jobs)
}

// Apart implements engine.DB. SQLite has one writer.
func (db *file) Apart(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	return db.Write(ctx, what, do)
}

// IsExclusive implements engine.DB.
func (*file) IsExclusive() bool { return true }

// Now implements engine.DB.
func (*file) Now() string { return `CAST(unixepoch('subsec') * 1000 AS INTEGER)` }

// Size implements engine.DB.
func (db *file) Size(ctx context.Context) (all, free uint64, err error) {
	row := db.reader.QueryRowContext(ctx, `
		SELECT (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size),
		       (SELECT freelist_count FROM pragma_freelist_count) * (SELECT page_size FROM pragma_page_size)`)
	err = fail("measure the file", row.Scan(&all, &free))
	return all, free, err
}
