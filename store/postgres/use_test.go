package postgres_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

// openRestore opens a store for a restore.
func openRestore(t *testing.T, connection string) *tables.DB {
	t.Helper()
	db, err := postgres.OpenForRestore(t.Context(), connection, "first")
	must(t, err)
	return db
}

// mustBe fails the test unless an error has a type and contains a text.
func mustBe[T error](t *testing.T, err error, text string) {
	t.Helper()
	if _, ok := errors.AsType[T](err); !ok || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, want a %T with %q", err, *new(T), text)
	}
}

// TestRestoreNeedsTheDatabaseForItself opens a database for a restore while servers use it, and the other way round.
func TestRestoreNeedsTheDatabaseForItself(t *testing.T) {
	connection := cluster.Schema(t)
	first, second := openTables(t, connection, "one"), openTables(t, connection, "two")
	restore := func() error {
		db, err := postgres.OpenForRestore(t.Context(), connection, "first")
		if err == nil {
			must(t, db.Close())
		}
		return err
	}
	mustBe[*postgres.InUseError](t, restore(), "brevet one, brevet two; stop all servers")
	must(t, first.Close())
	mustBe[*postgres.InUseError](t, restore(), ": brevet two; stop all servers")
	must(t, second.Close())

	db := openRestore(t, connection)
	mustBe[*postgres.InUseError](t, restore(), "brevet restore")
	_, err := postgres.Open(t.Context(), connection, "one")
	mustBe[*postgres.ReservedError](t, err, "brevet restore; wait for its end")
	must(t, db.Restoring().Begin(t.Context()))
	must(t, db.Close())
	_, err = postgres.Open(t.Context(), connection, "one")
	mustBe[*rules.IncompleteError](t, err, "run the same brevet restore again")
	must(t, restore())
}

// cutAll ends all connections of servers.
func cutAll(t *testing.T, connection string) {
	t.Helper()
	must(t, execute(t, connection, `SELECT count(pg_terminate_backend(l.pid, 10000)) FROM pg_locks l
		WHERE l.classid = 1112692310 AND l.objid = CAST(current_schema() AS regnamespace)`))
}

// TestServerThatReconnectsDuringARestore cuts the connections of a server, so that a restore begins. The server must not read
// or write until it is started again.
func TestServerThatReconnectsDuringARestore(t *testing.T) {
	connection := cluster.Schema(t)
	server := openTables(t, connection, "one")
	must(t, logSomething(server, "before"))
	cutAll(t, connection)
	db := openRestore(t, connection)
	fails := func(check func(error)) {
		t.Helper()
		_, read := server.Log().Written(t.Context())
		_, looked := server.HasServed(t.Context())
		for _, err := range []error{logSomething(server, "more"), read, looked} {
			if check(err); !pki.IsTemporary(err) {
				t.Errorf("%v is not temporary", err)
			}
		}
	}
	fails(func(err error) { mustBe[*postgres.ReservedError](t, err, "brevet restore") })
	must(t, db.Restoring().Begin(t.Context()))
	must(t, db.Close())
	fails(func(err error) { mustBe[*rules.IncompleteError](t, err, "") })
}

// TestServerThatReconnectsAfterARestore cuts the connections of a server, and has a whole restore before it connects again. What
// the server remembers is of the log before, so it must not read or write until it is started again.
func TestServerThatReconnectsAfterARestore(t *testing.T) {
	connection := cluster.Schema(t)
	server := openTables(t, connection, "one")
	must(t, logSomething(server, "before"))
	cutAll(t, connection)
	db := openRestore(t, connection)
	must(t, db.Restoring().Begin(t.Context()))
	must(t, db.Restoring().End(t.Context(), translog.RestoredLog{Epoch: translog.Epoch{1}}, pki.ActorCommand("restore"), time.Now()))
	must(t, db.Close())
	_, read := server.Log().Written(t.Context())
	for _, err := range []error{logSomething(server, "more"), read} {
		mustBe[*postgres.RestoredError](t, err, "stop this server")
		if ends, ok := errors.AsType[endsServer](err); !pki.IsTemporary(err) || !ok || !ends.EndsServer() {
			t.Errorf("%v is not temporary, or does not end the server", err)
		}
	}
	must(t, logSomething(openTables(t, connection, "one"), "after the start"))
}

// endsServer is an error after which a server must not use the store any more.
type endsServer interface {
	error
	EndsServer() bool
}

// slowConn sends late.
type slowConn struct{ net.Conn }

// Write implements net.Conn.
func (c slowConn) Write(b []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return c.Conn.Write(b)
}

// TestSlowServerDuringARestore has a server connect again over a slow network while a restore has the database. The error must
// say so before the time for a new connection has ended.
func TestSlowServerDuringARestore(t *testing.T) {
	t.Parallel()
	connection := cluster.Schema(t)
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return slowConn{conn}, err
	}
	server, err := postgres.OpenWith(t.Context(), config, "one")
	must(t, err)
	defer func() { must(t, server.Close()) }()
	cutAll(t, connection)
	db := openRestore(t, connection)
	defer func() { must(t, db.Close()) }()
	mustBe[*postgres.ReservedError](t, logSomething(server, "more"), "brevet restore")
}

