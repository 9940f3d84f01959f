package postgres_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/tables"
)

// Blocking has an INSERT of an intent wait for an advisory lock.
const blocking = `
	CREATE FUNCTION blocking() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7, 7); RETURN NULL; END $$;
	CREATE TRIGGER blocking AFTER INSERT ON intents FOR EACH ROW EXECUTE FUNCTION blocking()`

// server opens a store with an epoch, and another connection to its database.
func server(t *testing.T) (*tables.DB, ca.Epoch, *pgx.Conn) {
	t.Helper()
	connection := cluster.Schema(t)
	db, err := postgres.Open(t.Context(), connection, "first")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	epoch, _, err := db.CA().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other, err := pgx.Connect(t.Context(), connection)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close(context.Background()) })
	return db, epoch, other
}

func executeOn(t *testing.T, conn *pgx.Conn, statements string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), statements).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// waiting waits until a number of backends wait for a lock that a connection holds.
func waiting(t *testing.T, conn *pgx.Conn, want int) {
	t.Helper()
	for n := 0; n < want; {
		row := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))`)
		if err := row.Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
}

// intentOf returns an intent with one item.
func intentOf(t *testing.T) ca.Intent {
	t.Helper()
	serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("a certificate"))
	issuer, err := pki.ParseIssuerID(hex.EncodeToString(digest[:]))
	if err != nil {
		t.Fatal(err)
	}
	return ca.Intent{Batch: ca.NewBatchID(), Items: []ca.IntentItem{{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Digest: digest[:], IssuedAt: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}}}
}

// TestLeaseIsRenewedDuringAWrite renews a lease while a transaction of the same server writes. The renewal must not wait.
func TestLeaseIsRenewedDuringAWrite(t *testing.T) {
	db, epoch, other := server(t)
	executeOn(t, other, blocking)
	executeOn(t, other, `SELECT pg_advisory_lock(7, 7)`)
	written := make(chan error, 1)
	go func() {
		_, err := db.CA().Write(context.Background(), epoch, nil, []ca.Intent{intentOf(t)})
		written <- err
	}()
	waiting(t, other, 1)
	if _, err := db.CA().Renew(t.Context(), epoch); err != nil {
		t.Errorf("the lease was not renewed during a transaction that writes: %v", err)
	}
	executeOn(t, other, `SELECT pg_advisory_unlock(7, 7)`)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

// TestLeaseIsRenewedDuringReads renews a lease while more reads wait than there are connections for reading.
func TestLeaseIsRenewedDuringReads(t *testing.T) {
	db, epoch, other := server(t)
	executeOn(t, other, `BEGIN; LOCK TABLE chain IN ACCESS EXCLUSIVE MODE`)
	const reads = 20
	ended := make(chan error, reads)
	for range reads {
		go func() {
			_, err := db.Log().Head(context.Background())
			ended <- err
		}()
	}
	waiting(t, other, 8)
	if _, err := db.CA().Renew(t.Context(), epoch); err != nil {
		t.Errorf("the lease was not renewed while many reads wait: %v", err)
	}
	executeOn(t, other, `ROLLBACK`)
	for range reads {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestEpochOfAnotherServer has a failover lose the epoch of a server, so that another one begins an epoch with its number. The
// first one must be refused, and begin another.
func TestEpochOfAnotherServer(t *testing.T) {
	db, epoch, conn := server(t)
	second, err := postgres.Open(t.Context(), conn.Config().ConnString(), "second")
	must(t, err)
	t.Cleanup(func() { must(t, second.Close()) })
	executeOn(t, conn, fmt.Sprintf(`DELETE FROM epochs; ALTER TABLE epochs ALTER COLUMN id RESTART WITH %d`, epoch))
	if again, _, err := second.CA().Begin(t.Context()); err != nil || again != epoch {
		t.Fatalf("the second server has the epoch %d, %v, want %d", again, err, epoch)
	}
	if _, err := db.CA().Renew(t.Context(), epoch); !errors.Is(err, ca.ErrFenced) {
		t.Errorf("renewing the lease of another server: %v", err)
	}
	if _, err := db.CA().Write(t.Context(), epoch, nil, nil); !errors.Is(err, ca.ErrFenced) {
		t.Errorf("writing in the epoch of another server: %v", err)
	}
	if _, err := db.Log().Sequence(t.Context(), 1); !errors.Is(err, pki.ErrNotLeader) {
		t.Errorf("leading in the epoch of another server: %v", err)
	}
	if again, _, err := db.CA().BeginAgain(t.Context(), epoch); err != nil || again != epoch+1 {
		t.Errorf("the first server has the epoch %d, %v, want %d", again, err, epoch+1)
	}
	if _, err := second.CA().Write(t.Context(), epoch, nil, nil); err != nil {
		t.Errorf("writing in the own epoch: %v", err)
	}
}
