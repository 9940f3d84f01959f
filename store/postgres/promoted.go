package postgres

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// wasPromoted reports whether the database is a standby of the one with the entry, and was promoted without it. A promotion
// begins a time line with a higher number.
func (e *LostError) wasPromoted() bool {
	system, before, _ := strings.Cut(e.Seen, "/")
	other, now, _ := strings.Cut(e.Now, "/")
	return system == other && now > before // both have 8 hexadecimal digits
}

// Statements of refuseForAll. The epoch of the log is that which the process has seen.
const (
	markLost = `INSERT INTO restores (id, list) SELECT 1, NULL FROM log_epoch WHERE encode(epoch, 'hex') = $1 ON CONFLICT (id) DO NOTHING`
	endUses  = `SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l WHERE ` + usesBeside + ` AND EXISTS (SELECT 1 FROM restores WHERE list IS NULL)`
)

// refuseForAll keeps every server from a database that was promoted without an entry that this process has seen. It marks the
// database, as a restore does at its beginning, and ends the connections of the servers that use it: they have not seen the
// entry, and cannot know that it is missing. It does nothing if a restore has the database for itself, or has ended meanwhile.
// If it fails, the next connection tries it again.
func (db *database) refuseForAll(ctx context.Context, conn *pgx.Conn, lost *LostError) error {
	epoch := db.newest.epochOf()
	if !lost.wasPromoted() || epoch == "" {
		return nil
	}
	if ok, err := tryLock(ctx, conn, `pg_try_advisory_lock_shared`); err != nil || !ok {
		return err
	}
	if _, err := conn.Exec(ctx, markLost, epoch); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, endUses)
	return err
}

// epochOf returns the epoch of the log in hexadecimal, or "" if it is not known.
func (n *newest) epochOf() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.epoch
}

// readEpoch reads the epoch of the log once. A process that meets another one ends.
func (n *newest) readEpoch(ctx context.Context, conn *pgx.Conn) error {
	if n.epochOf() != "" {
		return nil
	}
	results, err := conn.PgConn().Exec(ctx, `SELECT encode(epoch, 'hex') FROM log_epoch`).ReadAll()
	if missing := (*pgconn.PgError)(nil); errors.As(err, &missing) && missing.Code == "42P01" { // it has no tables
		return nil
	}
	if err != nil || len(results[0].Rows) == 0 {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.epoch = string(results[0].Rows[0][0])
	return nil
}
