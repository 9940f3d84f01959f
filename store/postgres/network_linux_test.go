package postgres_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// cabled starts a server in a network of its own, and returns a cable to it.
func cabled(t *testing.T) (*postgrestest.Cluster, *postgrestest.Cable) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a network namespace, in which PostgreSQL runs: run the test as root")
	}
	n, err := postgrestest.NewNetwork()
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	c := ownCluster(t)
	must(t, c.End())
	must(t, c.RunIn(n))
	cable, err := n.Cable()
	must(t, err)
	return c, cable
}

// openOver opens a database over a cable.
func openOver(t *testing.T, cable *postgrestest.Cable) engine.DB {
	t.Helper()
	config, err := pgx.ParseConfig("user=brevet dbname=postgres sslmode=disable host=" + cable.Host)
	must(t, err)
	db, err := postgres.OpenDatabase(t.Context(), config)
	must(t, err)
	return db
}

// TestNetworkIsCut cuts the network while transactions write, read and extend leases, in the middle of a transaction and
// between two. Each must fail because of the connection, not because its context ends, which takes minutes.
func TestNetworkIsCut(t *testing.T) {
	t.Parallel()
	_, cable := cabled(t)
	db := openOver(t, cable)
	t.Cleanup(func() { must(t, db.Close()) })
	var cut sync.WaitGroup // until the network is cut
	begun := make(chan bool)
	middle := func(ctx context.Context, tx engine.Querier) error {
		begun <- true
		cut.Wait()
		return tx.QueryRow(ctx, `SELECT id FROM log_epoch`).Scan(new(int64))
	}
	read := func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT id FROM log_epoch`).Scan(new(int64))
	}
	for range 2 {
		must(t, write(db))
		must(t, db.Read(t.Context(), "read", read))
		cut.Add(1)
		failures := map[string]chan error{"write": make(chan error, 1), "read": make(chan error, 1), "read much": make(chan error, 1)}
		go func() {
			failures["write"] <- db.Write(t.Context(), "write", func(ctx context.Context, tx *engine.Tx) error { return middle(ctx, tx) })
		}()
		go func() { failures["read"] <- db.Read(t.Context(), "read", middle) }()
		go func() { failures["read much"] <- db.ReadMany(t.Context(), "read much", middle) }()
		for range failures {
			<-begun
		}
		must(t, cable.Cut())
		cut.Done()
		for what, failed := range failures {
			checkCut(t, what+", in the middle", <-failed)
		}
		checkCut(t, "write", write(db))
		checkCut(t, "read", db.Read(t.Context(), "read", read))
		must(t, cable.Mend())
	}
	must(t, write(db))
	must(t, db.Read(t.Context(), "read", read))
}

func checkCut(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !pki.IsTemporary(err) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s while the network is cut: %v", what, err)
	}
}

// TestNetworkIsCutDuringStatement cuts the network while clients wait for responses and have nothing to send.
func TestNetworkIsCutDuringStatement(t *testing.T) {
	t.Parallel()
	c, cable := cabled(t)
	db := openOver(t, cable)
	t.Cleanup(func() { must(t, db.Close()) })
	sleep := func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT length(CAST(pg_sleep(600) AS text))`).Scan(new(int64))
	}
	failures := map[string]chan error{"write": make(chan error, 1), "read": make(chan error, 1)}
	go func() {
		failures["write"] <- db.Write(t.Context(), "write", func(ctx context.Context, tx *engine.Tx) error { return sleep(ctx, tx) })
	}()
	go func() { failures["read"] <- db.Read(t.Context(), "read", sleep) }()
	must(t, c.Wait(`SELECT count(*) = 2 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()`))
	must(t, cable.Cut())
	for what, failed := range failures {
		checkCut(t, what, <-failed)
	}
	must(t, cable.Mend())
}

// TestConnectionsOfLostClientsEnd loses a client whose connections are idle. PostgreSQL must end them, or they use up its
// connections.
func TestConnectionsOfLostClientsEnd(t *testing.T) {
	t.Parallel()
	c, cable := cabled(t)
	db := openOver(t, cable)
	t.Cleanup(func() { must(t, db.Close()) })
	must(t, write(db))
	const connections = `FROM pg_stat_activity WHERE application_name = 'brevet' AND client_addr IS NOT NULL`
	must(t, c.Wait(`SELECT count(*) > 0 `+connections))
	must(t, cable.Cut())
	must(t, c.Wait(`SELECT count(*) = 0 `+connections))
	must(t, cable.Mend())
	must(t, write(db))
}

// TestConnectionIsLostBeforeItIsSetUp loses a client when PostgreSQL has accepted its connection, and the client has set nothing
// yet. The settings of the account, as docs/operations.md has them, end the connection.
func TestConnectionIsLostBeforeItIsSetUp(t *testing.T) {
	t.Parallel()
	c, cable := cabled(t)
	must(t, execute(t, c.Connection("postgres"), documented(t)[0]...))
	for _, account := range []string{"brevet_server", "brevet_reader"} {
		conn, err := pgx.Connect(t.Context(), "user="+account+" dbname=brevet sslmode=disable host="+cable.Host)
		must(t, err)
		connections := `FROM pg_stat_activity WHERE usename = '` + account + `'`
		must(t, c.Wait(`SELECT count(*) = 1 `+connections))
		must(t, cable.Cut())
		must(t, c.Wait(`SELECT count(*) = 0 `+connections))
		must(t, cable.Mend())
		_ = conn.Close(t.Context()) // PostgreSQL has ended it
	}
}
