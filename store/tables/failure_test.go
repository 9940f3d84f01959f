package tables_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

var at = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// fill writes a log entry of approximately the given number of bytes.
func fill(db *tables.DB, octets int) error {
	return db.RA().Refused(context.Background(), audit.Refusal{
		By: pki.ActorSystem("test"), Why: &pki.Refusal{Rule: pki.RuleAccess, Detail: strings.Repeat("x", octets)}, At: at,
	})
}

func mustBeUnavailable(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil || !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 {
		t.Fatalf("got %v, want a Temporary error with a time to wait", err)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("the error %q does not say %q", err, says)
	}
}

func TestDiskFullPasses(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	if err := db.OnWriter(context.Background(), `PRAGMA max_page_count = 100`); err != nil {
		t.Fatal(err)
	}
	mustBeUnavailable(t, fill(db, 500_000), "free some")
	if size := unsequenced(t, db); size != 0 {
		t.Errorf("%d log entries of a transaction that found no space", size)
	}
	if err := db.OnWriter(context.Background(), `PRAGMA max_page_count = 100000`); err != nil {
		t.Fatal(err)
	}
	if err := fill(db, 500_000); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if size := unsequenced(t, db); size != 1 {
		t.Errorf("%d log entries, want 1", size)
	}
}

// unsequenced sequences all entries and returns their number.
func unsequenced(t *testing.T, db *tables.DB) (n int) {
	t.Helper()
	for {
		batch, err := db.Log().Sequence(context.Background(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			return n
		}
		n += len(batch)
	}
}

func TestReadOnlyPasses(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	if err := db.OnWriter(context.Background(), `PRAGMA query_only = 1`); err != nil {
		t.Fatal(err)
	}
	mustBeUnavailable(t, fill(db, 1), "read-only")
	if err := fill(db, 1); err != nil {
		t.Errorf("the writer did not get a new connection: %v", err)
	}
}

func TestForeignLockPasses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	db := mustOpen(t, path)
	if err := db.OnWriter(context.Background(), `PRAGMA busy_timeout = 1`); err != nil {
		t.Fatal(err)
	}
	other := raw(t, path)
	other.SetMaxOpenConns(1)
	mustExec(t, other, `BEGIN IMMEDIATE`)
	mustBeUnavailable(t, fill(db, 1), "locked")
	if _, err := db.Log().Head(context.Background()); err != nil {
		t.Errorf("reading beside a foreign lock: %v", err)
	}
	mustExec(t, other, `ROLLBACK`)
	if err := fill(db, 1); err != nil {
		t.Errorf("after the foreign lock: %v", err)
	}
}

// TestCanceledCallerLeavesQueue checks that a canceled caller leaves the queue, and that a transaction that has begun is not
// aborted.
func TestCanceledCallerLeavesQueue(t *testing.T) {
	faults := &faultyDriver{}
	db, err := sqlite.OpenWith(context.Background(), filepath.Join(t.TempDir(), "brevet.db"), faults)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	impatient, giveUp := context.WithCancel(context.Background())
	// The first caller gives up before its transaction has written, and the second while it waits for its turn.
	faults.next.Store(&fault{applies: true, begun: giveUp, before: func() {
		if err := fillFor(impatient, db); err == nil {
			t.Error("a caller canceled in the queue succeeded")
		}
	}})
	if err := fillFor(impatient, db); err != nil {
		t.Errorf("a transaction that had begun was aborted: %v", err)
	}
	if size := unsequenced(t, db); size != 1 {
		t.Errorf("%d log entries, want 1", size)
	}
}

func fillFor(ctx context.Context, db *tables.DB) error {
	return db.RA().Refused(ctx, audit.Refusal{By: pki.ActorSystem("test"), Why: pki.Refuse(pki.RuleAccess, "", "no"), At: at})
}

func TestCloseWaitsForTheWriter(t *testing.T) {
	faults := &faultyDriver{}
	path := filepath.Join(t.TempDir(), "brevet.db")
	db, err := sqlite.OpenWith(context.Background(), path, faults)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	faults.next.Store(&fault{applies: true, before: func() {
		go func() { closed <- db.Close() }()
		if _, err := sqlite.Open(context.Background(), path); err == nil {
			t.Error("the lock was gone while a transaction was open")
		}
	}})
	if err := fill(db, 1); err != nil {
		t.Errorf("a transaction beside Close: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if size := unsequenced(t, mustOpen(t, path)); size != 1 {
		t.Errorf("%d log entries, want 1", size)
	}
	if err := fill(db, 1); err == nil {
		t.Error("a closed store accepted an entry")
	}
}
