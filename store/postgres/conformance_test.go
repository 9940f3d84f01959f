package postgres_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
	"github.com/brevet-pki/brevet/store/storetest"
	"github.com/brevet-pki/brevet/translog"
)

var cluster *postgrestest.Cluster

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if cluster, err = postgrestest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = cluster.Stop() }()
	return m.Run()
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Store {
		connection, release := cluster.Store(t)
		s := openStore(t, connection, "first")
		closeStore := s.Close
		s.Close = func(t testing.TB) {
			t.Helper()
			closeStore(t)
			release()
		}
		return s
	})
}

func openStore(t *testing.T, connection, server string) storetest.Store {
	t.Helper()
	cut := &cutter{to: cluster}
	config, err := pgx.ParseConfig(connection)
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = cut.dial
	db, err := postgres.OpenWith(t.Context(), config, server)
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	closeStore := func(t testing.TB) {
		t.Helper()
		if err := db.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	}
	t.Cleanup(func() { closeStore(t) })
	return storetest.Store{
		Journal: db.CA(), Installations: db.CA(), Cross: db.CA(), RA: db.RA(), Policies: db.RA(), Keys: db.RA(), ACME: db.ACME(), Audit: db.RA(),
		Retention: db.RA(), CRLs: db.Revocation(), Exchange: db.Exchange(), Delegates: db.Delegates(), Server: server, Statuses: db.Revocation(), Counts: db.Revocation(), Revocation: db.Revocation(),
		Rotations: db.Rotations(), Feed: db.Revocation(), Log: db.Log(),
		LoseCommit: cut.loseCommit,
		Replay: func(t *testing.T, log []translog.Sequenced) (original, fromLog map[string][]string) {
			return rows(t, connection), replayed(t, log)
		},
		Close:   closeStore,
		Second:  func(t *testing.T) storetest.Store { return openStore(t, connection, server) },
		Another: func(t *testing.T) storetest.Store { return openStore(t, connection, "second") },
		Reopen: func(t *testing.T) storetest.Store {
			if err := db.Close(); err != nil {
				t.Fatalf("close the store: %v", err)
			}
			return openStore(t, connection, server)
		},
	}
}

// cutter cuts connections where a COMMIT is sent.
type cutter struct {
	to    *postgrestest.Cluster
	next  atomic.Pointer[bool]
	early atomic.Bool // cuts after the request of a commit that applies, without waiting for its end
}

// loseCommit has the connection of the next commit cut before the response, and before the request unless it applies.
func (c *cutter) loseCommit(applies bool) { c.next.Store(&applies) }

func (c *cutter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.to.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &cutConn{conn, c}, nil
}

type cutConn struct {
	net.Conn
	cutter *cutter
}

// Write implements net.Conn.
func (c *cutConn) Write(b []byte) (int, error) {
	if !postgrestest.HasCommit(b) {
		return c.Conn.Write(b)
	}
	applies := c.cutter.next.Swap(nil)
	if applies == nil {
		return c.Conn.Write(b)
	}
	if *applies {
		if _, err := c.Conn.Write(b); err != nil {
			return 0, err
		}
		if !c.cutter.early.Load() {
			if _, err := c.Read(make([]byte, 1)); err != nil { // the server has committed, because its response fits into its buffer
				return 0, err
			}
		}
	}
	return 0, c.Close()
}
