package postgres

import (
	"context"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables"
)

// OpenDatabase opens a database for tests of the engine alone.
func OpenDatabase(ctx context.Context, config *pgx.ConnConfig) (engine.DB, error) {
	return openDatabase(ctx, config, use{name: "brevet"}, migrations)
}

// SetUp sets up and checks a connection as the store does.
func SetUp(ctx context.Context, conn *pgx.Conn) error { return check(ctx, conn) }

// OpenWithMigrations is OpenWith for a version of Brevet with other tables.
func OpenWithMigrations(ctx context.Context, config *pgx.ConnConfig, server string, migrations fs.FS) (*tables.DB, error) {
	db, err := openDatabase(ctx, config, usedBy(server), migrations)
	if err != nil {
		return nil, err
	}
	return tables.Open(ctx, db, server)
}

// Migrations are the migrations of this version of Brevet.
func Migrations() fs.FS { return migrations }

// LockWrites waits for the writes of other processes.
const LockWrites = lockWrites

// UseKeys are the keys of the lock of each connection.
const UseKeys = useKeys

// Fail is the error of an operation that err has failed.
var Fail = fail

// Parse parses a connection string, and checks its files.
var Parse = parse

// Newest is the newest entry of the log that a process has seen.
type Newest = newest

// SetEpoch sets the epoch of the log.
func (n *newest) SetEpoch(epoch string) { n.epoch = epoch }

// MayMark returns the epoch of the log if the process may mark a database that lacks an entry.
func (n *newest) MayMark(lost *LostError) string { return n.mayMark(lost) }

// See takes an entry that a connection to a cluster has read.
func (n *newest) See(conn *pgx.Conn, cluster string, row [][]byte) {
	conn.PgConn().CustomData()[clusterKey] = cluster
	n.see(conn, row)
}

// Check checks a new connection.
func (n *newest) Check(ctx context.Context, conn *pgx.Conn) error { return n.check(ctx, conn) }
