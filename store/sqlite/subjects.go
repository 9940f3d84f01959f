package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// subject is a certificate whose status a change may concern, with its row ID and that of its key. The key is NULL if the
// certificate was never delivered.
type subject struct {
	rules.Certificate
	id  int64
	key sql.NullInt64
}

const selectSubject = `
	SELECT c.id, i.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.invalid_since, c.version, c.key, n.spiffe_id, n.state
	FROM certificates c JOIN issuers i ON i.id = c.issuer LEFT JOIN identities n ON n.id = c.identity `

func readSubject(ctx context.Context, q engine.Querier, ref pki.CertRef) (subject, error) {
	all, err := querySubjects(ctx, q, `WHERE c.serial = ? AND i.issuer = ?`, ref.Serial.Bytes(), ref.Issuer.Bytes())
	if err == nil && len(all) == 0 {
		err = rules.NoCertificate(ref.Serial)
	}
	if err != nil {
		return subject{}, err
	}
	return all[0], nil
}

// readSubjects reads the certificates of an identity that expire at a time or later.
func readSubjects(ctx context.Context, q engine.Querier, id pki.SPIFFEID, from time.Time) ([]subject, error) {
	return querySubjects(ctx, q, `WHERE c.identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND c.not_after >= ? ORDER BY c.id`,
		id.String(), engine.Millis(from))
}

// readKeySubjects reads the certificates of a key that expire at a time or later, except for one of them.
func readKeySubjects(ctx context.Context, q engine.Querier, key, but int64, from time.Time) ([]subject, error) {
	return querySubjects(ctx, q, `
		WHERE c.identity = (SELECT identity FROM keys WHERE id = ?1) AND c.key = ?1 AND c.id <> ?2 AND c.not_after >= ?3 ORDER BY c.id`,
		key, but, engine.Millis(from))
}

func querySubjects(ctx context.Context, q engine.Querier, where string, args ...any) ([]subject, error) {
	var all []subject
	var ids []int64
	rows := engine.Query(ctx, q, selectSubject+where, args...)
	err := rows.Each(func(rows *sql.Rows) error {
		c, err := scanSubject(rows)
		all, ids = append(all, c), append(ids, c.id)
		return err
	})
	if err != nil || len(all) == 0 {
		return all, err
	}
	open, err := readOpenSets(ctx, q)
	if err != nil || open.none() {
		return all, err
	}
	masks, err := open.masks(ctx, q, ids)
	for i := range all {
		c := &all[i]
		c.InvalidSince = open.orders.InvalidSince(c.Status, masks[c.id], c.InvalidSince)
		c.Status = open.orders.Status(c.Status, masks[c.id])
	}
	return all, err
}

func scanSubject(row engine.Scanner) (subject, error) {
	var c subject
	var issuer, serial []byte
	var notAfter int64
	var revokedAt, since, state sql.NullInt64
	var identity sql.NullString
	err := row.Scan(&c.id, &issuer, &serial, &notAfter, &c.Status.State, &c.Status.Reason, &revokedAt, &since, &c.Status.Version,
		&c.key, &identity, &state)
	if err != nil {
		return subject{}, err
	}
	c.NotAfter, c.Delivered = engine.FromMillis(notAfter), c.key.Valid
	c.Status.RevokedAt, c.InvalidSince = engine.RestoreMillis(revokedAt), engine.RestoreMillis(since)
	if identity.Valid {
		c.IdentityState = pki.IdentityState(state.Int64) //nolint:gosec // 1 to 4, as the table has it
		if c.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return subject{}, err
		}
	}
	c.Ref, err = parseRef(issuer, serial)
	return c, err
}

// setStatus writes the new status and invalidity date of a certificate, and marks its key if the change compromises keys.
func (tx *writeTx) setStatus(ctx context.Context, c *subject, next pki.Status, invalidSince time.Time, o revocation.Change) error {
	index, err := tx.nextIndex(ctx)
	if err != nil {
		return err
	}
	err = tx.writeStatus(ctx, c.id, next, engine.OptionalMillis(invalidSince), index)
	if err != nil || !c.key.Valid || !rules.CompromisesKeys(o) {
		return err
	}
	return tx.markKey(ctx, c.key.Int64, o.At)
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

// moveIdentity changes the state of an identity according to rules.MoveIdentity.
func (tx *writeTx) moveIdentity(ctx context.Context, o revocation.Change) (rules.IdentityMove, error) {
	var id int64
	var from pki.IdentityState
	var resumes sql.NullInt64
	row := tx.QueryRowContext(ctx, `SELECT id, state, resumes FROM identities WHERE spiffe_id = ?`, o.Identity.String())
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
	return m, tx.ExecOne(ctx, `UPDATE identities SET state = ?, resumes = ?, generation = generation + 1 WHERE id = ?`, m.State, resumes, id)
}
