package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/brevet-pki/brevet/store/engine"
)

// beginWrite begins a transaction, and lockWrites waits for those of other processes. Each statement then sees what was committed
// before. The first key of the lock is "BRVT", and the second one a table of the store: a database may have several stores in
// different schemas. lockWrites reads the settings again, because a superuser can change them while the connection is open.
const (
	beginWrite = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`
	lockWrites = `SELECT ` + durable + `, pg_advisory_xact_lock(1112692308, CAST(CAST('epochs' AS regclass) AS integer))`
)

// beginRead begins a transaction all of whose statements see the same state.
const beginRead = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`

// Write implements engine.DB.
func (db *database) Write(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	return fail(what, db.writes.Run(ctx, func(tx engine.Executor) error {
		return do(tx.(*writing).ctx, &engine.Tx{Executor: tx}) //nolint:forcetypeassert // writeAll passes it
	}))
}

// writing is the session of the transaction that writes.
type writing struct {
	*session
	ctx context.Context //nolint:containedctx // of the transaction, which no caller's context ends
}

// writeAll runs jobs in one transaction.
func (db *database) writeAll(jobs []*engine.Job[engine.Do]) {
	ctx, cancel := context.WithTimeout(context.Background(), maxWrite) // not that of any one caller
	defer cancel()
	if err := db.transact(ctx, jobs); err != nil {
		engine.FailAll(jobs, err)
	}
	if db.writer != nil && (db.writer.IsClosed() || slices.ContainsFunc(jobs, func(j *engine.Job[engine.Do]) bool { return isLost(j.Err()) })) {
		_ = db.writer.Close(ctx)
		db.writer = nil
	}
}

// transact runs jobs in a transaction. An error is that of the transaction.
func (db *database) transact(ctx context.Context, jobs []*engine.Job[engine.Do]) error {
	if db.closed {
		return errClosed
	}
	w, err := db.begin(ctx)
	if err != nil {
		return err
	}
	committed, panics := false, true
	defer func() {
		if panics { // the transaction may be open
			_ = w.conn.Close(ctx)
		}
	}()
	err = engine.RunAll(ctx, w, func() (err error) {
		committed, err = w.commit(ctx, &db.newest)
		return err
	}, jobs)
	panics = false
	if !committed {
		err = errors.Join(err, rollback(ctx, w.conn))
	}
	return err
}

// begin queues the statements that begin a transaction, so that they take no round trip of their own. If the connection has
// ended since the last transaction, the first round trip connects again, once.
func (db *database) begin(ctx context.Context) (*writing, error) {
	w := &writing{&session{conn: db.writer}, ctx}
	connect := func(ctx context.Context) (conn *pgx.Conn, err error) {
		if db.writer, err = db.connect(ctx); err == nil {
			db.reader.Reset() // after a failover, no connection reads from the old server
		}
		return db.writer, err
	}
	if w.conn != nil {
		w.reconnect = connect
	} else if conn, err := connect(ctx); err == nil {
		w.conn = conn
	} else {
		return nil, err
	}
	w.later.Queue(beginWrite)
	var settings cursor
	w.later.Queue(lockWrites).Query(func(rows pgx.Rows) error {
		if err := settings.read(rows, nil); err != nil {
			return err
		}
		w.reconnect = nil // the transaction has begun
		return nil
	})
	w.visits = append(w.visits, func() error { return checkDurable(settings.rows[0]) })
	return w, nil
}

// commit ends a transaction, together with the statements of Later. It also reads the log, after the commit, so that other
// processes do not wait for that. PostgreSQL rolls back a transaction in which a statement has failed, and reports no error.
func (w *writing) commit(ctx context.Context, n *newest) (committed bool, err error) {
	if len(w.visits) > 0 { // one that fails must prevent the commit, and only a transaction that has begun is committed
		if err := w.Flush(ctx); err != nil {
			return false, err
		}
	}
	w.later.Queue(`COMMIT`).Exec(func(tag pgconn.CommandTag) error {
		if committed = tag.String() == "COMMIT"; !committed {
			return &pgconn.PgError{Code: "25P02", Message: "the transaction had failed before its end: " + tag.String()}
		}
		return nil
	})
	w.later.Queue(selectNewest).Query(func(rows pgx.Rows) error {
		if rows.Next() {
			n.see(w.conn, rows.RawValues())
		}
		return nil
	})
	if err = w.Flush(ctx); committed { // with an error the commit has taken effect, too
		err = nil
	}
	return committed, err
}

// rollback ends a transaction without effect. A connection on which that fails is closed, which has the same effect.
func rollback(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.PgConn().Exec(ctx, `ROLLBACK`).ReadAll(); err != nil {
		return errors.Join(conn.Close(ctx))
	}
	return nil
}

// Read implements engine.DB.
func (db *database) Read(ctx context.Context, what string, do func(context.Context, engine.Querier) error) error {
	return fail(what, db.read(ctx, db.beginAndSee, func(ctx context.Context, conn *pgx.Conn) error {
		return do(ctx, &session{conn: conn})
	}))
}

// ReadMany implements engine.DB.
func (db *database) ReadMany(ctx context.Context, what string, do func(context.Context, engine.Querier) error) error {
	select {
	case db.many <- struct{}{}:
		defer func() { <-db.many }()
		return fail(what, db.read(ctx, beginOnly, func(ctx context.Context, conn *pgx.Conn) error {
			return do(ctx, &session{conn: conn, many: true})
		}))
	case <-ctx.Done():
		return fail(what, ctx.Err())
	}
}

// Look implements engine.DB.
func (db *database) Look(ctx context.Context, what string, do func(context.Context, engine.Querier) error) error {
	return fail(what, db.read(ctx, beginOnly, func(ctx context.Context, conn *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxLook)
		defer cancel()
		err := do(ctx, &session{conn: conn})
		if err != nil {
			err = errors.Join(err, ctx.Err()) // PostgreSQL only reports that the statement was canceled
		}
		return err
	}))
}

