package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/caller"
)

// writeTx is the current write transaction, for one job in it. It is used by one goroutine.
type writeTx struct {
	*engine.Tx
	issuers map[pki.IssuerID]int64 // cache of this job; nil if empty
	callers caller.Callers
}

// write runs do in a write transaction, and returns when the transaction is durable.
func (db *DB) write(ctx context.Context, what string, do func(context.Context, *writeTx) error) error {
	return db.file.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		return do(ctx, &writeTx{Tx: tx})
	})
}

// writeBy is like write, but first authorizes the actor, who needs a permission, in the same transaction.
func (db *DB) writeBy(
	ctx context.Context, what string, by pki.Actor, need pki.Permission, at time.Time, do func(context.Context, *writeTx) error,
) error {
	return db.write(ctx, what, func(ctx context.Context, tx *writeTx) error {
		if err := tx.authorize(ctx, by, need, at); err != nil {
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
	err := tx.QueryRow(ctx, `SELECT id FROM issuers WHERE issuer = ?`, issuer.Bytes()).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRow(ctx, `INSERT INTO issuers (issuer) VALUES (?) RETURNING id`, issuer.Bytes()).Scan(&id)
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
