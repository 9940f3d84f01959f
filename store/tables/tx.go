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

// expectIssuer reads the row ID of an issuer in a statement that runs later.
func (tx *writeTx) expectIssuer(ctx context.Context, issuer pki.IssuerID) error {
	if _, ok := tx.issuers[issuer]; ok {
		return nil
	}
	tx.know(issuer, 0)
	return tx.QueryLater(ctx, selectIssuer, []any{issuer.Bytes()}, func(row engine.Scanner) error {
		var id int64
		err := row.Scan(&id)
		tx.know(issuer, id)
		return err
	})
}

// know keeps the row ID of an issuer. It is zero while it is not known.
func (tx *writeTx) know(issuer pki.IssuerID, id int64) {
	if tx.issuers == nil {
		tx.issuers = map[pki.IssuerID]int64{}
	}
	tx.issuers[issuer] = id
}

const selectIssuer = `SELECT id FROM issuers WHERE issuer = ?`

// issuer returns the row ID of an issuer. It inserts a row at the first use.
func (tx *writeTx) issuer(ctx context.Context, issuer pki.IssuerID) (int64, error) {
	if id := tx.issuers[issuer]; id != 0 {
		return id, nil
	}
	var id int64
	err := tx.QueryRow(ctx, selectIssuer, issuer.Bytes()).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRow(ctx, `INSERT INTO issuers (issuer) VALUES (?) RETURNING id`, issuer.Bytes()).Scan(&id)
	}
	if err != nil {
		return 0, err
	}
	tx.know(issuer, id)
	return id, nil
}