// TestRestoreThatLosesItsConnection cuts the connections of a restore, so that another one begins. The first one must change
// nothing more, also after the second one has ended.
func TestRestoreThatLosesItsConnection(t *testing.T) {
	connection := cluster.Schema(t)
	first := openRestore(t, connection)
	defer func() { _ = first.Close() }() // nothing was written
	must(t, first.Restoring().Begin(t.Context()))
	cutAll(t, connection)
	second := openRestore(t, connection)
	err := first.Restoring().Supply(t.Context(), []byte("a certificate"))
	mustBe[*postgres.InUseError](t, err, "brevet restore")
	must(t, second.Close())
	must(t, first.Restoring().Supply(t.Context(), []byte("a certificate")))
	must(t, execute(t, connection, `DELETE FROM restores`)) // as at the end of the other one
	if err := first.Restoring().Supply(t.Context(), []byte("a certificate")); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("after the end of the other restore: %v", err)
	}
}

// newer returns the migrations of a newer version of Brevet.
func newer(t *testing.T) fs.FS {
	t.Helper()
	all := fstest.MapFS{"migrations/00002_newer.sql": {Data: []byte("-- +goose Up\nCREATE TABLE newer (id BIGINT PRIMARY KEY);\n")}}
	names, err := fs.Glob(postgres.Migrations(), "migrations/*.sql")
	must(t, err)
	for _, name := range names {
		text, err := fs.ReadFile(postgres.Migrations(), name)
		must(t, err)
		all[name] = &fstest.MapFile{Data: text}
	}
	return all
}

// TestUpgradeOfSeveralServers starts a newer version while servers of the older one run. It must not change their tables. When
// they have stopped, it does, and the older version does not start any more.
func TestUpgradeOfSeveralServers(t *testing.T) {
	connection := cluster.Schema(t)
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	open := func(server string) (*tables.DB, error) {
		return postgres.OpenWithMigrations(t.Context(), config, server, newer(t))
	}
	first, second := openTables(t, connection, "one"), openTables(t, connection, "two")
	must(t, first.Close())
	_, err = open("one")
	mustBe[*postgres.InUseError](t, err, "this brevet needs version 2, and other processes use the database: brevet two; stop all servers")
	must(t, logSomething(second, "after the upgrade was refused"))
	must(t, openTables(t, connection, "one").Close()) // so the older version can go on
	cutAll(t, connection)                             // as a restart of PostgreSQL does
	upgraded, err := open("one")
	must(t, err)
	defer func() { must(t, upgraded.Close()) }()
	err = logSomething(second, "more")
	mustBe[*postgres.NewerError](t, err, "tables of version 2, and this brevet knows them up to 1: run the newer brevet")
	if ends, ok := errors.AsType[endsServer](err); !ok || !ends.EndsServer() {
		t.Error("the older server does not end")
	}
	_, err = postgres.Open(t.Context(), connection, "three")
	mustBe[*postgres.NewerError](t, err, "run the newer brevet")
	also, err := open("two")
	must(t, err)
	must(t, logSomething(also, "by the newer version"))
	must(t, also.Close())
}

// TestNameInUse looks for the process of a server name before it is opened again.
func TestNameInUse(t *testing.T) {
	connection := cluster.Schema(t)
	must(t, postgres.CheckUnused(t.Context(), connection, "one")) // there are no tables
	first := openTables(t, connection, "one")
	must(t, postgres.CheckUnused(t.Context(), connection, "two"))
	mustBe[*postgres.NameInUseError](t, postgres.CheckUnused(t.Context(), connection, "one"), "store.server: another process runs as the server one")
	must(t, first.Close())
	must(t, postgres.CheckUnused(t.Context(), connection, "one"))

	long := strings.Repeat("n", 56)
	second := openTables(t, connection, long+"-second")
	err := postgres.CheckUnused(t.Context(), connection, long+"-third") // PostgreSQL does not know which
	mustBe[*postgres.NameInUseError](t, err, long+"-third, or as one whose name has the same first 56 characters")
	must(t, postgres.CheckUnused(t.Context(), connection, long[1:]))
	must(t, second.Close())
}

// TestNameInUseAmongHosts looks for the process of a server name if the first hosts are one that does not respond, and a standby.
func TestNameInUseAmongHosts(t *testing.T) {
	t.Parallel()
	primary := ownCluster(t)
	standby, err := primary.Standby("standby")
	must(t, err)
	t.Cleanup(func() { _ = standby.Stop() })
	must(t, standby.Run())
	openTables(t, primary.Connection("postgres"), "one")
	silent := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(silent, ".s.PGSQL.5432")) // accepts nothing
	must(t, err)
	defer listener.Close()
	_, hosts, _ := strings.Cut(postgrestest.Among("postgres", standby, primary), "host=")
	err = postgres.CheckUnused(t.Context(), "host="+silent+","+hosts, "one")
	mustBe[*postgres.NameInUseError](t, err, "another process runs as the server one")
	if err := postgres.CheckUnused(t.Context(), "user=u dbname=d host="+silent, "one"); !pki.IsTemporary(err) {
		t.Errorf("with no host that responds: %v", err)
	}
}

// TestServersStartTogether opens an empty database as many servers at the same time.
func TestServersStartTogether(t *testing.T) {
	connection := cluster.Schema(t)
	var opened atomic.Int64
	ended := make(chan error)
	const servers = 12
	for range servers {
		go func() {
			db, err := postgres.Open(context.Background(), connection, "one")
			if err == nil {
				opened.Add(1)
				err = db.Close()
			}
			ended <- err
		}()
	}
	for range servers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := opened.Load(); n != servers {
		t.Errorf("%d of %d servers have opened the database", n, servers)
	}
}
