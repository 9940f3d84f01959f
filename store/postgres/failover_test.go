package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
	"github.com/brevet-pki/brevet/store/tables"
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
