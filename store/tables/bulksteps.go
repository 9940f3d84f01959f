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
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

const readMembers = "read the certificates of a bulk revocation"

// NotifyBulk calls a function with the changed statuses of the members of a bulk revocation, and records their number.
func (r *Revocation) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	var row bulk.Row
	var remaining bulk.Remaining
	leads := false
	err := r.db.file.ReadMany(ctx, readMembers, func(ctx context.Context, tx engine.Querier) error {
		err := r.db.epochs.CheckLeads(ctx, tx)
		if leads = err == nil; err != nil && !errors.Is(err, pki.ErrNotLeader) {
			return err
		}
		if row, err = bulk.Read(ctx, tx, id); err != nil || row.Done {
			return err
		}
		remaining, err = row.Notify(ctx, tx, func(changes []pki.StatusChange) { observer.Apply(changes...) })
		return err
	})
	if err != nil || row.Done {
		return row.BulkRevocation, err
	}
	if leads { // else another server takes the steps
		r.db.remaining.Put(id, remaining)
	}
	if row.Counted {
		return row.BulkRevocation, nil
	}
	err = r.db.write(ctx, "record the number of certificates of a bulk revocation", func(ctx context.Context, tx *writeTx) error {
		// Steps may have been applied since the members were read. Total includes their certificates, as counted at the time
		// of the read.
		n, err := tx.Exec(ctx, `UPDATE bulk_revocations SET total = ?, expired = ? WHERE id = ? AND total IS NULL`,
			row.Applied+len(remaining.Rows), remaining.Expired, id)
		if err != nil {
			return err
		}
		if row, err = bulk.Read(ctx, tx, id); err != nil || n == 0 {
			return err
		}
		return tx.append(ctx, rules.BulkCountedEntry(row.RecordedBulk))
	})
	return row.BulkRevocation, err
}

// errMoved means that a concurrent step changed records after the remaining members were read.
var errMoved = errors.New("a concurrent step was applied")

// ApplyBulk applies one step of a bulk revocation.
func (r *Revocation) ApplyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, revocation.BulkRevocation{}, err
	}
	for {
		changes, row, err := r.applyBulk(ctx, id, limit, at)
		if !errors.Is(err, errMoved) {
			return changes, row, err
		}
	}
}

// applyBulk applies one step. It returns errMoved if a concurrent step was applied.
func (r *Revocation) applyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	remaining, err := r.remainingOf(ctx, id)
	if err != nil {
		return nil, revocation.BulkRevocation{}, err
	}
	var row bulk.Row
	var changes []pki.StatusChange
	step := remaining.Rows[:min(limit, len(remaining.Rows))]
	err = r.db.write(ctx, "apply a bulk revocation", func(ctx context.Context, tx *writeTx) error {
		changes = nil
		if row, err = bulk.Read(ctx, tx, id); err != nil || row.Done {
			return err
		}
		if err := r.db.epochs.CheckLeads(ctx, tx); err != nil {
			return err
		}
		isNext, err := bulk.IsNext(ctx, tx, id)
		if err != nil || !isNext {
			return err
		}
		if row.Progress != remaining.Progress {
			return errMoved
		}
		changes, err = tx.applyBulkStep(ctx, &row, step, len(step) == len(remaining.Rows), at)
		return err
	})
	if err != nil {
		return nil, revocation.BulkRevocation{}, err
	}
	if !row.Done && row.Progress != remaining.Progress {
		r.db.remaining.Put(id, bulk.Remaining{Progress: row.Progress, Rows: remaining.Rows[len(step):]})
	}
	return changes, row.BulkRevocation, nil
}

// remainingOf returns the remaining members of a bulk revocation. It returns [pki.ErrNotLeader] before it reads them.
func (r *Revocation) remainingOf(ctx context.Context, id int64) (bulk.Remaining, error) {
	if err := r.db.file.Look(ctx, readMembers, r.db.epochs.CheckLeads); err != nil {
		r.db.remaining.Take(id) // this server may have led before
		return bulk.Remaining{}, err
	}
	if remaining, ok := r.db.remaining.Take(id); ok {
		return remaining, nil
	}
	var remaining bulk.Remaining
	err := r.db.file.ReadMany(ctx, readMembers, func(ctx context.Context, tx engine.Querier) error {
		row, err := bulk.Read(ctx, tx, id)
		if err != nil || row.Done {
			return err
		}
		remaining, err = row.Notify(ctx, tx, func([]pki.StatusChange) {})
		return err
	})
	return remaining, err
}

