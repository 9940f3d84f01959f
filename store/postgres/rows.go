package postgres

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/brevet-pki/brevet/store/engine"
)

// session runs statements in the transaction of a connection. It implements engine.Executor.
type session struct {
	conn   *pgx.Conn
	many   bool           // whether a result may have very many rows
	n      int            // the number of cursors that were declared
	later  pgx.Batch      // statements that have not run
	visits []func() error // take the results of some of them, once all are read and the connection is free again
	// failed is the first error of Flush. No statement runs after it: PostgreSQL may not have received the one that begins the
	// transaction. Only a rollback to a savepoint ends it.
	failed error
	// reconnect connects again if the first statements found that the connection had ended. It is nil once they have run.
	reconnect func(context.Context) (*pgx.Conn, error)
}

// Exec implements engine.Executor.
func (s *session) Exec(ctx context.Context, query string, args ...any) (changed int64, err error) {
	switch {
	case query == engine.RollbackJob:
		s.later, s.visits, s.failed = pgx.Batch{}, nil, nil
	case query == engine.ReleaseJob && len(s.visits) > 0: // after it, a visit that fails could not be undone
		if err := s.Flush(ctx); err != nil {
			return 0, err
		}
	}
	if err := engine.CheckTexts(args); err != nil {
		return 0, err
	}
	if s.later.Len() == 0 && s.failed == nil {
		tag, err := s.conn.Exec(ctx, translate(query), numbered(args)...)
		return tag.RowsAffected(), err
	}
	s.later.Queue(translate(query), numbered(args)...).Exec(func(tag pgconn.CommandTag) error {
		changed = tag.RowsAffected()
		return nil
	})
	err = s.Flush(ctx)
	return changed, err
}

// Later implements engine.Executor.
func (s *session) Later(_ context.Context, query string, args ...any) error {
	if err := engine.CheckTexts(args); err != nil {
		return err
	}
	s.later.Queue(translate(query), numbered(args)...)
	return nil
}

// QueryLater implements engine.Executor.
func (s *session) QueryLater(_ context.Context, query string, args []any, visit func(engine.Scanner) error) error {
	if err := engine.CheckTexts(args); err != nil {
		return err
	}
	c := &cursor{types: s.conn.TypeMap()}
	s.later.Queue(translate(query), numbered(args)...).Query(func(rows pgx.Rows) error { return c.read(rows, nil) })
	s.visits = append(s.visits, func() error {
		if !c.Next() {
			return nil
		}
		return visit(c)
	})
	return nil
}

// Flush implements engine.Executor. It takes one round trip. PostgreSQL runs no statement after one that fails.
func (s *session) Flush(ctx context.Context) error {
	if s.later.Len() == 0 || s.failed != nil {
		return s.failed
	}
	batch, visits := s.later, s.visits
	s.later, s.visits = pgx.Batch{}, nil
	s.failed = s.send(ctx, &batch)
	for i := 0; i < len(visits) && s.failed == nil; i++ {
		s.failed = visits[i]()
	}
	return s.failed
}

// send runs statements. If the connection had ended before the transaction began, it runs them on a new one. That is safe,
// because the COMMIT is never among the first statements.
func (s *session) send(ctx context.Context, batch *pgx.Batch) error {
	err := s.conn.SendBatch(ctx, batch).Close()
	if err == nil || s.reconnect == nil || !s.conn.IsClosed() {
		return err
	}
	conn, err := s.reconnect(ctx)
	if err != nil {
		return err
	}
	s.conn, s.reconnect = conn, nil
	var same pgx.Batch // a batch can be sent once
	for _, q := range batch.QueuedQueries {
		same.Queue(q.SQL, q.Arguments...).Fn = q.Fn
	}
	return s.conn.SendBatch(ctx, &same).Close()
}

// query runs a statement, and reads its rows.
func (s *session) query(ctx context.Context, c *cursor, text string, args []any) error {
	if s.later.Len() == 0 && s.failed == nil {
		return c.read(s.conn.Query(ctx, text, args...))
	}
	s.later.Queue(text, args...).Query(func(rows pgx.Rows) error { return c.read(rows, nil) })
	return s.Flush(ctx)
}

// Insert implements engine.Executor.
func (s *session) Insert(ctx context.Context, query string, args ...any) (id int64, err error) {
	err = s.QueryRow(ctx, query+` RETURNING id`, args...).Scan(&id)
	if err == sql.ErrNoRows { //nolint:errorlint // QueryRow returns it so
		return 0, nil
	}
	return id, err
}

// QueryRow implements engine.Querier.
func (s *session) QueryRow(ctx context.Context, query string, args ...any) engine.Scanner {
	if err := engine.CheckTexts(args); err != nil {
		return engine.Failed{Err: err}
	}
	c := &cursor{types: s.conn.TypeMap()}
	c.err = s.query(ctx, c, translate(query), numbered(args))
	return oneRow{c}
}

