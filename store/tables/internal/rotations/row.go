// Package rotations records rotations, and finds the certificates that they affect.
package rotations

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

const selectRows = `
	SELECT r.id, i.issuer, n.spiffe_id, r.key_hash, r.profile, r.label_name, r.label_value, r.issued_from, r.issued_until,
	       r.period, r.started_by, r.started_at, r.comment, r.mark, r.affected, r.ended_at, r.stopped, r.renewed, r.due
	FROM rotations r LEFT JOIN issuers i ON i.id = r.issuer LEFT JOIN identities n ON n.id = r.identity `

func query(ctx context.Context, q engine.Querier, where string, args ...any) ([]rules.RecordedRotation, error) {
	var all []rules.RecordedRotation
	rows := engine.Query(ctx, q, selectRows+where, args...)
	err := rows.Each(func(rows engine.Scanner) error {
		r, err := scan(rows)
		all = append(all, r)
		return err
	})
	return all, err
}

// read returns the rotation with an ID, or a refusal if there is none.
func read(ctx context.Context, q engine.Querier, id int64) (rules.RecordedRotation, error) {
	found, err := query(ctx, q, `WHERE r.id = ?`, id)
	if err == nil && len(found) == 0 {
		err = rules.NoRotation(id)
	}
	if err != nil {
		return rules.RecordedRotation{}, err
	}
	return found[0], nil
}

func scan(row engine.Scanner) (rules.RecordedRotation, error) {
	var r rules.RecordedRotation
	var issuer, key []byte
	var identity, profile, name, value sql.NullString
	var from, until, ended sql.NullInt64
	var period, at int64
	var by string
	err := row.Scan(&r.ID, &issuer, &identity, &key, &profile, &name, &value, &from, &until,
		&period, &by, &at, &r.Comment, &r.Mark, &r.Affected, &ended, &r.Stopped, &r.Final.Renewed, &r.Final.Due)
	if err != nil {
		return r, err
	}
	r.Profile, r.Label = profile.String, pki.Label{Name: name.String, Value: value.String}
	r.IssuedFrom, r.IssuedUntil = engine.RestoreMillis(from), engine.RestoreMillis(until)
	r.Over, r.Actor, r.At = time.Duration(period)*time.Millisecond, pki.ActorFromText(by), engine.FromMillis(at)
	r.EndedAt = engine.RestoreMillis(ended)
	if identity.Valid {
		if r.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return r, err
		}
	}
	if r.Issuer, err = column.Restore(issuer, pki.IssuerIDFromBytes); err != nil {
		return r, err
	}
	r.Key, err = column.Restore(key, pki.KeyHashFromBytes)
	return r, err
}

// Insert writes the row of a new rotation, and sets its ID. If r has an ID already, it fails unless the row gets this ID.
func Insert(ctx context.Context, tx *engine.Tx, r *rules.RecordedRotation) error {
	var name, value any
	if !r.Label.IsZero() {
		name, value = r.Label.Name, r.Label.Value
	}
	want := r.ID
	err := tx.QueryRow(ctx, `
		INSERT INTO rotations (issuer, identity, key_hash, profile, label_name, label_value, issued_from, issued_until,
		                       period, started_by, started_at, comment, mark, affected)
		VALUES ((SELECT id FROM issuers WHERE issuer = ?), (SELECT id FROM identities WHERE spiffe_id = ?), ?, ?, ?, ?, ?, ?,
		        ?, ?, ?, ?, ?, ?)
		RETURNING id`,
		column.Optional(r.Issuer), r.Identity.String(), column.Optional(r.Key), column.OptionalText(r.Profile), name, value,
		engine.OptionalMillis(r.IssuedFrom), engine.OptionalMillis(r.IssuedUntil),
		r.Over.Milliseconds(), r.Actor.String(), engine.Millis(r.At), r.Comment, r.Mark, r.Affected,
	).Scan(&r.ID)
	if err == nil && want != 0 && want != r.ID {
		err = fmt.Errorf("rotation %d was restored as %d", want, r.ID)
	}
	return err
}

// SetEnd records the end of a rotation.
func SetEnd(ctx context.Context, tx *engine.Tx, e rotation.End) error {
	return tx.ExecOne(ctx, `UPDATE rotations SET ended_at = ?, stopped = ?, renewed = ?, due = ? WHERE id = ?`,
		engine.Millis(e.At), e.Stopped, e.Final.Renewed, e.Final.Due, e.ID)
}
