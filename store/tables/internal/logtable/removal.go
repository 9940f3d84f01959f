package logtable

import (
	"context"
	"database/sql"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/translog"
)

// removed returns a RemovedError if an entry has left the table: if the first one there has a greater index. The newest
// entry never leaves.
func removed(ctx context.Context, q engine.Querier, index uint64) error {
	var first sql.NullInt64
	if err := q.QueryRow(ctx, `SELECT min(id) FROM log`).Scan(&first); err != nil {
		return err
	}
	if n := uint64(first.Int64); n > index { //nolint:gosec // an id
		return &translog.RemovedError{Index: index, First: n}
	}
	return nil
}

// Remove removes the entries from an index up to a head, which are the first ones. It keeps the chain value of the head,
// and those of every multiple of translog.SkipEvery. It returns false if the newest sequenced entry is among them, or if
// the archive of a server with an epoch lacks one.
func Remove(ctx context.Context, tx *engine.Tx, from uint64, to translog.Head) (bool, error) {
	head, err := ReadHead(ctx, tx)
	if err != nil || to.Size >= head.Size {
		return false, err
	}
	var isFirst, isMissing bool
	err = tx.QueryRow(ctx, `
		SELECT coalesce((SELECT min(id) FROM log) = ?, FALSE),
		       EXISTS (SELECT 1 FROM epochs e LEFT JOIN servers s ON s.name = e.server WHERE coalesce(s.archived, 0) < ?)`,
		int64(from), int64(to.Size)).Scan(&isFirst, &isMissing) //nolint:gosec // ids
	if err != nil || isMissing || !isFirst {
		return false, err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO chain (id, value) VALUES (?, ?) ON CONFLICT DO NOTHING`,
		int64(to.Size), to.Chain[:]); err != nil { //nolint:gosec // an id
		return false, err
	}
	n, err := tx.Exec(ctx, `DELETE FROM log WHERE id >= ? AND id <= ?`, int64(from), int64(to.Size)) //nolint:gosec // ids
	if err != nil {
		return false, err
	}
	tx.Pages += uint64(n) //nolint:gosec // a count
	// The head of the last removal is the one before the first entry.
	_, err = tx.Exec(ctx, `DELETE FROM chain WHERE id >= ? AND id < ? AND id % ? <> 0`,
		int64(from)-1, int64(to.Size), translog.SkipEvery) //nolint:gosec // ids
	return err == nil, err
}

// Checkpoint returns the last head up to an index whose chain value is stored.
func Checkpoint(ctx context.Context, q engine.Querier, index uint64) (translog.Head, error) {
	index = min(index, 1<<62) // greater than any row ID
	return scanHead(q.QueryRow(ctx, `SELECT id, value FROM chain WHERE id <= ? ORDER BY id DESC LIMIT 1`, int64(index)))
}

// Archived records up to which index the archive of a server has the log.
func Archived(ctx context.Context, tx *engine.Tx, server string, index uint64) error {
	_, err := tx.Exec(ctx, `UPDATE servers SET archived = ? WHERE name = ?`, int64(min(index, 1<<62)), server)
	return err
}
