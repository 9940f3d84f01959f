package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// writeTx is the current write transaction, for one job in it. It is used by one goroutine.
type writeTx struct {
	*engine.Tx
	issuers map[pki.IssuerID]int64         // cache of this job; nil if empty
	callers map[pki.Caller]pki.CallerState // cache of this job; nil if empty
}

// write runs do in a write transaction, and returns when the transaction is durable.
func (db *DB) write(ctx context.Context, what string, do func(context.Context, *writeTx) error) error {
	return db.file.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		return do(ctx, &writeTx{Tx: tx})
	})
}

// writeBy is like write, but first authorizes the actor, in the same transaction.
func (db *DB) writeBy(
	ctx context.Context, what string, by pki.Actor, at time.Time, do func(context.Context, *writeTx) error,
) error {
	return db.write(ctx, what, func(ctx context.Context, tx *writeTx) error {
		if err := tx.authorize(ctx, by, at); err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

// issuer returns the row ID of an issuer. It inserts a row at the first use.
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
	if tx.issuers == nil {
		tx.issuers = map[pki.IssuerID]int64{}
	}
	tx.issuers[issuer] = id
	return id, nil
}

// encodeRef encodes a reference as issuer and serial number. A zero reference is encoded as NULL.
func encodeRef(ref pki.CertRef) any {
	if ref.IsZero() {
		return nil
	}
	return slices.Concat(ref.Issuer.Bytes(), ref.Serial.Bytes())
}

// decodeRef decodes the result of encodeRef.
func decodeRef(b []byte) (pki.CertRef, error) {
	if b == nil {
		return pki.CertRef{}, nil
	}
	return parseRef(b[:32], b[32:])
}

// optionalText returns NULL for an empty text.
func optionalText(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// optional returns NULL for the zero value, and otherwise the bytes of the value.
func optional[T interface {
	IsZero() bool
	Bytes() []byte
}](v T) any {
	if v.IsZero() {
		return nil
	}
	return v.Bytes()
}

// restore decodes the result of optional.
func restore[T any](b []byte, parse func([]byte) (T, error)) (T, error) {
	if b == nil {
		var zero T
		return zero, nil
	}
	return parse(b)
}
