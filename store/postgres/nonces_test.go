package postgres_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

// nonces are those of a server.
type nonces interface {
	Next(ctx context.Context) (uint64, error)
	Use(ctx context.Context, number uint64) (isNew bool, err error)
}

func nextNonce(t *testing.T, n nonces) uint64 {
	t.Helper()
	number, err := n.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func useNonce(t *testing.T, n nonces, number uint64) bool {
	t.Helper()
	isNew, err := n.Use(t.Context(), number)
	if err != nil {
		t.Fatal(err)
	}
	return isNew
}

// A nonce of one server serves once, at any server. Of many servers that get it at the same time, one accepts it.
func TestNoncesServeOnceOnAllServers(t *testing.T) {
	connection := cluster.Schema(t)
	a, b := openTables(t, connection, "a").Nonces(), openTables(t, connection, "b").Nonces()
	seen := map[uint64]bool{}
	for n := range 3000 {
		from, at := a, b
		if n%2 == 0 {
			from, at = b, a
		}
		number := nextNonce(t, from)
		if seen[number] {
			t.Fatalf("two nonces have the number %d", number)
		}
		seen[number] = true
		if n%100 == 0 && (!useNonce(t, at, number) || useNonce(t, from, number) || useNonce(t, at, number)) {
			t.Fatalf("the nonce %d is not accepted exactly once", number)
		}
	}
	for range 20 {
		number := nextNonce(t, a)
		var accepted atomic.Int64
		var wg sync.WaitGroup
		for _, at := range []nonces{a, b, a, b} {
			wg.Go(func() {
				if isNew, err := at.Use(t.Context(), number); err != nil || isNew {
					accepted.Add(1)
				}
			})
		}
		wg.Wait()
		if n := accepted.Load(); n != 1 {
			t.Errorf("a nonce is accepted %d times", n)
		}
	}
}

// There is one row for each slot at most. A nonce is refused if a much newer one in its slot was used; the server then gives
// newer ones.
func TestUsedNoncesAreBounded(t *testing.T) {
	const slots = 1 << 20
	connection := cluster.Schema(t)
	db := openTables(t, connection, "a")
	n := db.Nonces()
	quiet := nextNonce(t, n)
	for round := range uint64(5) {
		for slot := range uint64(10) {
			if number := quiet + slot + (round+1)*slots; !useNonce(t, n, number) || useNonce(t, n, number) || useNonce(t, n, number-slots) {
				t.Errorf("of the nonces in a slot, number %d is not the only one that is new", number)
			}
		}
	}
	if useNonce(t, n, quiet) {
		t.Error("a nonce is accepted although a much newer one in its slot was used")
	}
	if next := nextNonce(t, n); next <= quiet+1 {
		t.Errorf("after a nonce was refused, the server gives number %d, which may be old too", next)
	}
	conn, err := pgx.Connect(t.Context(), connection)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var rows int
	var persistence string
	if err := conn.QueryRow(t.Context(), `SELECT count(*), min(relpersistence::text) FROM acme_nonces, pg_class WHERE oid = 'acme_nonces'::regclass`).Scan(&rows, &persistence); err != nil {
		t.Fatal(err)
	}
	if rows != 10 || persistence != "u" {
		t.Errorf("there are %d rows in a table of persistence %q, want 10 in an unlogged one", rows, persistence)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Use(t.Context(), nextNonce(t, n)); err == nil {
		t.Error("a nonce is accepted without the database")
	}
}
