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

// writeTx is the one transaction that is writing, as one job sees it. It belongs to one goroutine.
type writeTx struct {
	*engine.Tx
	issuers map[pki.IssuerID]int64         // those that this job has looked up; nil before the first
	callers map[pki.Caller]pki.CallerState // those that this job has looked up; nil before the first
}

// write runs do in a transaction and returns once that is durable.
func (db *DB) write(ctx context.Context, what string, do func(context.Context, *writeTx) error) error {
	return db.file.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		return do(ctx, &writeTx{Tx: tx})
	})
}

// writeBy is write for what an actor causes: the first thing that the transaction does is to authorize the actor.
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
	if tx.issuers == nil {
		tx.issuers = map[pki.IssuerID]int64{}
	}
	tx.issuers[issuer] = id
	return id, nil
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

// optional returns NULL for the zero value, and its bytes for any other.
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
