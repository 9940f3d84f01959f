// Package postgres keeps a store in a PostgreSQL database, which several processes can use at the same time. The statements
// are in package tables.
//
// A change is durable when its method returns without an error. For this, every new connection checks that fsync,
// full_page_writes and synchronous_commit are on, and [Open] refuses a server where they are not.
//
// One transaction at a time writes, of whatever process. It takes an advisory lock first, so that what it reads is what the
// last one has left, and the indexes of the log are in the order of the commits. The transaction of a process that stops in
// the middle ends after [maxIdle].
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables"
)

// Limits of a store.
const (
	maxReaders = 8               // connections for reading; further reads wait
	maxRead    = 5 * time.Minute // duration of a read
	maxLook    = 5 * time.Second // duration of a read of few rows
	maxWrite   = time.Minute     // duration of a transaction that writes, with its wait for those of other processes
	maxApart   = 2 * time.Second // duration of a transaction of Apart, with the wait for its connection
	maxConnect = 5 * time.Second // duration of a new connection
	maxEnd     = time.Second     // duration of the end of a transaction that only reads, and of the cancellation of a statement
	// maxIdle is how long a transaction may be open without a statement. Then PostgreSQL ends it, so that a process that
	// stands still does not keep the others from writing.
	maxIdle = 3 * time.Second
	// maxIdleApart is the same for a transaction of Apart. It is shorter, so that the row of a lease is no longer locked when
	// another server deletes it.
	maxIdleApart = time.Second
)

// database is an open database. It implements engine.DB.
type database struct {
	config *pgx.ConnConfig // for everything but the writer
	use    use
	// version is the version to which this process has brought the tables. It is set before there is a second connection.
	version int64
	writes  *engine.Group[engine.Do] // the writes that wait for the connection
	finds   *engine.Group[*find]     // the reads of one row that wait for the next statement
	writer  *pgx.Conn                // nil while there is none; it belongs to the transaction of writes
	reader  *pgxpool.Pool
	apart   *pgxpool.Pool // has connections that no read can take
	closed  bool          // like writer
	many    chan struct{} // holds a value for each read of very many rows
	newest  newest        // of the log

	closing  sync.Once
	closeErr error
}

// Open opens the store in the database that a connection string names (libpq, "Connection Strings"), and migrates its
// tables. The database must exist. Several servers with different names can have it open.
func Open(ctx context.Context, connection, server string) (*tables.DB, error) {
	config, err := parse(connection)
	if err != nil {
		return nil, err
	}
	return OpenWith(ctx, config, server)
}

// OpenForRestore opens the store as Open does, for a process that restores it. It returns an [*InUseError] if another process
// uses the database. Until the end of this process, no other one can.
func OpenForRestore(ctx context.Context, connection, server string) (*tables.DB, error) {
	config, err := parse(connection)
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, config, use{name: "brevet restore", alone: true}, migrations)
	if err != nil {
		return nil, err
	}
	return tables.Open(ctx, db, server)
}

// OpenWith is Open with a configuration of pgx, so that tests can cut connections.
func OpenWith(ctx context.Context, config *pgx.ConnConfig, server string) (*tables.DB, error) {
	db, err := openDatabase(ctx, config, usedBy(server), migrations)
	if err != nil {
		return nil, err
	}
	return tables.Open(ctx, db, server)
}

func openDatabase(ctx context.Context, config *pgx.ConnConfig, use use, migrations fs.FS) (_ *database, err error) {
	db := &database{config: configure(config), use: use, many: make(chan struct{}, maxReaders/2)}
	db.config.RuntimeParams["application_name"] = use.name
	db.newest.changesEpoch = use.alone || use.mayRestore
	db.writes, db.finds = engine.NewGroup(db.writeAll, 0), engine.NewGroup(db.findAll, 4)
	defer func() {
		if err != nil {
			_ = db.Close() // the first error is reported
		}
	}()
	if db.writer, err = db.connectWith(ctx, check); err != nil {
		return nil, fail("connect to PostgreSQL", hinted(err))
	}
	if err := db.migrate(ctx, migrations); err != nil {
		return nil, fail("bring the tables up to date", hinted(err))
	}
	if err := db.take(ctx, db.writer); err != nil {
		return nil, fail("use the database", err)
	}
	if err := db.newest.check(ctx, db.writer); err != nil {
		return nil, fail("read which database it is", hinted(err))
	}
	if db.reader, err = db.newPool(ctx, maxReaders); err != nil {
		return nil, fail("open for reading", err)
	}
	if db.apart, err = db.newPool(ctx, engine.ApartConnections); err != nil {
		return nil, fail("open for leases", err)
	}
	return db, nil
}

