package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// writeOnce is like writeBy, for an RPC that may have a request ID. The transaction of the change also records the request.
// If the request is a repeat, writeOnce runs again instead of do. A refused request is not recorded.
func (db *DB) writeOnce(
	ctx context.Context, what string, by pki.Actor, need pki.Permission, at time.Time,
	do func(context.Context, *writeTx) (rules.Outcome, error), again func(context.Context, *writeTx, rules.Outcome) error,
) error {
	return db.writeBy(ctx, what, by, need, at, func(ctx context.Context, tx *writeTx) error {
		if by.Request().IsZero() {
			_, err := do(ctx, tx)
			return err
		}
		have, found, err := tx.readRequest(ctx, by)
		if err != nil {
			return err
		}
		if found {
			return again(ctx, tx, have)
		}
		out, err := do(ctx, tx)
		if err != nil {
			return err
		}
		return tx.insertRequest(ctx, by, out, at)
	})
}

// readRequest returns the outcome of a caller's request, if it is on record. It refuses a request whose content differs from
// the recorded one.
func (tx *writeTx) readRequest(ctx context.Context, by pki.Actor) (rules.Outcome, bool, error) {
	var have rules.RecordedRequest
	var content, token []byte
	var bulkID, rotation sql.NullInt64
	err := tx.QueryRow(ctx, `
		SELECT content, valid, expired, bulk, token, rotation FROM operator_requests
		WHERE caller = (SELECT id FROM identities WHERE spiffe_id = ?) AND request = ?`,
		by.Caller().Identity.String(), by.Request().ID.Bytes()).Scan(&content, &have.Outcome.Valid, &have.Outcome.Expired, &bulkID, &token, &rotation)
	if errors.Is(err, sql.ErrNoRows) {
		return rules.Outcome{}, false, nil
	}
	if err != nil {
		return rules.Outcome{}, false, err
	}
	copy(have.Content[:], content)
	have.Outcome.Bulk, have.Outcome.Rotation = bulkID.Int64, rotation.Int64
	if have.Outcome.Token, err = column.Restore(token, pki.TokenIDFromBytes); err != nil {
		return rules.Outcome{}, false, err
	}
	return have.Outcome, true, have.CheckRepeat(by.Request())
}

func (tx *writeTx) insertRequest(ctx context.Context, by pki.Actor, out rules.Outcome, at time.Time) error {
	r := by.Request()
	_, err := tx.Exec(ctx, `
		INSERT INTO operator_requests (caller, request, content, made_at, valid, expired, bulk, token, rotation)
		VALUES ((SELECT id FROM identities WHERE spiffe_id = ?), ?, ?, ?, ?, ?, nullif(?, 0), ?, nullif(?, 0))`,
		by.Caller().Identity.String(), r.ID.Bytes(), r.Content[:], engine.Millis(at), out.Valid, out.Expired, out.Bulk, column.Optional(out.Token), out.Rotation)
	return err
}
