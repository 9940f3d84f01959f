package tables

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// Snapshot calls visit with the status of every certificate that has not expired at the given time. That includes
// certificates that were never delivered. It uses one read transaction, and returns the end of the sequenced log in it.
func (r *Revocation) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	var index uint64
	err := r.db.file.ReadMany(ctx, "read the statuses", func(ctx context.Context, tx engine.Querier) error {
		head, err := logtable.ReadHead(ctx, tx)
		if err != nil {
			return err
		}
		index = head.Size
		open, err := bulk.ReadOpen(ctx, tx)
		if err != nil {
			return err
		}
		return eachStatus(ctx, tx, at, open, visit)
	})
	if err != nil {
		return 0, err
	}
	return index, nil
}

// eachStatus calls visit with the effective status of every certificate that has not expired at the given time.
func eachStatus(ctx context.Context, tx engine.Querier, at time.Time, open bulk.Open, visit func(pki.StatusChange) error) error {
	var q engine.Clause
	q.Add(`SELECT i.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.version, `)
	open.AddMask(&q)
	q.Add(` FROM certificates c JOIN issuers i ON i.id = c.issuer WHERE c.not_after >= ?`, engine.Millis(at))
	rows := q.Query(ctx, tx)
	return rows.Each(func(rows engine.Scanner) error {
		var issuer, serial []byte
		var notAfter int64
		var revokedAt sql.NullInt64
		var mask uint64
		var c pki.StatusChange
		err := rows.Scan(&issuer, &serial, &notAfter, &c.Status.State, &c.Status.Reason, &revokedAt, &c.Status.Version, &mask)
		if err != nil {
			return err
		}
		if c.Ref, err = column.ParseRef(issuer, serial); err != nil {
			return err
		}
		c.NotAfter, c.Status.RevokedAt = engine.FromMillis(notAfter), engine.RestoreMillis(revokedAt)
		if mask != 0 {
			c.Status = open.Status(c.Status, mask)
		}
		return visit(c)
	})
}

// Changes calls apply with the status changes of up to limit sequenced entries after an index, and returns the index of the
// last entry. If an entry created a bulk revocation that is still open, it also calls apply with the statuses of the members.
// A server that has the store for itself created it, and NotifyBulk passes the members to its responder.
func (r *Revocation) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	var changes []pki.StatusChange
	var created []int64
	last := after
	err := r.db.file.Read(ctx, "read the status changes", func(ctx context.Context, tx engine.Querier) error {
		var unreadable error
		err := logtable.Each(ctx, tx, after+1, limit, func(s translog.Sequenced) (more bool) {
			e, err := translog.ParseEntry(s.Entry)
			if err != nil {
				unreadable = fmt.Errorf("log entry %d: %w", s.Index, err)
				return false
			}
			changes, last = append(changes, e.Changes...), s.Index
			if id := createdBulk(e); id != 0 {
				created = append(created, id)
			}
			return true
		})
		return cmp.Or(err, unreadable) // an altered entry is named as such
	})
	if err != nil {
		return after, err
	}
	if len(changes) > 0 {
		apply(changes)
	}
	if r.db.file.IsExclusive() {
		return last, nil
	}
	for _, id := range created {
		if err := r.applyMembers(ctx, id, apply); err != nil {
			return after, err
		}
	}
	return last, nil
}

// Written returns the number of log entries, including those that are not sequenced.
func (r *Revocation) Written(ctx context.Context) (uint64, error) { return r.db.Log().Written(ctx) }

// createdBulk returns the ID of the bulk revocation that an entry created, or zero. One that was applied in the same
// transaction does not count.
func createdBulk(e translog.Entry) int64 {
	var b *translog.BulkRevocation
	switch event := e.Event.(type) {
	case *translog.BulkRevocation:
		b = event
	case *translog.RequestedChange:
		b = event.BulkRevocation
	}
	if b == nil || b.AtOnce {
		return 0
	}
	return b.ID
}

// applyMembers calls apply with the statuses of the members of a bulk revocation, if it is open. If it is done, log entries
// have the changes.
func (r *Revocation) applyMembers(ctx context.Context, id int64, apply func([]pki.StatusChange)) error {
	return r.db.file.ReadMany(ctx, readMembers, func(ctx context.Context, tx engine.Querier) error {
		row, err := bulk.Read(ctx, tx, id)
		if err != nil || row.Done {
			return err
		}
		_, err = row.Notify(ctx, tx, apply)
		return err
	})
}
