package tables_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/storetest"
	"github.com/brevet-pki/brevet/translog"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Store {
		return openStore(t, filepath.Join(t.TempDir(), "brevet.db"))
	})
}

func openStore(t *testing.T, path string) storetest.Store {
	t.Helper()
	faults := &faultyDriver{}
	db, err := sqlite.OpenWith(context.Background(), path, faults)
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	// Second is nil, because the lock of the store allows only one handle at a time.
	return storetest.Store{
		Journal: db.CA(), Installations: db.CA(), Cross: db.CA(), RA: db.RA(), Policies: db.RA(), Keys: db.RA(), ACME: db.ACME(), Audit: db.RA(), Retention: db.RA(), CRLs: db.Revocation(),
		Statuses: db.Revocation(), Counts: db.Revocation(), Revocation: db.Revocation(), Rotations: db.Rotations(), Feed: db.Revocation(), Log: db.Log(),
		LoseCommit: faults.loseCommit,
		Replay: func(t *testing.T, log []translog.Sequenced) (original, fromLog map[string][]string) {
			return rows(t, path), rows(t, replayed(t, log))
		},
		Reopen: func(t *testing.T) storetest.Store {
			if err := db.Close(); err != nil {
				t.Fatalf("close the store: %v", err)
			}
			return openStore(t, path)
		},
	}
}