// Query implements engine.Querier. The rows are in memory, so that the caller can run other statements while it reads
// them. If there may be very many, they are fetched in parts.
func (s *session) Query(ctx context.Context, query string, args ...any) (engine.Cursor, error) {
	if err := engine.CheckTexts(args); err != nil {
		return nil, err
	}
	c := &cursor{types: s.conn.TypeMap()}
	if !s.many {
		return c, s.query(ctx, c, translate(query), numbered(args))
	}
	s.n++
	name := fmt.Sprintf("c%d", s.n)
	if _, err := s.conn.Exec(ctx, `DECLARE `+name+` NO SCROLL CURSOR FOR `+translate(query), numbered(args)...); err != nil {
		return nil, err
	}
	c.fetch = func() error {
		return c.read(s.conn.Query(ctx, fmt.Sprintf(`FETCH %d FROM %s`, fetched, name), pgx.QueryExecModeDescribeExec))
	}
	c.close = func() error {
		_, err := s.conn.Exec(ctx, `CLOSE `+name)
		return err
	}
	return c, nil
}

// fetched is the number of rows that are fetched at a time, if there may be very many.
const fetched = 2000

// numbered returns arguments as the tables have them: truth values are 0 and 1.
func numbered(args []any) []any {
	for i, a := range args {
		if is, ok := a.(bool); ok {
			args[i] = int64(0)
			if is {
				args[i] = int64(1)
			}
		}
	}
	return args
}

// cursor is the result of a query. Its rows are in memory, or a part of them.
type cursor struct {
	types  *pgtype.Map
	fields []pgconn.FieldDescription
	rows   [][][]byte
	next   int // the index in rows of the row after the current one
	err    error

	fetch func() error // fetches the next part; nil if there is none
	close func() error // nil if there is nothing to close

	plans        []pgtype.ScanPlan // for the columns, for destinations of these types
	destinations []reflect.Type
}

// read reads all rows of a result.
func (c *cursor) read(result pgx.Rows, err error) error {
	c.rows, c.next = c.rows[:0], 0
	if err != nil {
		return err
	}
	defer result.Close()
	for result.Next() {
		raw := result.RawValues()
		size := 0
		for _, v := range raw {
			size += len(v)
		}
		copied, row := make([]byte, 0, size), make([][]byte, len(raw))
		for i, v := range raw {
			if v != nil { // nil is NULL
				begin := len(copied)
				copied = append(copied, v...)
				row[i] = copied[begin:len(copied):len(copied)]
			}
		}
		c.rows = append(c.rows, row)
	}
	if err := result.Err(); err != nil { // of a batch that failed, the descriptions panic
		return err
	}
	c.fields = append(c.fields[:0], result.FieldDescriptions()...)
	return nil
}

// Next implements engine.Cursor.
func (c *cursor) Next() bool {
	if c.next == len(c.rows) && c.fetch != nil && c.err == nil {
		c.err = c.fetch()
	}
	if c.err != nil || c.next == len(c.rows) {
		return false
	}
	c.next++
	return true
}

// Err implements engine.Cursor.
func (c *cursor) Err() error { return c.err }

// Close implements engine.Cursor.
func (c *cursor) Close() error {
	if c.close == nil || c.err != nil {
		return c.err
	}
	return c.close()
}

// Scan implements engine.Scanner.
func (c *cursor) Scan(dest ...any) error {
	return c.scanFrom(0, dest)
}

// scanFrom copies the columns of the current row from an index on.
func (c *cursor) scanFrom(first int, dest []any) error {
	row := c.rows[c.next-1]
	if len(dest) != len(row)-first {
		return fmt.Errorf("%d columns for %d destinations", len(row)-first, len(dest))
	}
	for i, d := range dest {
		if err := c.scan(first+i, row[first+i], d); err != nil {
			return fmt.Errorf("column %s: %w", c.fields[first+i].Name, err)
		}
	}
	return nil
}

func (c *cursor) scan(i int, value []byte, dest any) error {
	if c.plans == nil {
		c.plans, c.destinations = make([]pgtype.ScanPlan, len(c.fields)), make([]reflect.Type, len(c.fields))
	}
	switch dest := dest.(type) {
	case *sql.RawBytes:
		*dest = value
		return nil
	case *bool:
		return truth(value, dest)
	}
	f := &c.fields[i]
	if t := reflect.TypeOf(dest); c.destinations[i] != t {
		c.plans[i], c.destinations[i] = c.types.PlanScan(f.DataTypeOID, f.Format, dest), t
	}
	return c.plans[i].Scan(value, dest)
}

// truth reads a boolean or an integer, in the binary format.
func truth(value []byte, dest *bool) error {
	switch len(value) {
	case 1:
		*dest = value[0] != 0
	case 4:
		*dest = binary.BigEndian.Uint32(value) != 0
	case 8:
		*dest = binary.BigEndian.Uint64(value) != 0
	default:
		return fmt.Errorf("%d bytes are no truth value", len(value))
	}
	return nil
}

// oneRow is the only row of a result.
type oneRow struct{ *cursor }

// Scan implements engine.Scanner.
func (r oneRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	if !r.Next() {
		return sql.ErrNoRows
	}
	return r.cursor.Scan(dest...)
}
