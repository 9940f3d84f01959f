package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// mayMark returns the epoch of the log if this process may mark the database that lacks an entry. The database must be a
// standby of the one with the entry that was promoted without it: a promotion begins a time line with a higher number.
//
// It returns "" from then on if the database has the same time line, or an older one. Then the entry may be of a standby that
// was promoted by mistake, and is given up. A standby of this database that is promoted next has a higher time line, too, but
// lacks nothing.
func (n *newest) mayMark(lost *LostError) (epoch string) {
	system, before, _ := strings.Cut(lost.Seen, "/")
	other, now, _ := strings.Cut(lost.Now, "/")
	n.mu.Lock()
	defer n.mu.Unlock()
	if system == other && now <= before { // both have 8 hexadecimal digits
		n.marksNone = true
	}
	if system != other || n.marksNone {
		return ""
	}
	return n.epoch
}

// Statements of refuseForAll. The epoch of the log is that which the process has seen.
const (
	markLost = `INSERT INTO restores (id, list) SELECT 1, NULL FROM log_epoch WHERE encode(epoch, 'hex') = $1 ON CONFLICT (id) DO NOTHING`
	isMarked = `SELECT EXISTS (SELECT 1 FROM restores WHERE list IS NULL)`
)

// endUses ends the connections that use the database, and selects the processes of those that this account may not end. An
// error would leave those of the rows after it.
const endUses = `
	SELECT DISTINCT holder FROM (
		SELECT ` + holder + ` AS holder, CASE WHEN (r.rolsuper IS NOT TRUE OR me.rolsuper)
				AND (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
			THEN pg_terminate_backend(l.pid) END AS was_ended
		FROM pg_locks l JOIN pg_stat_activity a USING (pid) LEFT JOIN pg_roles r ON r.oid = a.usesysid JOIN pg_roles me ON me.rolname = current_user
		WHERE ` + usesBeside + `) ended
	WHERE was_ended IS NULL ORDER BY holder`

// refuseForAll keeps every server from a database that was promoted without an entry that this process has seen. It marks the
// database, as a restore does at its beginning, and ends the connections of the servers that use it: they have not seen the
// entry, and cannot know that it is missing. It does nothing if a restore has the database for itself, or has ended meanwhile.
// It sets in lost what it did. If it fails, the next connection tries it again.
func (db *database) refuseForAll(ctx context.Context, conn *pgx.Conn, lost *LostError) error {
	epoch := db.newest.mayMark(lost)
	if epoch == "" {
		return nil
	}
	if ok, err := tryLock(ctx, conn, `pg_try_advisory_lock_shared`); err != nil || !ok {
		return err
	}
	// The account may have default_transaction_read_only.
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{BeginQuery: beginWrite}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, markLost, epoch)
		return err
	})
	if err != nil {
		return err
	}
	if err := conn.QueryRow(ctx, isMarked).Scan(&lost.IsMarked); err != nil || !lost.IsMarked {
		return err
	}
	rows, err := conn.Query(ctx, endUses)
	if err != nil {
		return err
	}
	lost.Users, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}
