package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// Snapshot calls visit with the status of every certificate that has not expired at the given time. That includes
// certificates that were never delivered. It uses one read transaction, and returns the end of the sequenced log in it.
func (r *Revocation) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	var index uint64
	err := r.db.file.ReadMany(ctx, "read the statuses", func(ctx context.Context, tx *sql.Tx) error {
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
func eachStatus(ctx context.Context, tx *sql.Tx, at time.Time, open bulk.Open, visit func(pki.StatusChange) error) error {
	var q engine.Clause
	q.Add(`SELECT i.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.version, `)
	open.AddMask(&q)
	q.Add(` FROM certificates c JOIN issuers i ON i.id = c.issuer WHERE c.not_after >= ?`, engine.Millis(at))
	rows := q.Query(ctx, tx)
	return rows.Each(func(rows *sql.Rows) error {
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

// Changes returns the status changes of up to limit sequenced entries after an index, and the index of the last entry.
func (r *Revocation) Changes(ctx context.Context, after uint64, limit int) ([]pki.StatusChange, uint64, error) {
	var changes []pki.StatusChange
	last := after
	err := r.db.file.Read(ctx, "read the status changes", func(ctx context.Context, tx *sql.Tx) error {
		var unreadable error
		err := logtable.Each(ctx, tx, after+1, limit, func(s translog.Sequenced) (more bool) {
			of, err := changesOf(s)
			changes, last, unreadable = append(changes, of...), s.Index, err
			return err == nil
		})
		return cmp.Or(err, unreadable) // an altered entry is named as such
	})
	if err != nil {
		return nil, after, err
	}
	return changes, last, nil
}

// changesOf returns the status changes that an entry records.
func changesOf(s translog.Sequenced) ([]pki.StatusChange, error) {
	e, err := translog.ParseEntry(s.Entry)
	if err != nil {
		return nil, fmt.Errorf("log entry %d: %w", s.Index, err)
	}
	return e.Changes, nil
}
