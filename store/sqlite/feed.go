package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/translog"
)

// Snapshot calls visit with the status of every certificate that has not expired at the given time. That includes
// certificates that were never delivered. It uses one read transaction, and returns the end of the sequenced log in it.
func (r *Revocation) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	var index uint64
	err := r.db.file.ReadMany(ctx, "read the statuses", func(ctx context.Context, tx *sql.Tx) error {
		head, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		index = head.Size
		open, err := readOpenSets(ctx, tx)
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
func eachStatus(ctx context.Context, tx *sql.Tx, at time.Time, open openSets, visit func(pki.StatusChange) error) error {
	var q clause
	q.add(`SELECT i.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.version, `)
	open.mask(&q)
	q.add(` FROM certificates c JOIN issuers i ON i.id = c.issuer WHERE c.not_after >= ?`, engine.Millis(at))
	rows := engine.Query(ctx, tx, q.text.String(), q.args...)
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
		if c.Ref, err = parseRef(issuer, serial); err != nil {
			return err
		}
		c.NotAfter, c.Status.RevokedAt = engine.FromMillis(notAfter), engine.RestoreMillis(revokedAt)
		if mask != 0 {
			c.Status = open.orders.Status(c.Status, mask)
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
		err := eachEntry(ctx, tx, after+1, limit, func(s translog.Sequenced) (more bool) {
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
