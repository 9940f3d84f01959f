package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// LostError means that a database lacks an entry of the log that this server has seen. It is an older copy, or a standby that
// was promoted and did not have all transactions. Certificates that were revoked may be good in it.
type LostError struct {
	Index       int64  // of the entry
	Seen        string // the system identifier and the time line of PostgreSQL when the server saw it
	Have        int64  // the index of the newest entry that the database has
	Now         string // its system identifier and time line
	IsDifferent bool   // whether it has another entry with the index
	// IsMarked means that no server serves from the database, because this one has marked it. Users are processes that still
	// use it, because this server may not end their connections.
	IsMarked bool
	Users    []string
}

// Error names the entry and the next step.
func (e *LostError) Error() string {
	what := fmt.Sprintf("its newest one is %d", e.Have)
	if e.IsDifferent {
		what = "it has another one with that index"
	}
	others := "until then, other servers may serve from it, and certificates that were revoked are good in it"
	if e.IsMarked {
		others = "this server has marked it, so that no server serves from it until then"
	}
	if len(e.Users) > 0 {
		others += "; it could not end the connections of " + strings.Join(e.Users, ", ") + ": stop them"
	}
	return fmt.Sprintf("the database (PostgreSQL %s) lacks log entry %d, which this server has seen in it (PostgreSQL %s), and %s: "+
		"it is an older copy, or a standby that was promoted before it had all. Put the newest database in its place, and restart this server "+
		"if it refuses that one, too, or stop all servers and run brevet restore on this one; %s", e.Now, e.Index, e.Seen, what, others)
}

// newest is the newest entry of the log that this process has seen as durable. A database without it knows less than this
// process has reported to clients.
type newest struct {
	mu      sync.Mutex
	index   int64
	digest  []byte // SHA-256 of the entry, in hexadecimal
	cluster string // the system identifier and time line of PostgreSQL when the process saw the entry
	epoch   string // of the log, in hexadecimal; "" if it is not known
	// changesEpoch means that this process may begin an epoch, so that another one is no error.
	changesEpoch bool
	marksNone    bool // whether this process marks no database any more, see mayMark
}

// selectNewest selects the newest entry for see.
const selectNewest = `SELECT CAST(id AS text), ` + digestOfEntry + ` FROM log ORDER BY log.id DESC LIMIT 1`

// digestOfEntry is a text, as the ID is in selectNewest, because that has the same bytes in both formats of PostgreSQL.
const digestOfEntry = `encode(sha256(entry), 'hex')`

// clusterKey is the key of the system identifier and the time line of PostgreSQL in the data of a connection. After a failover,
// other connections may have another time line.
const clusterKey = "cluster"

// see takes the row of selectNewest on a connection, which another transaction has committed, or this one has.
func (n *newest) see(conn *pgx.Conn, row [][]byte) {
	index, err := strconv.ParseInt(string(row[0]), 10, 64)
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if index > n.index {
		n.index, n.digest = index, bytes.Clone(row[1])
		n.cluster, _ = conn.PgConn().CustomData()[clusterKey].(string)
	}
}

// check refuses the database of a new connection if its log has another epoch than before, or if it lacks the entry. An entry
// that is sequenced may have left the log. After a restore, only the epoch says that the entry is not missed.
func (n *newest) check(ctx context.Context, conn *pgx.Conn) error {
	results, err := conn.PgConn().Exec(ctx, selectCluster+`; `+selectEpoch).ReadAll()
	if err != nil && (!hasNoTable(err) || len(results) == 0) {
		return err
	}
	now := string(results[0].Rows[0][0])
	conn.PgConn().CustomData()[clusterKey] = now
	if err == nil && len(results[1].Rows) > 0 {
		if err := n.checkEpoch(string(results[1].Rows[0][0])); err != nil {
			return err
		}
	}
	n.mu.Lock()
	index, digest, seen := n.index, n.digest, n.cluster
	n.mu.Unlock()
	if index == 0 {
		return nil
	}
	return compare(ctx, conn, &LostError{Index: index, Seen: seen, Now: now}, digest)
}

// selectCluster selects the system identifier, which a restore and a failover keep, and the time line, which a promotion
// changes.
const selectCluster = `SELECT system_identifier || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system()`

// selectEpoch selects the epoch of the log, in hexadecimal.
const selectEpoch = `SELECT encode(epoch, 'hex') FROM log_epoch`

// hasNoTable reports whether a statement failed because the database does not have its table.
func hasNoTable(err error) bool {
	own := (*pgconn.PgError)(nil)
	return errors.As(err, &own) && own.Code == "42P01"
}

// compare returns lost if the log does not have an entry with its index and the digest.
func compare(ctx context.Context, conn *pgx.Conn, lost *LostError, digest []byte) error {
	results, err := conn.PgConn().Exec(ctx, fmt.Sprintf(`
		SELECT (SELECT `+digestOfEntry+` FROM log WHERE id = %d), (SELECT coalesce(max(id), 0) FROM log), (SELECT coalesce(max(id), 0) FROM chain)`,
		lost.Index)).ReadAll()
	if hasNoTable(err) {
		return lost
	}
	if err != nil {
		return err
	}
	row := results[0].Rows[0]
	sequenced, err := strconv.ParseInt(string(row[2]), 10, 64)
	if err != nil {
		return err
	}
	if lost.Have, err = strconv.ParseInt(string(row[1]), 10, 64); err != nil {
		return err
	}
	lost.IsDifferent = row[0] != nil
	if row[0] == nil && sequenced >= lost.Index || bytes.Equal(row[0], digest) {
		return nil
	}
	return lost
}

// checkEpoch refuses a database whose log has another epoch than before, because it was restored.
func (n *newest) checkEpoch(epoch string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.epoch != "" && n.epoch != epoch && !n.changesEpoch {
		return &RestoredError{Have: epoch, Seen: n.epoch}
	}
	n.epoch = epoch
	return nil
}
