package backup

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// changing is a log that calls change after the archive was verified, and before it is read.
type changing struct {
	Log
	change func()
}

// Head implements translog.Store.
func (c *changing) Head(ctx context.Context) (translog.Head, error) {
	if c.change != nil {
		c.change()
		c.change = nil
	}
	return c.Log.Head(ctx)
}

// TestArchiveThatChangesDuringARestore replaces the archive by a shorter one, as a copy does that is made again in place. The
// restore must not end without the entries.
func TestArchiveThatChangesDuringARestore(t *testing.T) {
	dir := t.TempDir()
	store, copied, path := filepath.Join(dir, "store.db"), filepath.Join(dir, "copy.db"), filepath.Join(dir, "log.archive")
	db, err := sqlite.Open(t.Context(), store)
	must(t, err)
	must(t, os.WriteFile(copied, nil, 0o600))
	_, err = sqlite.Snapshot(t.Context(), store, copied)
	must(t, err)
	states := archivesOf(t, db, path, 3)
	must(t, db.Close())

	db, err = sqlite.Open(t.Context(), copied)
	must(t, err)
	defer db.Close()
	// restore restores when the archive has two entries, and changes then.
	restore := func(changed []byte) (Result, error) {
		must(t, os.WriteFile(path, states[1], 0o600))
		r := Restore{
			Log:   &changing{db.Log(), func() { must(t, os.WriteFile(path, changed, 0o600)) }},
			Store: db.Restoring(), Archive: path, To: filepath.Join(t.TempDir(), "new.archive"),
			By: pki.ActorCommand("restore"), Now: time.Now(), Messages: slog.New(slog.DiscardHandler),
		}
		return r.Run(t.Context())
	}
	for what, changed := range map[string][]byte{"shorter": states[0], "torn": states[1][:len(states[1])-1]} {
		if result, err := restore(changed); err == nil || !strings.Contains(err.Error(), "changed") {
			t.Errorf("%s: restored %d entries, %v", what, result.Replayed, err)
		}
		if err := db.Restoring().Check(t.Context()); err == nil {
			t.Errorf("%s: the restore has ended", what)
		}
	}
	if result, err := restore(states[2]); err != nil || result.Replayed != 3 {
		t.Errorf("longer: restored %d entries, %v", result.Replayed, err)
	}
}

// TestArchiveBeforeTheFirstEntry restores a store from which old entries have left, with archives that end before the first
// one that is left, and just there.
func TestArchiveBeforeTheFirstEntry(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log.archive")
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, "store.db"))
	must(t, err)
	defer db.Close()
	archives := archivesOf(t, db, path, 4)
	page, err := db.Log().Entries(t.Context(), 3, 1)
	must(t, err)
	must(t, db.Log().Archived(t.Context(), 4))
	removed, err := db.Log().Remove(t.Context(), 1, translog.Head{Size: 3, Chain: page[0].Chain})
	must(t, err)
	if !removed {
		t.Fatal("no entry has left the store")
	}
	restore := func(archive []byte) error {
		must(t, os.WriteFile(path, archive, 0o600))
		r := Restore{
			Log: db.Log(), Store: db.Restoring(), Archive: path, To: filepath.Join(t.TempDir(), "new.archive"),
			By: pki.ActorCommand("restore"), Now: time.Now(), Messages: slog.New(slog.DiscardHandler),
		}
		_, err := r.Run(t.Context())
		return err
	}
	for n, archive := range archives[:2] {
		err := restore(archive)
		if behind, is := errors.AsType[*translog.BehindError](err); !is || behind.Archive.Size != uint64(n)+1 || behind.First != 4 {
			t.Errorf("with an archive of %d entries: %v", n+1, err)
		}
	}
	if err := restore(archives[2]); !isOlderArchive(err, 3) { // it has all that the store lacks
		t.Errorf("with an archive of 3 entries: %v", err)
	}
	must(t, restore(archives[3]))
}

// isOlderArchive reports whether an error says that an archive with so many entries is older than the store.
func isOlderArchive(err error, entries uint64) bool {
	older, is := errors.AsType[*OlderArchiveError](err)
	return is && older.Entries == entries
}

// archivesOf writes so many entries to the log of a store, and returns the archive at path after each of them.
func archivesOf(t *testing.T, db *tables.DB, path string, entries int) (archives [][]byte) {
	t.Helper()
	epoch, err := db.Log().Epoch(t.Context())
	must(t, err)
	archive, err := translog.OpenArchive(path, epoch, slog.New(slog.DiscardHandler))
	must(t, err)
	for i := range entries {
		why := pki.Refuse(pki.RuleAccess, "", "refusal %d", i)
		must(t, db.RA().Refused(t.Context(), audit.Refusal{By: pki.ActorCommand("test"), Why: why, At: time.Now()}))
		_, err := db.Log().Sequence(t.Context(), 10)
		must(t, err)
		must(t, translog.NewSequencer(db.Log(), archive, slog.New(slog.DiscardHandler)).Reconcile(t.Context()))
		state, err := os.ReadFile(path)
		must(t, err)
		archives = append(archives, state)
	}
	must(t, archive.Close())
	return archives
}
