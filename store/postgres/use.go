package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// use is how a process uses a database. Each connection of a server shares an advisory lock, which a restore and a migration of
// the tables have for themselves. PostgreSQL gives the lock back when the connection ends, however the process ended.
type use struct {
	name  string // of the process, in application_name
	alone bool   // no other process may use the database
	// mayRestore means that the store may have a restore that has not ended.
	mayRestore bool
}

// usedBy returns the use of a server with a name.
func usedBy(name string) use { return use{name: strings.TrimSpace("brevet " + name)} }

// useKeys are the keys of the advisory lock: one that differs from those of lockWrites and of migrations, and the schema.
const useKeys = `1112692310, CAST(CAST(quote_ident(current_schema()) AS regnamespace) AS integer)`

// Limits of the wait for the lock, which a process that starts has for a moment to see whether it must change the tables. It
// is longer than maxSilence, after which a connection that was cut gives the lock back.
const (
	maxUseWait  = 3500 * time.Millisecond
	useInterval = 50 * time.Millisecond
)

// InUseError means that other processes use a database that one process must have for itself.
type InUseError struct {
	What  string   // what needs the database for itself
	Users []string // the other processes
}

// Error names the processes and the next step.
func (e *InUseError) Error() string {
	return fmt.Sprintf("%s, and other processes use the database: %s; stop all servers, and run the command again", e.What, strings.Join(e.Users, ", "))
}

// ReservedError means that another process has a database for itself.
type ReservedError struct{ Users []string }

// Error names the process and the next step.
func (e *ReservedError) Error() string {
	return fmt.Sprintf("another process has the database for itself, to restore it or to change its tables: %s; wait for its end, and start again",
		strings.Join(e.Users, ", "))
}

// OlderError means that the tables have an older version than the one to which this process has brought them. They are those
// of an older copy of the database.
type OlderError struct{ Have, Made int64 }

// Error names both versions and the next step.
func (e *OlderError) Error() string {
	return fmt.Sprintf("the database has tables of version %d, and this server has brought them to %d: it is an older copy; stop all servers, "+
		"and run brevet restore on it", e.Have, e.Made)
}

// RestoredError means that a database was restored while this process did not use it. What the process remembers, such as keys
// and the end of its archive, is of the log before.
type RestoredError struct{ Have, Seen string } // the epochs of the log, in hexadecimal

// Error names both epochs and the next step.
func (e *RestoredError) Error() string {
	return fmt.Sprintf("the database was restored while this server ran: its log has the epoch %s, and had %s; stop this server, move its archive "+
		"of the log away, and start it", e.Have, e.Seen)
}

// EndsServer returns true: the log of the store is another one.
func (*RestoredError) EndsServer() bool { return true }

// take takes the lock on a new connection, and then checks that a server may use the tables.
func (db *database) take(ctx context.Context, conn *pgx.Conn) error {
	if db.use.alone {
		return db.takeAlone(ctx, conn)
	}
	ok, err := retryLock(ctx, conn, `pg_try_advisory_lock_shared`)
	if err != nil {
		return err
	}
	if !ok {
		users, err := usersBeside(ctx, conn)
		return errors.Join(&ReservedError{users}, err)
	}
	return db.mayServe(ctx, conn)
}

// takeAlone takes the lock for this process alone. A connection of its own that has just ended may have it for a moment.
func (db *database) takeAlone(ctx context.Context, conn *pgx.Conn) error {
	ok, err := retryLock(ctx, conn, `pg_try_advisory_lock`)
	if err != nil || ok {
		return err
	}
	users, err := usersBeside(ctx, conn)
	return errors.Join(&InUseError{"a restore needs the database for itself", users}, err)
}

// retryLock tries to lock for as long as another process has the lock for a moment only.
func retryLock(ctx context.Context, conn *pgx.Conn, function string) (bool, error) {
	for begun := time.Now(); ; {
		ok, err := tryLock(ctx, conn, function)
		if ok || err != nil || time.Since(begun) > maxUseWait {
			return ok, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(useInterval):
		}
	}
}

func tryLock(ctx context.Context, conn *pgx.Conn, function string) (bool, error) {
	results, err := conn.PgConn().Exec(ctx, `SELECT `+function+`(`+useKeys+`)`).ReadAll()
	if err != nil {
		return false, err
	}
	return string(results[0].Rows[0][0]) == "t", nil
}

// usesBeside is the condition that a row l of pg_locks is the lock of another connection.
const usesBeside = `l.locktype = 'advisory' AND l.granted AND l.classid = 1112692310 AND l.objsubid = 2 AND l.pid <> pg_backend_pid()
	AND l.objid = CAST(quote_ident(current_schema()) AS regnamespace) AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// holder is the process of a row a of pg_stat_activity.
const holder = `coalesce(nullif(a.application_name, ''), 'a process') || coalesce(' at ' || host(a.client_addr), '')`

// users selects the processes that have the lock.
const users = `
	SELECT DISTINCT ` + holder + ` AS holder
	FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) WHERE ` + usesBeside + ` ORDER BY holder`

// usersBeside returns the processes that have the lock, apart from that of a connection.
func usersBeside(ctx context.Context, conn *pgx.Conn) (names []string, err error) {
	results, err := conn.PgConn().Exec(ctx, users).ReadAll()
	if err != nil {
		return nil, err
	}
	for _, row := range results[0].Rows {
		names = append(names, string(row[0]))
	}
	if len(names) == 0 {
		names = []string{"it has ended meanwhile"}
	}
	return names, nil
}

// mayServe returns an error if a server must not use the tables, because of their version or of a restore.
func (db *database) mayServe(ctx context.Context, conn *pgx.Conn) error {
	results, err := conn.PgConn().Exec(ctx, `
		SELECT (SELECT max(version_id) FROM goose_db_version WHERE is_applied), (SELECT count(*) FROM restores), (SELECT encode(list, 'hex') FROM restores),
		       (SELECT encode(epoch, 'hex') FROM log_epoch)`).ReadAll()
	if hasNoTable(err) {
		return &OlderError{0, db.version}
	}
	if err != nil {
		return err
	}
	row := results[0].Rows[0]
	version, err := strconv.ParseInt(string(row[0]), 10, 64)
	switch {
	case err != nil:
		return fmt.Errorf("read the version of the tables: %w", err)
	case version > db.version:
		return &NewerError{Have: version, Known: db.version}
	case version < db.version:
		return &OlderError{version, db.version}
	case db.use.mayRestore:
		return nil
	case string(row[1]) == "0":
		return db.newest.checkEpoch(string(row[3]))
	case row[2] == nil:
		return &rules.IncompleteError{}
	}
	var list translog.Hash
	if _, err := hex.Decode(list[:], row[2]); err != nil {
		return fmt.Errorf("read the list of a restore: %w", err)
	}
	return &rules.UnacceptedError{List: list}
}
