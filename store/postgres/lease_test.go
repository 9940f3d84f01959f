package postgres_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation/crl"
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

// TestLeaseThatEndsTooLate moves the ends of all leases a day ahead, as a server of PostgreSQL with a wrong clock writes them.
// Another server takes over nevertheless.
func TestLeaseThatEndsTooLate(t *testing.T) {
	db, of, conn := server(t)
	_, err := db.CA().Write(t.Context(), of, nil, []ca.Intent{intentOf(t)})
	must(t, err)
	second, err := postgres.Open(t.Context(), conn.Config().ConnString(), "second")
	must(t, err)
	t.Cleanup(func() { must(t, second.Close()) })
	epoch, _, err := second.CA().Begin(t.Context())
	must(t, err)
	if hasEnded, err := second.CA().Renew(t.Context(), epoch); err != nil || hasEnded {
		t.Fatalf("a lease has ended: %v, %v", hasEnded, err)
	}
	executeOn(t, conn, `UPDATE leases SET until = until + 86400000`)
	if hasEnded, err := second.CA().Renew(t.Context(), epoch); err != nil || !hasEnded {
		t.Errorf("a lease has ended: %v, %v", hasEnded, err)
	}
	if left, err := second.CA().TakeOver(t.Context(), epoch); err != nil || len(left) != 1 {
		t.Errorf("the second server takes over %v, %v", left, err)
	}
	if _, err := second.Log().Sequence(t.Context(), 1); err != nil {
		t.Errorf("the second server does not lead: %v", err)
	}
	if hasEnded, err := second.CA().Renew(t.Context(), epoch); err != nil || hasEnded {
		t.Errorf("another lease has ended: %v, %v", hasEnded, err)
	}
}

// TestLeaseOfCRLsThatEndsTooLate is the same for the lease of the CRLs of a CA.
func TestLeaseOfCRLsThatEndsTooLate(t *testing.T) {
	db, _, conn := server(t)
	second, err := postgres.Open(t.Context(), conn.Config().ConnString(), "second")
	must(t, err)
	t.Cleanup(func() { must(t, second.Close()) })
	_, _, err = second.CA().Begin(t.Context())
	must(t, err)
	issuer := intentOf(t).Items[0].Ref.Issuer
	leads := func(db *tables.DB, want bool) {
		t.Helper()
		if leads, err := db.Exchange().Lead(t.Context(), issuer); err != nil || leads != want {
			t.Errorf("Lead returns %v, %v, want %v", leads, err, want)
		}
	}
	const later = `UPDATE crl_leases SET until = until + 86400000`
	leads(db, true)
	request, err := pki.RequestIDFromBytes(bytes.Repeat([]byte{1}, 16))
	must(t, err)
	must(t, db.Delegates().PutDelegateRequest(t.Context(), ra.DelegateRequest{
		Issuer: issuer, Server: "first", RequestID: request, CSR: []byte("csr"), Certificate: []byte("certificate"), Signature: []byte("signature"),
	}))
	executeOn(t, conn, later)
	if led, err := second.Exchange().Led(t.Context()); err != nil || len(led) != 0 {
		t.Errorf("the issuers with a leader are %v, %v", led, err)
	}
	if all, err := db.Delegates().DelegateRequests(t.Context(), issuer); err != nil || len(all) != 0 {
		t.Errorf("a server whose lease has ended answers %v, %v", all, err)
	}
	imported := crl.CRL{Issuer: issuer, Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), DER: []byte("imported"), Size: 8}
	must(t, second.Revocation().PutCRLs(t.Context(), []crl.CRL{imported}, pki.ActorSystem("test"), time.Now()))
	leads(db, true) // it extends its own lease
	leads(second, false)
	executeOn(t, conn, later)
	leads(second, true)
	leads(db, false)
}
