package sqlite

import (
	"context"
	"database/sql"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

const selectSets = `
	SELECT s.id, i.issuer, n.spiffe_id, s.lineage, s.key_hash, s.profile, s.label_name, s.label_value, s.issued_from, s.issued_until,
	       s.action, s.reason, s.invalid_since, s.ordered_by, s.ordered_at, s.why, s.mark, s.reach, s.progress, s.total, s.ended, s.followed, s.done
	FROM revocation_sets s LEFT JOIN issuers i ON i.id = s.issuer LEFT JOIN identities n ON n.id = s.identity `

func querySets(ctx context.Context, q engine.Querier, where string, args ...any) ([]setRow, error) {
	var all []setRow
	rows := engine.Query(ctx, q, selectSets+where, args...)
	err := rows.Each(func(rows *sql.Rows) error {
		s, err := scanSet(rows)
		all = append(all, s)
		return err
	})
	return all, err
}

func readSet(ctx context.Context, q engine.Querier, id int64) (setRow, error) {
	found, err := querySets(ctx, q, `WHERE s.id = ?`, id)
	if err == nil && len(found) == 0 {
		err = pki.Refuse(pki.RuleNotFound, "look for it in the log (brevet log list), among the facts of bulk_revocation.created",
			"there is no order %d about a set of certificates", id)
	}
	if err != nil {
		return setRow{}, err
	}
	return found[0], nil
}

func scanSet(row engine.Scanner) (setRow, error) {
	var s setRow
	var issuer, lineage, key []byte
	var identity, profile, name, value sql.NullString
	var from, until, since, total sql.NullInt64
	var at, reach int64
	var by string
	err := row.Scan(&s.ID, &issuer, &identity, &lineage, &key, &profile, &name, &value, &from, &until,
		&s.Action, &s.Reason, &since, &by, &at, &s.Comment, &s.mark, &reach, &s.progress, &total, &s.Expired, &s.Applied, &s.Done)
	if err != nil {
		return s, err
	}
	s.Profile, s.Label = profile.String, pki.Label{Name: name.String, Value: value.String}
	s.IssuedFrom, s.IssuedUntil, s.InvalidSince = engine.RestoreMillis(from), engine.RestoreMillis(until), engine.RestoreMillis(since)
	s.Actor, s.At, s.reach, s.Total, s.Counted = pki.ActorFromText(by), engine.FromMillis(at), engine.FromMillis(reach), int(total.Int64), total.Valid
	if identity.Valid {
		if s.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return s, err
		}
	}
	if s.LineageOf, err = decodeRef(lineage); err != nil {
		return s, err
	}
	if s.Issuer, err = restore(issuer, pki.IssuerIDFromBytes); err != nil {
		return s, err
	}
	s.Key, err = restore(key, pki.KeyHashFromBytes)
	return s, err
}

// CountBulk counts the certificates that a bulk revocation would change, on a reading connection.
func (r *Revocation) CountBulk(ctx context.Context, o revocation.BulkRequest) (revocation.Affected, error) {
	var n revocation.Affected
	err := r.db.file.ReadMany(ctx, "count what would be revoked", func(ctx context.Context, tx *sql.Tx) error {
		n = revocation.Affected{}
		s, err := newSet(ctx, tx, o)
		if err != nil {
			return err
		}
		if err := s.checkNamed(ctx, tx); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, newestCertificate).Scan(&s.mark); err != nil {
			return err
		}
		many := true
		if o.OfOneIdentity() {
			if many, err = s.isMany(ctx, tx); err != nil {
				return err
			}
			if many && !o.LineageOf.IsZero() {
				return rules.LongLineage(o.LineageOf.Serial)
			}
		}
		if !many {
			few, err := s.few(ctx, tx)
			for _, c := range few {
				if _, changed := s.next(c.Status); changed {
					n.Add(c.NotAfter, o.At)
				}
			}
			return err
		}
		before, err := readOpenSets(ctx, tx)
		if err != nil {
			return err
		}
		return s.eachMember(ctx, tx, before, func(m member) error {
			if m.isNew {
				n.Add(m.change.NotAfter, o.At)
			}
			return nil
		})
	})
	return n, err
}

const newestCertificate = `SELECT coalesce(max(id), 0) FROM certificates`

// checkNamed refuses a selection by an issuer or an identity that is not on record. The query for members checks a key or a
// certificate in the selection.
func (s *setRow) checkNamed(ctx context.Context, q engine.Querier) error {
	if !s.Issuer.IsZero() {
		var known bool
		if err := q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM issuers WHERE issuer = ?)`, s.Issuer.Bytes()).Scan(&known); err != nil {
			return err
		}
		if !known {
			return rules.NoIssuer(s.Issuer)
		}
	}
	if s.Identity.IsZero() {
		return nil
	}
	var known bool
	if err := q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM identities WHERE spiffe_id = ?)`, s.Identity.String()).Scan(&known); err != nil {
		return err
	}
	if !known {
		return rules.NoIdentity(s.Identity)
	}
	return nil
}

// CreateBulk records a bulk revocation. If it selects few certificates of one identity, CreateBulk also applies it.
func (r *Revocation) CreateBulk(ctx context.Context, o revocation.BulkRequest) (revocation.BulkRevocation, []pki.StatusChange, error) {
	var s setRow
	var standing []pki.StatusChange
	err := r.db.writeOnce(ctx, "revoke a set of certificates", o.Actor, o.At, func(ctx context.Context, tx *writeTx) (rules.Outcome, error) {
		var err error
		s, standing, err = tx.createBulk(ctx, o)
		return rules.Outcome{Bulk: s.ID}, err
	}, func(ctx context.Context, tx *writeTx, have rules.Outcome) error {
		var err error
		s, standing, err = tx.reread(ctx, have.Bulk)
		return err
	})
	if err != nil {
		return revocation.BulkRevocation{}, nil, err
	}
	return s.BulkRevocation, standing, nil
}