// applyBulkStep changes the records of some members, and records the progress of the bulk revocation.
func (tx *writeTx) applyBulkStep(ctx context.Context, row *bulk.Row, ids []int64, isLast bool, at time.Time) ([]pki.StatusChange, error) {
	changes, err := tx.changeRecords(ctx, row, ids)
	if err != nil {
		return nil, err
	}
	if len(ids) > 0 {
		row.Progress = ids[len(ids)-1]
	}
	row.BulkRevocation = rules.BulkStep(row.BulkRevocation, len(ids), isLast)
	if err := tx.append(ctx, rules.BulkStepEntry(row.RecordedBulk, at, row.Identity, changes)); err != nil {
		return nil, err
	}
	var total any // NULL leaves the column unchanged
	if isLast {
		total = row.Total
	}
	return changes, tx.ExecOne(ctx, `UPDATE bulk_revocations SET progress = ?, applied = ?, total = coalesce(?, total), done = ? WHERE id = ?`,
		row.Progress, row.Applied, total, row.Done, row.ID)
}

// changesRecord maps an action to the SQL condition under which it changes the record of a certificate.
var changesRecord = map[revocation.Action]string{
	revocation.Revoke: `(state <> 3 OR ?3 = 1 AND reason <> 1)`,
	revocation.Hold:   `state = 1`,
	revocation.Unhold: `state = 2`,
}

// changeRecords changes certificates in one statement, in the same way as rules.NextMember: a revoked certificate does not
// change, except that keyCompromise replaces the reason and keeps the time.
func (tx *writeTx) changeRecords(ctx context.Context, row *bulk.Row, ids []int64) ([]pki.StatusChange, error) {
	list, err := column.IDs(ids)
	if err != nil {
		return nil, err
	}
	issuers, err := bulk.ReadIssuers(ctx, tx)
	if err != nil {
		return nil, err
	}
	var changes []pki.StatusChange
	next := rules.BulkStatus(row.BulkRequest)
	rows := engine.Query(ctx, tx, `
		UPDATE certificates SET state = ?2, reason = ?3, revoked_at = CASE state WHEN 3 THEN revoked_at ELSE ?4 END, version = version + 1,
		       changed = (`+logtable.NextIndex+`), invalid_since = coalesce(?5, CASE state WHEN 3 THEN invalid_since END)
		WHERE id IN (SELECT value FROM json_each(?1)) AND `+changesRecord[row.Action]+`
		RETURNING issuer, serial, not_after, revoked_at, version`,
		list, next.State, next.Reason, engine.OptionalMillis(next.RevokedAt), engine.OptionalMillis(row.InvalidSince))
	err = rows.Each(func(rows engine.Scanner) error {
		c := pki.StatusChange{Status: pki.Status{State: next.State, Reason: next.Reason}}
		var issuer, notAfter int64
		var revokedAt sql.NullInt64
		var serial []byte
		if err := rows.Scan(&issuer, &serial, &notAfter, &revokedAt, &c.Status.Version); err != nil {
			return err
		}
		var err error
		c.Ref.Serial, err = pki.SerialFromBytes(serial)
		c.Ref.Issuer, c.NotAfter, c.Status.RevokedAt = issuers[issuer], engine.FromMillis(notAfter), engine.RestoreMillis(revokedAt)
		changes = append(changes, c)
		return err
	})
	if err != nil || row.Reason != pki.KeyCompromise {
		return changes, err
	}
	_, err = tx.Exec(ctx, `
		UPDATE keys SET compromised_at = coalesce(compromised_at, ?2)
		WHERE id IN (SELECT c.key FROM json_each(?1) j CROSS JOIN certificates c ON c.id = j.value WHERE c.key IS NOT NULL)`,
		list, engine.Millis(row.At))
	return changes, err
}
