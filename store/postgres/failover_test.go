package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

func openTables(t *testing.T, connection, server string) *tables.DB {
	t.Helper()
	db, err := postgres.Open(t.Context(), connection, server)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	return db
}

// logSomething writes an entry to the log.
func logSomething(db *tables.DB, detail string) error {
	why := pki.Refuse(pki.RuleAccess, "", "%s", detail)
	return db.RA().Refused(context.Background(), audit.Refusal{By: pki.ActorCommand("test"), Why: why, At: time.Now()})
}

// mustBeLost fails the test unless all operations fail temporarily with a LostError.
func mustBeLost(t *testing.T, db *tables.DB, isDifferent bool) {
	t.Helper()
	_, read := db.Log().Written(t.Context())
	_, looked := db.HasServed(t.Context())
	for what, err := range map[string]error{"write": logSomething(db, "more"), "read": read, "look": looked} {
		lost := (*postgres.LostError)(nil)
		if !errors.As(err, &lost) || !pki.IsTemporary(err) || lost.IsDifferent != isDifferent {
			t.Errorf("%s to a database that knows less: %v", what, err)
		}
	}
}

// TestDatabaseThatKnowsLess puts older data in the place of those that a store has open.
func TestDatabaseThatKnowsLess(t *testing.T) {
	c := ownCluster(t)
	first, second := openTables(t, c.Connection("postgres"), "first"), openTables(t, c.Connection("postgres"), "second")
	replace := func(old, now string) {
		t.Helper()
		must(t, c.End())
		if old != "" {
			must(t, c.Save(old))
		}
		if now != "" {
			must(t, c.Restore(now))
		}
		must(t, c.Run())
	}
	must(t, logSomething(first, "before"))
	replace("older", "")
	must(t, logSomething(first, "acknowledged"))
	if _, err := second.Log().Written(t.Context()); err != nil { // it has seen that entry, too
		t.Fatal(err)
	}
	replace("newer", "older")
	mustBeLost(t, first, false)
	mustBeLost(t, second, false)

	// A server that has not seen the entry goes on.
	third := openTables(t, c.Connection("postgres"), "third")
	must(t, logSomething(third, "other"))
	mustBeLost(t, first, true)
	must(t, logSomething(third, "another"))
	mustBeLost(t, second, true)

	replace("", "newer")
	mustBeLost(t, third, false)
	must(t, logSomething(first, "after"))
	must(t, logSomething(second, "after"))
}

// TestPromotionThatLosesEntries promotes a standby that lacks an entry, which only one of two servers has seen. Neither serves
// from it, nor does a server that starts, until a restore. The old primary is served again, although a server has used the
// other one meanwhile.
func TestPromotionThatLosesEntries(t *testing.T) {
	primary := ownCluster(t)
	must(t, primary.Exec(`CREATE ROLE server LOGIN`, `CREATE SCHEMA server AUTHORIZATION server`)) // no superuser
	standby, err := primary.Standby("standby")
	must(t, err)
	t.Cleanup(func() { _ = standby.Stop() })
	both := strings.Replace(postgrestest.Among("postgres", primary, standby), "user=brevet", "user=server", 1) + " target_session_attrs=primary"
	first, second := openTables(t, both, "first"), openTables(t, both, "second")
	must(t, primary.Exec(`ALTER ROLE server SET default_transaction_read_only = on`)) // the mark is written all the same
	must(t, logSomething(second, "before"))
	must(t, primary.Wait(`SELECT count(*) = 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()`))
	must(t, standby.End())
	must(t, logSomething(first, "acknowledged"))
	must(t, primary.Kill())
	must(t, standby.Run())
	must(t, standby.Promote())

	must(t, logSomething(second, "not seen")) // this server has not seen the entry that is missing
	superuser := useAsSuperuser(t, standby)   // whose connection the servers may not end
	mustBeLost(t, first, true)
	mustBe[*postgres.LostError](t, logSomething(first, "more"), "this server has marked it, so that no server serves from it until then; "+
		"it could not end the connections of a superuser: stop them")
	must(t, superuser.Close(t.Context()))
	mustBeIncomplete := func() {
		t.Helper()
		_, read := second.Log().Written(t.Context())
		_, looked := second.HasServed(t.Context())
		_, opened := postgres.Open(t.Context(), both, "third")
		for what, err := range map[string]error{"write": logSomething(second, "more"), "read": read, "look": looked, "open": opened} {
			mustBe[*rules.IncompleteError](t, err, "lacks log entry")
			if t.Failed() {
				t.Fatal(what)
			}
		}
	}
	mustBeIncomplete()

	// Either the old primary is back: the server that has used the other one finds that they differ, and ends no other.
	must(t, standby.End())
	must(t, primary.Run())
	must(t, logSomething(first, "after"))
	mustBeLost(t, second, true)
	must(t, logSomething(first, "after that"))
	openTables(t, both, "third")

	// Or a restore has the database for itself, and ends. A server that was not stopped refuses it for itself alone.
	must(t, primary.Kill())
	must(t, standby.Run())
	mustBeLost(t, first, false)
	restore := openRestore(t, both)
	mustBeLost(t, first, false)
	must(t, restore.Restoring().Begin(t.Context()))
	must(t, restore.Restoring().End(t.Context(), translog.RestoredLog{Epoch: translog.Epoch{1}}, pki.ActorCommand("restore"), time.Now()))
	must(t, restore.Close())
	must(t, logSomething(openTables(t, both, "fourth"), "restored"))
	_, read := first.Log().Written(t.Context())
	for _, err := range []error{logSomething(first, "more"), read} {
		mustBe[*postgres.RestoredError](t, err, "stop this server")
	}
	must(t, logSomething(openTables(t, both, "fifth"), "still served"))
}

