package tables_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// together runs jobs in one write transaction, which begins when all of them are in the queue.
func together(t *testing.T, db *tables.DB, jobs ...func() error) []error {
	t.Helper()
	return queued(t, db.Hold, db.Waiting, func() {}, jobs...)
}

// queued runs jobs that wait for hold to end, and calls queued when all of them are in the queue.
func queued(
	t *testing.T, hold func(held chan<- struct{}, release <-chan struct{}) error, waiting func() int, queued func(), jobs ...func() error,
) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	errs := make([]error, len(jobs))
	var all sync.WaitGroup
	all.Go(func() {
		if err := hold(held, release); err != nil {
			t.Error(err)
		}
	})
	<-held
	for i, job := range jobs {
		all.Go(func() { errs[i] = job() })
		for waiting() <= i {
			time.Sleep(time.Millisecond)
		}
	}
	queued()
	close(release)
	all.Wait()
	return errs
}

// TestLooksShareATransaction checks that each of the short reads in one transaction has its own result.
func TestLooksShareATransaction(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	for n := range uint64(2) {
		if err := register(db, n+1)(); err != nil {
			t.Fatal(err)
		}
	}
	look := func(ctx context.Context, n uint64) func() error {
		return func() error {
			st, err := db.RA().IssuanceState(ctx, ra.IssuanceQuery{Identity: device(n).ID})
			if err == nil && st.Identity.ID != device(n).ID {
				return fmt.Errorf("read %s", st.Identity.ID)
			}
			return err
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	errs := queued(t, db.HoldLooks, db.WaitingLooks, func() {
		cancel()
		for db.WaitingLooks() == 5 {
			time.Sleep(time.Millisecond)
		}
	},
		look(t.Context(), 1),
		look(t.Context(), 3), // not registered
		look(canceled, 1),
		func() (err error) {
			defer func() { err = fmt.Errorf("recovered: %v", recover()) }()
			return db.PanicLooking()
		},
		look(t.Context(), 2))
	if errs[0] != nil || errs[4] != nil {
		t.Errorf("the reads of registered identities failed: %v, %v", errs[0], errs[4])
	}
	if refusal, ok := pki.AsRefusal(errs[1]); !ok || refusal.Rule != pki.RuleIdentity {
		t.Errorf("the read of another identity: %v, want a refusal by %s", errs[1], pki.RuleIdentity)
	}
	if !errors.Is(errs[2], context.Canceled) {
		t.Errorf("the read that was canceled while it waited: %v", errs[2])
	}
	if !strings.Contains(fmt.Sprint(errs[3]), "recovered: on purpose") {
		t.Errorf("the read that panicked: %v", errs[3])
	}
}

func register(db *tables.DB, n uint64) func() error {
	return func() error {
		_, err := db.RA().CreateIdentity(context.Background(), ra.Registration{Identity: device(n)}, pki.ActorCommand("test"))
		return err
	}
}

func registered(t *testing.T, db *tables.DB, n uint64) bool {
	t.Helper()
	_, err := db.RA().Identity(context.Background(), device(n).ID)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleIdentity {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// differing registers device n with other attributes than register does.
func differing(db *tables.DB, n uint64) func() error {
	return func() error {
		id := device(n)
		id.Labels = map[string]string{"site": "elsewhere"}
		_, err := db.RA().CreateIdentity(context.Background(), ra.Registration{Identity: id}, pki.ActorCommand("test"))
		return err
	}
}

func TestFailureAffectsOneJob(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	failure := errors.New("after it has written")
	errs := together(t, db, register(db, 1),
		func() error { return db.FailAfterWriting(device(2), failure) },
		differing(db, 1),
		func() error { return fill(db, 500_000) }, // pages enough to outgrow what SQLite keeps of a savepoint in memory
		register(db, 3))
	if errs[0] != nil || errs[3] != nil || errs[4] != nil {
		t.Errorf("the errors of the jobs are %v, want only two failures", errs)
	}
	if !errors.Is(errs[1], failure) {
		t.Errorf("the failed job returned %v", errs[1])
	}
	if refusal, ok := pki.AsRefusal(errs[2]); !ok || refusal.Rule != pki.RuleIdentityExists {
		t.Errorf("got %v, want a refusal by %s", errs[2], pki.RuleIdentityExists)
	}
	for n, want := range map[uint64]bool{1: true, 2: false, 3: true} {
		if registered(t, db, n) != want {
			t.Errorf("identity %d is registered: %v", n, !want)
		}
	}
	if size := unsequenced(t, db); size != 3 {
		t.Errorf("%d log entries, want 3", size)
	}
}

func TestJobsShareALostCommit(t *testing.T) {
	for _, applies := range []bool{false, true} {
		t.Run(fmt.Sprintf("applies %v", applies), func(t *testing.T) {
			faults := &faultyDriver{}
			db, err := sqlite.OpenWith(context.Background(), filepath.Join(t.TempDir(), "brevet.db"), faults)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			// The third job is refused because of the first. If the commit fails, that refusal is not returned.
			errs := together(t, db, func() error { faults.loseCommit(applies); return register(db, 1)() }, register(db, 2), differing(db, 1))
			for i, err := range errs {
				if _, refused := pki.AsRefusal(err); err == nil || refused || !pki.IsTemporary(err) {
					t.Errorf("job %d got %v, want a Temporary error", i, err)
				}
			}
			for n := range uint64(2) {
				if registered(t, db, n+1) != applies {
					t.Errorf("identity %d is registered: %v", n+1, !applies)
				}
			}
		})
	}
}

func TestPanicAffectsOneJob(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	errs := together(t, db, register(db, 1),
		func() (err error) {
			defer func() { err = fmt.Errorf("recovered: %v", recover()) }()
			return db.PanicAfterWriting(device(2))
		},
		register(db, 3))
	if errs[0] != nil || errs[2] != nil || !strings.Contains(fmt.Sprint(errs[1]), "recovered: on purpose") {
		t.Errorf("got %v", errs)
	}
	if registered(t, db, 2) || !registered(t, db, 1) || !registered(t, db, 3) {
		t.Error("not exactly the jobs that did not panic are on record")
	}
}

// A full disk ends the whole transaction, so that no job may succeed.
func TestJobsShareAFullDisk(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	if err := db.OnWriter(context.Background(), `PRAGMA max_page_count = 100`); err != nil {
		t.Fatal(err)
	}
	errs := together(t, db, register(db, 1), func() error { return fill(db, 500_000) }, register(db, 2))
	mustBeUnavailable(t, errs[1], "free some")
	for i, n := range map[int]uint64{0: 1, 2: 2} {
		if registered(t, db, n) != (errs[i] == nil) {
			t.Errorf("identity %d is on record: %v, and its caller got the error %v", n, errs[i] != nil, errs[i])
		}
	}
}

func TestWALIsCheckpointed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	m := newMill(t, path)
	ids := []pki.SPIFFEID{m.identity(1), m.identity(2), m.identity(3), m.identity(4)}
	size := func() int64 {
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	database := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	// As many bytes again and again: without checkpoints the WAL would hold them all.
	for database() < 16<<20 {
		m.issue(ids, nil)
		if wal := size(); wal > 24<<20 {
			t.Fatalf("the WAL has grown to %d bytes, and the database has %d", wal, database())
		}
	}
	db := m.db
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close left a WAL: %v", err)
	}
}