// newPool returns a pool of connections, which are checked.
func (db *database) newPool(ctx context.Context, most int32) (*pgxpool.Pool, error) {
	pool, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, err
	}
	pool.ConnConfig, pool.MaxConns, pool.AfterConnect = keptOpen(db.config), most, db.admitReader
	return pgxpool.NewWithConfig(ctx, pool)
}

// configure returns the configuration of a connection. If there are several hosts, it takes the one that writes.
func configure(given *pgx.ConnConfig) *pgx.ConnConfig {
	c := given.Copy()
	hosts := map[string]bool{fmt.Sprint(c.Host, c.Port): true}
	for _, f := range c.Fallbacks { // which also has each host again without TLS, if the connection string allows that
		hosts[fmt.Sprint(f.Host, f.Port)] = true
	}
	c.ConnectTimeout = maxConnect / time.Duration(len(hosts)) // of one host
	c.DialFunc = limitSilence(c.DialFunc)
	if len(hosts) > 1 && c.ValidateConnect == nil {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	c.RuntimeParams["client_encoding"] = "UTF8" // which Go has, whatever an account or a connection string says
	c.StatementCacheCapacity = statements
	c.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement // the only one whose results are all binary
	return c
}

// statements is the number of prepared statements that a connection caches: more than the store has.
const statements = 256

// keptOpen returns the configuration of connections for reading. If the context of a statement ends, pgx has PostgreSQL end
// the statement, and keeps the connection.
func keptOpen(given *pgx.ConnConfig) *pgx.ConnConfig {
	c := given.Copy()
	c.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: maxEnd}
	}
	return c
}

// ownDial is in the context of a connection that connect opens.
type ownDial struct{}

// withoutCancel returns the configuration of the writing connection. When such a connection ends early, pgx opens another
// one to cancel its statement. PostgreSQL then no longer waits for a synchronous standby, and a failover loses what it has
// committed.
func withoutCancel(given *pgx.ConnConfig) *pgx.ConnConfig {
	c := given.Copy()
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if ctx.Value(ownDial{}) == nil {
			return nil, errors.New("a transaction that writes is not canceled")
		}
		return given.DialFunc(ctx, network, address)
	}
	return c
}

// admit sets up and checks a new connection, that its database has all that this process has seen, and that this process may
// use it.
func (db *database) admit(ctx context.Context, conn *pgx.Conn) error {
	if err := check(ctx, conn); err != nil {
		return err
	}
	err := db.newest.check(ctx, conn)
	if lost := (*LostError)(nil); errors.As(err, &lost) {
		return errors.Join(err, db.refuseForAll(ctx, conn, lost))
	}
	if err != nil {
		return err
	}
	return db.take(ctx, conn)
}

// admitReader is admit for connections that only read. Those of a process that has the database for itself take no lock,
// because that for writing has it.
func (db *database) admitReader(ctx context.Context, conn *pgx.Conn) error {
	if !db.use.alone {
		return db.admit(ctx, conn)
	}
	if err := check(ctx, conn); err != nil {
		return err
	}
	return db.newest.check(ctx, conn)
}

// connect returns a new connection for writing, which is checked.
func (db *database) connect(ctx context.Context) (*pgx.Conn, error) {
	return db.connectWith(ctx, db.admit)
}

// connectWith returns a new connection for writing that admit accepts.
func (db *database) connectWith(ctx context.Context, admit func(context.Context, *pgx.Conn) error) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, maxConnect)
	defer cancel()
	conn, err := pgx.ConnectConfig(context.WithValue(ctx, ownDial{}, true), withoutCancel(db.config))
	if err != nil {
		return nil, err
	}
	if err := admit(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// Close implements engine.DB.
func (db *database) Close() error {
	db.closing.Do(func() {
		for _, pool := range []*pgxpool.Pool{db.reader, db.apart} {
			if pool != nil {
				pool.Close()
			}
		}
		db.writes.Alone(func() {
			db.closed = true
			if db.writer != nil {
				ctx, cancel := context.WithTimeout(context.Background(), maxConnect)
				defer cancel()
				db.closeErr = db.writer.Close(ctx)
			}
		})
	})
	return db.closeErr
}

// Waiting implements engine.DB.
func (db *database) Waiting() int { return db.writes.Waiting() }