// useAsSuperuser returns a connection of a superuser that uses the store of TestPromotionThatLosesEntries.
func useAsSuperuser(t *testing.T, c *postgrestest.Cluster) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Connection("postgres")+" application_name='a superuser' search_path=server")
	must(t, err)
	_, err = conn.Exec(t.Context(), `SELECT pg_advisory_lock_shared(`+postgres.UseKeys+`)`)
	must(t, err)
	return conn
}

// TestDatabaseWithoutStore puts an empty database in the place of one that a store has open.
func TestDatabaseWithoutStore(t *testing.T) {
	c := ownCluster(t)
	must(t, c.End())
	must(t, c.Save("empty"))
	must(t, c.Run())
	db := openTables(t, c.Connection("postgres"), "first")
	must(t, logSomething(db, "acknowledged"))
	must(t, c.End())
	must(t, c.Restore("empty"))
	must(t, c.Run())
	mustBeLost(t, db, false)
}

// TestFailover kills the primary while a server writes, and promotes a synchronous standby.
func TestFailover(t *testing.T) {
	primary := ownCluster(t)
	standby, err := primary.Standby("standby")
	must(t, err)
	t.Cleanup(func() { _ = standby.Stop() })
	must(t, primary.Synchronous("standby"))
	db := openTables(t, postgrestest.Among("postgres", standby, primary), "first") // the one that writes is the second one

	acknowledged, failed := make(chan int, 1<<16), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer close(acknowledged)
		failed <- writeUntilDone(ctx, db, acknowledged)
	}()
	last := 0
	wait := func() {
		t.Helper()
		for range 20 {
			n, more := <-acknowledged
			if !more {
				t.Fatal(<-failed)
			}
			last = n
		}
	}
	wait()
	must(t, primary.Kill())
	lost := time.Now()
	must(t, standby.Promote())
	promoted := time.Now()
	for len(acknowledged) > 0 {
		last = <-acknowledged
	}
	n, more := <-acknowledged
	if !more {
		t.Fatal(<-failed)
	}
	last = n
	t.Logf("it writes again %v after the loss of the primary, and %v after the promotion", time.Since(lost), time.Since(promoted))
	wait()
	cancel()
	must(t, <-failed)
	for n := range acknowledged {
		last = n
	}
	must(t, standby.Wait(`SELECT count(*) = 0 FROM generate_series(0, $1) n WHERE NOT EXISTS (
		SELECT 1 FROM log WHERE position(convert_to('write ' || n || ';', 'UTF8') IN entry) > 0)`, last))
}

// writeUntilDone writes numbered entries to the log, and repeats each until it is acknowledged.
func writeUntilDone(ctx context.Context, db *tables.DB, acknowledged chan<- int) error {
	for n := 0; ctx.Err() == nil; n++ {
		for {
			err := logSomething(db, fmt.Sprintf("write %d;", n))
			if err == nil {
				break
			}
			if lost := (*postgres.LostError)(nil); !pki.IsTemporary(err) || errors.As(err, &lost) {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
		acknowledged <- n
	}
	return nil
}
