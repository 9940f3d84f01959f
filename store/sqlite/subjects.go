package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/translog"
)

// subject is a certificate whose status an order may change.
type subject struct {
	id            int64
	ref           pki.CertRef
	notAfter      time.Time
	status        pki.Status    // as is the next, with what sets of revocations say whose records are to follow
	since         time.Time     // when it became invalid; zero where nobody said
	key           sql.NullInt64 // null where it was never released, and the next two are zero
	identity      pki.SPIFFEID
	identityState pki.IdentityState
}

// standing is the certificate's status as it is.
func (c subject) standing() pki.StatusChange {
	return pki.StatusChange{Ref: c.ref, NotAfter: c.notAfter, Status: c.status}
}

const selectSubject = `
	SELECT c.id, i.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.invalid_since, c.version, c.key, n.spiffe_id, n.state
	FROM certificates c JOIN issuers i ON i.id = c.issuer LEFT JOIN identities n ON n.id = c.identity `

func readSubject(ctx context.Context, q engine.Querier, ref pki.CertRef) (subject, error) {
	all, err := querySubjects(ctx, q, `WHERE c.serial = ? AND i.issuer = ?`, ref.Serial.Bytes(), ref.Issuer.Bytes())
	if err == nil && len(all) == 0 {
		err = noCertificate(ref.Serial)
	}
	if err != nil {
		return subject{}, err
	}
	return all[0], nil
}

// readSubjects reads an identity's certificates that end at a time or later.
func readSubjects(ctx context.Context, q engine.Querier, id pki.SPIFFEID, from time.Time) ([]subject, error) {
	return querySubjects(ctx, q, `WHERE c.identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND c.not_after >= ? ORDER BY c.id`,
		id.String(), engine.Millis(from))
}

// readKeySubjects reads the certificates of a key that end at a time or later, but for one of them.
func readKeySubjects(ctx context.Context, q engine.Querier, key, but int64, from time.Time) ([]subject, error) {
	return querySubjects(ctx, q, `
		WHERE c.identity = (SELECT identity FROM keys WHERE id = ?1) AND c.key = ?1 AND c.id <> ?2 AND c.not_after >= ?3 ORDER BY c.id`,
		key, but, engine.Millis(from))
}

func querySubjects(ctx context.Context, q engine.Querier, where string, args ...any) ([]subject, error) {
	var all []subject
	var ids []int64
	rows, err := q.QueryContext(ctx, selectSubject+where, args...)
	err = engine.Each(rows, err, func(rows *sql.Rows) error {
		c, err := scanSubject(rows)
		all, ids = append(all, c), append(ids, c.id)
		return err
	})
	if err != nil || len(all) == 0 {
		return all, err
	}
	open, err := readOpenSets(ctx, q)
	if err != nil || len(open) == 0 {
		return all, err
	}
	masks, err := open.masks(ctx, q, ids)
	for i := range all {
		c := &all[i]
		c.since = open.since(c.status, masks[c.id], c.since)
		c.status = open.apply(c.status, masks[c.id])
	}
	return all, err
}

func scanSubject(row engine.Scanner) (subject, error) {
	var c subject
	var issuer, serial []byte
	var notAfter int64
	var revokedAt, since, state sql.NullInt64
	var identity sql.NullString
	err := row.Scan(&c.id, &issuer, &serial, &notAfter, &c.status.State, &c.status.Reason, &revokedAt, &since, &c.status.Version,
		&c.key, &identity, &state)
	if err != nil {
		return subject{}, err
	}
	c.notAfter = engine.FromMillis(notAfter)
	c.status.RevokedAt, c.since = engine.RestoreMillis(revokedAt), engine.RestoreMillis(since)
	if identity.Valid {
		c.identityState = pki.IdentityState(state.Int64) //nolint:gosec // 1 to 4, as the table has it
		if c.identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return subject{}, err
		}
	}
	c.ref, err = parseRef(issuer, serial)
	return c, err
}

// setStatus gives a certificate its next status, and marks its key where the order says that it is compromised.
func (tx *writeTx) setStatus(ctx context.Context, c subject, s pki.Status, o revocation.Order) (pki.StatusChange, error) {
	change := pki.StatusChange{Ref: c.ref, NotAfter: c.notAfter, Status: s}
	var revokedAt any
	if s.State != pki.Good {
		revokedAt = engine.Millis(s.RevokedAt)
	}
	since := o.InvalidSince
	if since.IsZero() && s.State == pki.Revoked {
		since = c.since // an upgrade that says nothing of it leaves what was known
	}
	err := tx.ExecOne(ctx, `UPDATE certificates SET state = ?, reason = ?, revoked_at = ?, invalid_since = ?, version = ?, changed = (`+nextEntry+`) WHERE id = ?`,
		s.State, s.Reason, revokedAt, engine.OptionalMillis(since), s.Version, c.id)
	if err != nil || !c.key.Valid || !isKeyCompromise(o) {
		return change, err
	}
	return change, tx.markKey(ctx, c.key.Int64, o.At)
}

// markKey has a key never be certified again.
func (tx *writeTx) markKey(ctx context.Context, key int64, at time.Time) error {
	return tx.ExecOne(ctx, `UPDATE keys SET compromised_at = coalesce(compromised_at, ?) WHERE id = ?`, engine.Millis(at), key)
}

// moveIdentity brings an identity into the state that an order gives it, in a new generation, and returns how the log
// calls that, and whether the identity was in another state before.
func (tx *writeTx) moveIdentity(ctx context.Context, o revocation.Order) (translog.Action, bool, error) {
	var id int64
	var from pki.IdentityState
	var resumes sql.NullInt64
	row := tx.QueryRowContext(ctx, `SELECT id, state, resumes FROM identities WHERE spiffe_id = ?`, o.Identity.String())
	err := row.Scan(&id, &from, &resumes)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, noIdentity(o.Identity)
	}
	if err != nil {
		return "", false, err
	}
	m, err := move(o, from, pki.IdentityState(resumes.Int64)) //nolint:gosec // 1 or 2, as the table has it
	if err != nil || m.to == from {
		return m.action, false, err
	}
	resumes = sql.NullInt64{Int64: int64(from), Valid: m.to == pki.Suspended}
	err = tx.ExecOne(ctx, `UPDATE identities SET state = ?, resumes = ?, generation = generation + 1 WHERE id = ?`, m.to, resumes, id)
	return m.action, err == nil, err
}

// motion is where an order brings an identity, and how the log calls it.
type motion struct {
	to     pki.IdentityState
	action translog.Action
}

func move(o revocation.Order, from, resumes pki.IdentityState) (motion, error) {
	switch {
	case o.Action == revocation.Revoke && o.State == pki.Retired:
		return motion{pki.Retired, translog.IdentityRetired}, nil
	case o.Action == revocation.Revoke && o.Reason == pki.Superseded:
		return motion{from, translog.IdentityReplaced}, nil
	case o.Action == revocation.Revoke:
		return motion{from, translog.CertificateRevoked}, nil
	case from == pki.Retired:
		return motion{}, pki.Refuse(pki.RuleIdentityState, "register another identity", "%s is retired", o.Identity)
	case o.Action == revocation.Hold:
		return motion{pki.Suspended, translog.IdentitySuspended}, nil
	case o.Action == revocation.Release && from == pki.Suspended:
		return motion{resumes, translog.IdentityResumed}, nil
	case o.Action == revocation.Release:
		return motion{}, pki.Refuse(pki.RuleIdentityState, "leave it as it is", "%s is %s, not suspended", o.Identity, from)
	default:
		return motion{}, fmt.Errorf("an order has no action %d", o.Action)
	}
}
