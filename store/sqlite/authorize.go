package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// selectCaller selects a certificate of an identity, with the state of the identity. Its parameters are in a table of their
// own, as in selectIssuanceState.
const selectCaller = `
	WITH q AS MATERIALIZED (SELECT ?1 AS serial, ?2 AS issuer, ?3 AS spiffe_id)
	SELECT c.id, c.not_before, c.not_after, c.state, c.reason, c.revoked_at, c.version, n.state, ` + bulk.AnyOpen + `
	FROM q JOIN certificates c ON c.serial = q.serial AND c.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	JOIN identities n ON n.id = c.identity AND n.spiffe_id = q.spiffe_id`

// authorize refuses an actor that is not allowed to make changes at the given time: a caller whose certificate is expired or
// not good, or whose identity is not enrolled.
//
// It reads each caller once per job, and again after a renewal that revoked a certificate. Jobs that share a transaction do
// not share this cache. So a job is refused if an earlier job in the same transaction revoked its caller.
func (tx *writeTx) authorize(ctx context.Context, by pki.Actor, at time.Time) error {
	if !by.NeedsAuthorization() {
		return nil
	}
	caller := by.Caller()
	if caller.IsZero() {
		return pki.NoCertificate()
	}
	state, known := tx.callers[caller]
	if !known {
		var err error
		if state, err = tx.callerState(ctx, caller); err != nil {
			return err
		}
		if tx.callers == nil {
			tx.callers = map[pki.Caller]pki.CallerState{}
		}
		tx.callers[caller] = state
	}
	return caller.Authorize(state, at)
}

// callerState reads the state of a caller, with the open bulk revocations applied.
func (tx *writeTx) callerState(ctx context.Context, caller pki.Caller) (pki.CallerState, error) {
	var s pki.CallerState
	var id, notBefore, notAfter, state, reason, version int64
	var revokedAt sql.NullInt64
	var revoking bool
	cert := caller.Certificate
	row := tx.QueryRowContext(ctx, selectCaller, cert.Serial.Bytes(), cert.Issuer.Bytes(), caller.Identity.String())
	err := row.Scan(&id, &notBefore, &notAfter, &state, &reason, &revokedAt, &version, &s.Identity, &revoking)
	if errors.Is(err, sql.ErrNoRows) {
		return s, cert.NotOnRecord()
	}
	if err != nil {
		return s, err
	}
	s.NotBefore, s.NotAfter = engine.FromMillis(notBefore), engine.FromMillis(notAfter)
	s.Status = statusOf(state, reason, version, revokedAt)
	if !revoking {
		return s, nil
	}
	open, err := bulk.ReadOpen(ctx, tx)
	if err != nil {
		return s, err
	}
	masks, err := open.Masks(ctx, tx, []int64{id})
	s.Status = open.Status(s.Status, masks[id])
	return s, err
}

// authorizeRecord authorizes the actor of a certificate's record, unless the guard does.
func (tx *writeTx) authorizeRecord(ctx context.Context, r *ca.Record, at time.Time) error {
	if rules.Renews(r) {
		return nil
	}
	return tx.authorize(ctx, r.Actor, at)
}