// read runs do in a transaction of its own.
func (db *database) read(
	ctx context.Context, begin func(context.Context, *pgx.Conn) error, do func(context.Context, *pgx.Conn) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, maxRead)
	defer cancel()
	conn, err := db.onReader(ctx, func(conn *pgx.Conn) error { return begin(ctx, conn) })
	if err != nil {
		return err
	}
	defer conn.Release()
	err = do(ctx, conn.Conn())
	if err != nil {
		err = errors.Join(err, ctx.Err())
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxEnd)
	defer cancel()
	return errors.Join(err, rollback(end, conn.Conn()))
}

// beginOnly begins a transaction on a connection for reading.
func beginOnly(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.PgConn().Exec(ctx, beginRead).ReadAll()
	return err
}

// beginAndSee also reads the end of the log. The sequencer of each server begins so several times a second.
func (db *database) beginAndSee(ctx context.Context, conn *pgx.Conn) error {
	var batch pgx.Batch
	batch.Queue(beginRead)
	batch.Queue(selectNewest).Query(func(rows pgx.Rows) error {
		if rows.Next() {
			db.newest.see(conn, rows.RawValues())
		}
		return nil
	})
	return conn.SendBatch(ctx, &batch).Close()
}

// onReader calls do with a connection for reading, and returns the connection. If that has ended meanwhile, it tries another
// one.
func (db *database) onReader(ctx context.Context, do func(*pgx.Conn) error) (*pgxpool.Conn, error) {
	for again := true; ; again = false {
		conn, err := db.reader.Acquire(ctx)
		if err != nil {
			return nil, &acquireError{err}
		}
		if err = do(conn.Conn()); err == nil {
			return conn, nil
		}
		ended := conn.Conn().IsClosed()
		conn.Release()
		if !ended || !again || ctx.Err() != nil {
			return nil, errors.Join(err, ctx.Err())
		}
		db.reader.Reset() // the others have ended, too, or soon have
	}
}

// beginApart begins a transaction that does not wait until it is durable. What it writes may be lost if PostgreSQL crashes. A
// lease may: it then ends earlier, and a server whose lease has ended is fenced, which is safe. But a server must not lose its
// lease because the disk, or a synchronous standby, is slow. The setting is for this transaction alone, since check refuses a
// connection that has it.
var beginApart = fmt.Sprintf(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = off; `+
	`SET LOCAL idle_in_transaction_session_timeout = %d`, maxIdleApart.Milliseconds())

// Apart implements engine.DB.
func (db *database) Apart(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxApart)
	defer cancel()
	return fail(what, db.runApart(ctx, do))
}

func (db *database) runApart(ctx context.Context, do func(context.Context, *engine.Tx) error) error {
	conn, err := db.apart.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Conn().PgConn().Exec(ctx, beginApart).ReadAll(); err != nil {
		return errors.Join(err, rollback(ctx, conn.Conn()))
	}
	s := &session{conn: conn.Conn()}
	if err := do(ctx, &engine.Tx{Executor: s}); err != nil {
		return errors.Join(err, rollback(ctx, conn.Conn()))
	}
	if err := s.Flush(ctx); err != nil {
		return errors.Join(err, rollback(ctx, conn.Conn()))
	}
	_, err = conn.Conn().PgConn().Exec(ctx, `COMMIT`).ReadAll()
	return err
}

// IsExclusive implements engine.DB.
func (*database) IsExclusive() bool { return false }

// Now implements engine.DB.
func (*database) Now() string { return `CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)` }

// Size implements engine.DB. PostgreSQL reuses the space of deleted rows, and does not report how much there is.
func (db *database) Size(ctx context.Context) (all, free uint64, err error) {
	err = db.reader.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&all)
	return all, 0, fail("measure the database", err)
}
