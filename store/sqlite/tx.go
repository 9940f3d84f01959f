package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// writeTx is the one transaction that is writing, as one job sees it. It belongs to one goroutine.
type writeTx struct {
	*sql.Tx
	issuers map[pki.IssuerID]int64         // those that this transaction has looked up
	callers map[pki.Caller]pki.CallerState // those that this job has looked up
	entries uint64                         // that it has appended to the log
	pages   uint64                         // about how many it has changed beside what entries are about
}

// read runs do in a transaction that sees one state of the store and changes nothing.
func (db *DB) read(ctx context.Context, what string, do func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxRead)
	defer cancel()
	tx, err := db.reader.BeginTx(ctx, nil)
	if err != nil {
		return fail(what, err)
	}
	defer func() { _ = tx.Rollback() }() // there is nothing to lose
	return fail(what, do(ctx, tx))
}

// readMany is read for what may visit very many rows. Those leave a connection to whoever reads few: a request, the feed of
// statuses and the sequencer wait for none of them.
func (db *DB) readMany(ctx context.Context, what string, do func(context.Context, *sql.Tx) error) error {
	select {
	case db.many <- struct{}{}:
		defer func() { <-db.many }()
		return db.read(ctx, what, do)
	case <-ctx.Done():
		return fail(what, ctx.Err())
	}
}

// look runs do, which reads with one statement: that sees one state of the store by itself. The context bounds the wait
// for a connection; a statement that has begun is not far from its end.
func (db *DB) look(ctx context.Context, what string, do func(context.Context, *sql.Conn) error) error {
	conn, err := db.reader.Conn(ctx)
	if err != nil {
		return fail(what, err)
	}
	defer conn.Close()
	return fail(what, do(context.WithoutCancel(ctx), conn))
}

// issuer returns the short number of an issuer, which gets one with its first use.
func (tx *writeTx) issuer(ctx context.Context, issuer pki.IssuerID) (int64, error) {
	if id, ok := tx.issuers[issuer]; ok {
		return id, nil
	}
	var id int64
	err := tx.QueryRowContext(ctx, `SELECT id FROM issuers WHERE issuer = ?`, issuer.Bytes()).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, `INSERT INTO issuers (issuer) VALUES (?) RETURNING id`, issuer.Bytes()).Scan(&id)
	}
	if err != nil {
		return 0, err
	}
	tx.issuers[issuer] = id
	return id, nil
}

// execOne runs a statement that must change exactly one row.
func (tx *writeTx) execOne(ctx context.Context, query string, args ...any) error {
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

// each calls visit for every row.
func each(rows *sql.Rows, err error, visit func(*sql.Rows) error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := visit(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// querier is a connection, or a transaction on one.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// checkLimit refuses a page of nothing, which SQLite would take for one without an end.
func checkLimit(limit int) error {
	if limit < 1 {
		return pki.Refuse(pki.RuleRequest, "ask for at least one", "a page of %d", limit)
	}
	return nil
}

func millis(t time.Time) int64 { return t.UnixMilli() }

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// optionalMillis returns NULL for no time.
func optionalMillis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return millis(t)
}

// restoreMillis reads back what optionalMillis wrote.
func restoreMillis(ms sql.NullInt64) time.Time {
	if !ms.Valid {
		return time.Time{}
	}
	return fromMillis(ms.Int64)
}

// encodeRef returns NULL for no certificate, and for any other its issuer and serial number.
func encodeRef(ref pki.CertRef) any {
	if ref.IsZero() {
		return nil
	}
	return slices.Concat(ref.Issuer.Bytes(), ref.Serial.Bytes())
}

// decodeRef reads back what encodeRef wrote.
func decodeRef(b []byte) (pki.CertRef, error) {
	if b == nil {
		return pki.CertRef{}, nil
	}
	return parseRef(b[:32], b[32:])
}

// optionalText returns NULL for no text.
func optionalText(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// optional returns NULL for the zero value, and its octets for any other.
func optional[T interface {
	IsZero() bool
	Bytes() []byte
}](v T) any {
	if v.IsZero() {
		return nil
	}
	return v.Bytes()
}

// restore reads back what optional wrote.
func restore[T any](b []byte, parse func([]byte) (T, error)) (T, error) {
	if b == nil {
		var zero T
		return zero, nil
	}
	return parse(b)
}
