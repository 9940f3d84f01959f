package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

// setStatus writes the new status and invalidity date of a certificate, and marks its key if the change compromises keys.
func (tx *writeTx) setStatus(ctx context.Context, c *bulk.Certificate, next pki.Status, invalidSince time.Time, o revocation.Change) error {
	index, err := logtable.ReadNextIndex(ctx, tx)
	if err != nil {
		return err
	}
	err = tx.writeStatus(ctx, c.ID, next, engine.OptionalMillis(invalidSince), index)
	if err != nil || !c.Key.Valid || !rules.CompromisesKeys(o) {
		return err
	}
	return tx.markKey(ctx, c.Key.Int64, o.At)
}

// writeStatus writes the status and the invalidity date of a certificate, with the index of the log entry. A zero date is
// written as NULL.
func (tx *writeTx) writeStatus(ctx context.Context, id int64, s pki.Status, invalidSince any, index uint64) error {
	var revokedAt any
	if s.State != pki.Good {
		revokedAt = engine.Millis(s.RevokedAt)
	}
	return tx.ExecOne(ctx, `
		UPDATE certificates SET state = ?, reason = ?, revoked_at = ?, invalid_since = ?, version = ?, changed = ? WHERE id = ?`,
		s.State, s.Reason, revokedAt, invalidSince, s.Version, int64(index), id) //nolint:gosec // an id
}

// markKey marks a key as compromised, so that it is never certified again.
func (tx *writeTx) markKey(ctx context.Context, key int64, at time.Time) error {
	return tx.ExecOne(ctx, `UPDATE keys SET compromised_at = coalesce(compromised_at, ?) WHERE id = ?`, engine.Millis(at), key)
}

// setIdentityState changes the state of an identity according to rules.MoveIdentity.
func (tx *writeTx) setIdentityState(ctx context.Context, o revocation.Change) (rules.IdentityMove, error) {
	var id int64
	var from pki.IdentityState
	var resumes sql.NullInt64
	row := tx.QueryRow(ctx, `SELECT id, state, resumes FROM identities WHERE spiffe_id = ?`, o.Identity.String())
	err := row.Scan(&id, &from, &resumes)
	if errors.Is(err, sql.ErrNoRows) {
		return rules.IdentityMove{}, rules.NoIdentity(o.Identity)
	}
	if err != nil {
		return rules.IdentityMove{}, err
	}
	m, err := rules.MoveIdentity(o, from, pki.IdentityState(resumes.Int64)) //nolint:gosec // 1 or 2, as the table has it
	if err != nil || !m.Changed {
		return m, err
	}
	resumes = sql.NullInt64{Int64: int64(m.Resumes), Valid: m.Resumes != 0}
	return m, tx.ExecOne(ctx, `UPDATE identities SET state = ?, resumes = ?, revision = revision + 1 WHERE id = ?`, m.State, resumes, id)
}
