package tables

import (
	"context"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// CountBulk counts the certificates that a bulk revocation would change, on a reading connection.
func (r *Revocation) CountBulk(ctx context.Context, request revocation.BulkRequest) (revocation.Affected, error) {
	var n revocation.Affected
	err := r.db.file.ReadMany(ctx, "count the certificates of a bulk revocation", func(ctx context.Context, tx engine.Querier) error {
		row, err := bulk.New(ctx, tx, request)
		if err != nil {
			return err
		}
		n, err = row.Count(ctx, tx)
		return err
	})
	return n, err
}

// CreateBulk records a bulk revocation. If it selects few certificates of one identity, CreateBulk also applies it.
func (r *Revocation) CreateBulk(ctx context.Context, request revocation.BulkRequest) (revocation.BulkRevocation, []pki.StatusChange, error) {
	var row bulk.Row
	var statuses []pki.StatusChange
	err := r.db.writeOnce(ctx, "create a bulk revocation", request.Actor, pki.MayRevoke, request.At, func(ctx context.Context, tx *writeTx) (rules.Outcome, error) {
		var err error
		row, statuses, err = tx.createBulk(ctx, request)
		return rules.Outcome{Bulk: row.ID}, err
	}, func(ctx context.Context, tx *writeTx, have rules.Outcome) error {
		var err error
		row, statuses, err = tx.rereadBulk(ctx, have.Bulk)
		return err
	})
	if err != nil {
		return revocation.BulkRevocation{}, nil, err
	}
	return row.BulkRevocation, statuses, nil
}

// rereadBulk returns a bulk revocation. If it is done and selects few certificates of one identity, rereadBulk also returns
// the statuses of its members. If they are many, the steps have already notified the responder.
func (tx *writeTx) rereadBulk(ctx context.Context, id int64) (bulk.Row, []pki.StatusChange, error) {
	row, err := bulk.Read(ctx, tx, id)
	if err != nil || !row.Done || !row.OfOneIdentity() {
		return row, nil, err
	}
	if many, err := row.IsMany(ctx, tx); err != nil || many {
		return row, nil, err
	}
	few, err := row.Few(ctx, tx)
	var statuses []pki.StatusChange
	for i := range few {
		statuses = append(statuses, few[i].Unchanged())
	}
	return row, statuses, err
}

// createBulk records a bulk revocation and returns its row. If it was applied at once, createBulk also returns the statuses of
// its members.
func (tx *writeTx) createBulk(ctx context.Context, request revocation.BulkRequest) (row bulk.Row, statuses []pki.StatusChange, err error) {
	if row, err = bulk.New(ctx, tx, request); err != nil {
		return row, nil, err
	}
	many, err := row.Check(ctx, tx)
	if err != nil {
		return row, nil, err
	}
	row.Done = !many
	distrusted, err := tx.distrustedCreators(ctx, row)
	if err != nil {
		return row, nil, err
	}
	if err := tx.insertBulk(ctx, &row); err != nil {
		return row, nil, err
	}
	err = tx.append(ctx, rules.BulkEntry(row.RecordedBulk))
	if err == nil {
		err = tx.distrustAll(ctx, distrusted, row.Change())
	}
	if err != nil || many {
		return row, nil, err
	}
	statuses, err = tx.applyBulkAtOnce(ctx, &row)
	return row, statuses, err
}

// insertBulk records a bulk revocation, and limits the number of open ones. The caller appends its log entry. If the bulk
// revocation compromises a key that it selects by, insertBulk marks the key, because the key may have no certificate.
func (tx *writeTx) insertBulk(ctx context.Context, row *bulk.Row) error {
	if rules.MarksKey(row.BulkRequest) {
		if _, err := bulk.ReadKey(ctx, tx, row.Key); err != nil {
			return err
		}
	}
	if !row.Done {
		open, err := bulk.CountOpen(ctx, tx)
		if err != nil {
			return err
		}
		if err := rules.CheckOpenBulk(row.BulkRequest, open); err != nil {
			return err
		}
	}
	return tx.insertBulkRow(ctx, row)
}

// insertBulkRow writes the row of a bulk revocation, and marks the key that it compromises.
func (tx *writeTx) insertBulkRow(ctx context.Context, row *bulk.Row) error {
	if rules.MarksKey(row.BulkRequest) {
		if err := tx.markKey(ctx, column.KeyID(row.Key), row.At); err != nil {
			return err
		}
	}
	var name, value, total any
	if row.Done {
		total = 0
	}
	if !row.Label.IsZero() {
		name, value = row.Label.Name, row.Label.Value
	}
	return tx.QueryRow(ctx, `
		INSERT INTO bulk_revocations (issuer, identity, lineage, key_hash, profile, label_name, label_value, issued_from, issued_until,
		                             action, reason, invalid_since, requested_by, requested_at, comment, mark, reach, progress, total, expired, applied, done)
		VALUES ((SELECT id FROM issuers WHERE issuer = ?), (SELECT id FROM identities WHERE spiffe_id = ?), ?, ?, ?, ?, ?, ?, ?,
		        ?, ?, ?, ?, ?, ?, (`+bulk.NewestCertificate+`), ?, 0, ?, 0, 0, ?)
		RETURNING id, mark`,
		column.Optional(row.Issuer), row.Identity.String(), column.EncodeRef(row.LineageOf), column.Optional(row.Key),
		column.OptionalText(row.Profile), name, value, engine.OptionalMillis(row.IssuedFrom), engine.OptionalMillis(row.IssuedUntil),
		row.Action, row.Reason, engine.OptionalMillis(row.InvalidSince), row.Actor.String(), engine.Millis(row.At), row.Comment,
		engine.Millis(row.Reach), total, row.Done,
	).Scan(&row.ID, &row.Mark)
}

// applyBulkAtOnce applies a bulk revocation of few certificates of one identity, and returns the statuses of its members.
func (tx *writeTx) applyBulkAtOnce(ctx context.Context, row *bulk.Row) ([]pki.StatusChange, error) {
	few, err := row.Few(ctx, tx)
	if err != nil {
		return nil, err
	}
	var out rules.Applied
	if err := tx.changeMembers(ctx, few, row.Change(), &out); err != nil {
		return nil, err
	}
	row.BulkRevocation = rules.BulkTotal(row.BulkRevocation, out.Changed)
	if len(out.Changed) > 0 {
		if err := tx.append(ctx, rules.BulkFewEntry(row.RecordedBulk, few[0].Identity, out)); err != nil {
			return nil, err
		}
		if err := tx.distrust(ctx, few[0].Identity, row.Change()); err != nil {
			return nil, err
		}
	}
	return out.All(), tx.ExecOne(ctx, `UPDATE bulk_revocations SET total = ?1, applied = ?1, expired = ?2 WHERE id = ?3`, row.Total, row.Expired, row.ID)
}

// BulkRevocation returns a bulk revocation.
func (r *Revocation) BulkRevocation(ctx context.Context, id int64) (revocation.BulkRevocation, error) {
	var row bulk.Row
	err := r.db.file.Read(ctx, "read a bulk revocation", func(ctx context.Context, tx engine.Querier) error {
		var err error
		row, err = bulk.Read(ctx, tx, id)
		return err
	})
	return row.BulkRevocation, err
}

// BulkRevocations returns a page of bulk revocations, newest first.
func (r *Revocation) BulkRevocations(ctx context.Context, states []revocation.BulkState, after int64, limit int) ([]revocation.BulkRevocation, int64, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	var page []revocation.BulkRevocation
	var next int64
	err := r.db.file.Read(ctx, "list bulk revocations", func(ctx context.Context, tx engine.Querier) error {
		var err error
		page, next, err = bulk.List(ctx, tx, states, after, limit)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}

// OpenBulk returns the bulk revocations that are not done.
func (r *Revocation) OpenBulk(ctx context.Context) ([]revocation.BulkRevocation, error) {
	var all []revocation.BulkRevocation
	err := r.db.file.Read(ctx, "read the open bulk revocations", func(ctx context.Context, tx engine.Querier) error {
		open, err := bulk.ReadOpen(ctx, tx)
		for _, row := range open.Rows() {
			all = append(all, row.BulkRevocation)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
