// Package bulk reads which certificates a bulk revocation selects and how it changes them. It writes nothing.
//
// [Row] is a bulk revocation on record: it reads its members. [Open] holds the bulk revocations that are not applied to all
// records yet. They are in effect for their members from the start, so every read of a status applies them. [Certificate] is
// a certificate with its effective status.
package bulk

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// Row is the row of a bulk revocation. A certificate's row ID says whether it can be a member.
type Row struct{ rules.RecordedBulk }

// New returns the row of a new bulk revocation, with the reach of its time and its grace.
func New(ctx context.Context, q engine.Querier, request revocation.BulkRequest) (Row, error) {
	var r Row
	var err error
	r.BulkRequest = request
	r.Reach, err = Reach(ctx, q, request.At)
	if !r.Reach.IsZero() {
		r.Reach = r.Reach.Add(-request.Grace)
	}
	r.Grace = 0 // it is not recorded
	return r, err
}

// Change returns the change that the bulk revocation makes to each member.
func (r *Row) Change() revocation.Change { return rules.BulkChange(r.BulkRequest) }

// Next returns the new status of a member, and reports whether it differs from before.
func (r *Row) Next(before pki.Status) (pki.Status, bool) {
	return rules.NextMember(before, r.Change())
}

// NewestCertificate selects the row ID of the newest certificate.
const NewestCertificate = `SELECT coalesce(max(id), 0) FROM certificates`

const selectRows = `
	SELECT s.id, i.issuer, n.spiffe_id, s.lineage, s.key_hash, s.profile, s.label_name, s.label_value, s.issued_from, s.issued_until,
	       s.action, s.reason, s.invalid_since, s.requested_by, s.requested_at, s.comment, s.mark, s.reach, s.progress, s.total, s.expired, s.applied, s.done
	FROM bulk_revocations s LEFT JOIN issuers i ON i.id = s.issuer LEFT JOIN identities n ON n.id = s.identity `

func query(ctx context.Context, q engine.Querier, where string, args ...any) ([]Row, error) {
	var all []Row
	rows := engine.Query(ctx, q, selectRows+where, args...)
	err := rows.Each(func(rows engine.Scanner) error {
		r, err := scan(rows)
		all = append(all, r)
		return err
	})
	return all, err
}

// Read returns the bulk revocation with an ID, or a refusal if there is none.
func Read(ctx context.Context, q engine.Querier, id int64) (Row, error) {
	found, err := query(ctx, q, `WHERE s.id = ?`, id)
	if err == nil && len(found) == 0 {
		err = pki.Refuse(pki.RuleNotFound, "look for its ID in the log (brevet log list), in the entries bulk_revocation.created",
			"bulk revocation %d is not on record", id)
	}
	if err != nil {
		return Row{}, err
	}
	return found[0], nil
}

func scan(row engine.Scanner) (Row, error) {
	var r Row
	var issuer, lineage, key []byte
	var identity, profile, name, value sql.NullString
	var from, until, since, total sql.NullInt64
	var at, reach int64
	var by string
	err := row.Scan(&r.ID, &issuer, &identity, &lineage, &key, &profile, &name, &value, &from, &until,
		&r.Action, &r.Reason, &since, &by, &at, &r.Comment, &r.Mark, &reach, &r.Progress, &total, &r.Expired, &r.Applied, &r.Done)
	if err != nil {
		return r, err
	}
	r.Profile, r.Label = profile.String, pki.Label{Name: name.String, Value: value.String}
	r.IssuedFrom, r.IssuedUntil, r.InvalidSince = engine.RestoreMillis(from), engine.RestoreMillis(until), engine.RestoreMillis(since)
	r.Actor, r.At, r.Reach = pki.ActorFromText(by), engine.FromMillis(at), engine.FromMillis(reach)
	r.Total, r.Counted = int(total.Int64), total.Valid
	if identity.Valid {
		if r.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return r, err
		}
	}
	if r.LineageOf, err = column.DecodeRef(lineage); err != nil {
		return r, err
	}
	if r.Issuer, err = column.Restore(issuer, pki.IssuerIDFromBytes); err != nil {
		return r, err
	}
	r.Key, err = column.Restore(key, pki.KeyHashFromBytes)
	return r, err
}

// state is an SQL expression for revocation.BulkRevocation.State of a row s.
const state = `CASE WHEN s.done = 1 THEN 3 WHEN s.total IS NOT NULL THEN 2 ELSE 1 END`

// List returns a page of bulk revocations, newest first, and the ID after which the next page begins. If after is zero, the
// page begins with the newest one.
func List(ctx context.Context, q engine.Querier, states []revocation.BulkState, after int64, limit int) (page []revocation.BulkRevocation, next int64, err error) {
	if after == 0 {
		after = 1<<63 - 1
	}
	where, args := `WHERE s.id < ?`, []any{after}
	if len(states) > 0 {
		var in []int // encoding/json encodes a slice of uint8 as text
		for _, s := range states {
			in = append(in, int(s))
		}
		wanted, err := json.Marshal(in)
		if err != nil {
			return nil, 0, err
		}
		where += ` AND ` + state + ` IN (SELECT value FROM json_each(?))`
		args = append(args, string(wanted))
		// There are few open ones, and an index finds them. So a page reads few rows that it does not return.
		if !slices.Contains(states, revocation.BulkDone) {
			where += ` AND s.done = 0`
		}
	}
	rows, err := query(ctx, q, where+` ORDER BY s.id DESC LIMIT ?`, append(args, limit+1)...)
	if err != nil {
		return nil, 0, err
	}
	for _, r := range rows[:min(limit, len(rows))] {
		page = append(page, r.BulkRevocation)
	}
	if len(rows) > limit {
		next = page[limit-1].ID
	}
	return page, next, nil
}