// reread returns a bulk revocation. If it is done and selects few certificates of one identity, reread also returns the
// statuses of its members. If they are many, the steps have already notified the responder.
func (tx *writeTx) reread(ctx context.Context, id int64) (setRow, []pki.StatusChange, error) {
	s, err := readSet(ctx, tx, id)
	if err != nil || !s.Done || !s.OfOneIdentity() {
		return s, nil, err
	}
	if many, err := s.isMany(ctx, tx); err != nil || many {
		return s, nil, err
	}
	few, err := s.few(ctx, tx)
	var standing []pki.StatusChange
	for i := range few {
		standing = append(standing, few[i].Unchanged())
	}
	return s, standing, err
}

// createBulk records a bulk revocation and returns its row. If it was applied at once, createBulk also returns the statuses of
// its members.
func (tx *writeTx) createBulk(ctx context.Context, o revocation.BulkRequest) (s setRow, standing []pki.StatusChange, err error) {
	if s, err = newSet(ctx, tx, o); err != nil {
		return s, nil, err
	}
	if err := s.checkNamed(ctx, tx); err != nil {
		return s, nil, err
	}
	many := true
	if o.OfOneIdentity() {
		if many, err = s.isMany(ctx, tx); err != nil {
			return s, nil, err
		}
		if many && !o.LineageOf.IsZero() {
			return s, nil, rules.LongLineage(o.LineageOf.Serial)
		}
	}
	s.Done = !many
	distrusted, err := tx.makersOf(ctx, s)
	if err != nil {
		return s, nil, err
	}
	if err := tx.insertSet(ctx, &s); err != nil {
		return s, nil, err
	}
	err = tx.append(ctx, rules.BulkEntry(s.recorded()))
	if err == nil {
		err = tx.distrustAll(ctx, distrusted, s.order())
	}
	if err != nil || many {
		return s, nil, err
	}
	standing, err = tx.revokeFew(ctx, &s)
	return s, standing, err
}

// insertSet records a bulk revocation with its log entry. It limits the number of open ones. If the bulk revocation
// compromises a key that it selects by, insertSet marks the key, because the key may have no certificate.
func (tx *writeTx) insertSet(ctx context.Context, s *setRow) error {
	if rules.MarksKey(s.BulkRequest) {
		if _, err := readKey(ctx, tx, s.Key); err != nil {
			return err
		}
	}
	var open int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM revocation_sets WHERE done = 0`).Scan(&open); err != nil {
		return err
	}
	if !s.Done {
		if err := rules.CheckOpenBulk(s.BulkRequest, open); err != nil {
			return err
		}
	}
	return tx.insertRow(ctx, s)
}

// insertRow writes the row of a bulk revocation, and marks the key that it compromises.
func (tx *writeTx) insertRow(ctx context.Context, s *setRow) error {
	if rules.MarksKey(s.BulkRequest) {
		if err := tx.markKey(ctx, keyID(s.Key), s.At); err != nil {
			return err
		}
	}
	var name, value, total any
	if s.Done {
		total = 0
	}
	if !s.Label.IsZero() {
		name, value = s.Label.Name, s.Label.Value
	}
	return tx.QueryRowContext(ctx, `
		INSERT INTO revocation_sets (issuer, identity, lineage, key_hash, profile, label_name, label_value, issued_from, issued_until,
		                             action, reason, invalid_since, ordered_by, ordered_at, why, mark, reach, progress, total, ended, followed, done)
		VALUES ((SELECT id FROM issuers WHERE issuer = ?), (SELECT id FROM identities WHERE spiffe_id = ?), ?, ?, ?, ?, ?, ?, ?,
		        ?, ?, ?, ?, ?, ?, (`+newestCertificate+`), ?, 0, ?, 0, 0, ?)
		RETURNING id, mark`,
		optional(s.Issuer), s.Identity.String(), encodeRef(s.LineageOf), optional(s.Key), optionalText(s.Profile), name, value,
		engine.OptionalMillis(s.IssuedFrom), engine.OptionalMillis(s.IssuedUntil), s.Action, s.Reason, engine.OptionalMillis(s.InvalidSince), s.Actor.String(), engine.Millis(s.At), s.Comment,
		engine.Millis(s.reach), total, s.Done,
	).Scan(&s.ID, &s.mark)
}

// revokeFew applies a bulk revocation of one identity, and returns the statuses of its members.
func (tx *writeTx) revokeFew(ctx context.Context, s *setRow) ([]pki.StatusChange, error) {
	few, err := s.few(ctx, tx)
	if err != nil {
		return nil, err
	}
	var out rules.Applied
	if err := tx.changeSubjects(ctx, few, s.order(), &out); err != nil {
		return nil, err
	}
	s.BulkRevocation = rules.BulkTotal(s.BulkRevocation, out.Changed)
	if len(out.Changed) > 0 {
		if err := tx.append(ctx, rules.BulkFewEntry(s.recorded(), few[0].Identity, out)); err != nil {
			return nil, err
		}
		if err := tx.distrust(ctx, few[0].Identity, s.order()); err != nil {
			return nil, err
		}
	}
	return out.All(), tx.ExecOne(ctx, `UPDATE revocation_sets SET total = ?1, followed = ?1, ended = ?2 WHERE id = ?3`, s.Total, s.Expired, s.ID)
}
