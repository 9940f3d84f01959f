package tables_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	sqlite3 "github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

func mustOpen(t *testing.T, path string) *tables.DB {
	t.Helper()
	db, err := sqlite.Open(context.Background(), path)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { _ = db.Close() }) // the tests that care have closed it
	return db
}

// raw opens the file beside the store, as another program would.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db := sql.OpenDB(driverAt{&sqlite3.SQLiteDriver{}, path})
	t.Cleanup(func() { _ = db.Close() })
	return db
}

type driverAt struct {
	*sqlite3.SQLiteDriver
	path string
}

func (d driverAt) Connect(context.Context) (driver.Conn, error) { return d.Open(d.path) }
func (d driverAt) Driver() driver.Driver                        { return d.SQLiteDriver }

func mustExec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestPathsOfAnySpelling(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a b.db", "a?mode=memory.db", "a#b.db", "50%.db", "a%20b.db", "ä&x=1.db"} {
		db := mustOpen(t, filepath.Join(dir, name))
		if err := db.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: the store is not in its file: %v", name, err)
		}
	}
}

func TestFileModes(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, filepath.Join(dir, "brevet.db"))
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		seen[f.Name()] = true
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has the mode %04o", f.Name(), mode)
		}
	}
	for _, name := range []string{"brevet.db", "brevet.db-wal", "brevet.db-shm", "brevet.db.lock"} {
		if !seen[name] {
			t.Errorf("there is no %s", name)
		}
	}
}

func TestOpenRefusals(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "brevet.db")
	for name, c := range map[string]struct {
		prepare func(t *testing.T)
		path    string
		says    string
	}{
		"no directory": {nil, filepath.Join(dir, "none", "brevet.db"), "create it"},
		"others may read it": {func(t *testing.T) {
			if err := os.Chmod(path, 0o640); err != nil {
				t.Fatal(err)
			}
		}, path, "chmod 600"},
		"not a database": {func(t *testing.T) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("text "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, path, "not a database"},
		"another program's": {func(t *testing.T) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
			mustExec(t, raw(t, path), `CREATE TABLE theirs (x)`)
		}, path, "another program's"},
		"newer": {func(t *testing.T) {
			mustExec(t, raw(t, path), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
		}, path, "run the newer brevet"},
		"a development version's": {func(t *testing.T) {
			mustExec(t, raw(t, path), `UPDATE goose_db_version SET version_id = 5 WHERE version_id > 5`)
		}, path, "start again in another directory"},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(path)
			if err := mustOpen(t, path).Close(); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(t)
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			db, err := sqlite.Open(context.Background(), c.path)
			if err == nil {
				_ = db.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error %q does not say %q", err, c.says)
			}
			if pki.IsTemporary(err) {
				t.Errorf("the error %v claims to pass by itself", err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

func TestErrorsHaveTypes(t *testing.T) {
	dir := t.TempDir()
	_, err := sqlite.Open(context.Background(), filepath.Join(dir, "none", "brevet.db"))
	var missing *sqlite.MissingDirectoryError
	if !errors.As(err, &missing) || missing.Dir != filepath.Join(dir, "none") || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	path := filepath.Join(dir, "brevet.db")
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	mustExec(t, raw(t, path), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
	_, err = sqlite.Open(context.Background(), path)
	var newer *sqlite.NewerError
	if !errors.As(err, &newer) || newer.Have != 99 || newer.Known < 1 || newer.Path != path {
		t.Errorf("a newer store: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = sqlite.Open(context.Background(), path)
	var mode *sqlite.ModeError
	if !errors.As(err, &mode) || mode.Mode != 0o644 {
		t.Errorf("a store for everybody: %v", err)
	}
}

func TestOneOpener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	db := mustOpen(t, path)
	_, err := sqlite.Open(context.Background(), path)
	var locked *sqlite.LockedError
	if !errors.As(err, &locked) || locked.Path != path+".lock" || locked.PID != os.Getpid() {
		t.Fatalf("the second opener got %v", err)
	}
	if !strings.Contains(err.Error(), path+".lock") {
		t.Errorf("the error %q does not name the lock", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	mustOpen(t, path)
}

// TestDirectoryWithoutTheRightToWrite leaves root's rights behind on one thread, which ends with its goroutine.
func TestDirectoryWithoutTheRightToWrite(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != filepath.Dir(d) && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for d := dir; d != filepath.Dir(d) && d != os.TempDir(); d = filepath.Dir(d) {
			_ = os.Chmod(d, 0o700)
		}
	})
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if os.Geteuid() == 0 {
			if err := unix.Setfsuid(65534); err != nil {
				result <- err
				return
			}
		}
		_, err := sqlite.Open(context.Background(), filepath.Join(dir, "brevet.db"))
		result <- err
	}()
	err := <-result
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "give ") {
		t.Errorf("a directory without the right to write: %v", err)
	}
}

// carelessDriver opens connections with another setting than it was asked for.
type carelessDriver struct {
	sqlite3.SQLiteDriver
	asked, given string
}

func (d *carelessDriver) Open(dsn string) (driver.Conn, error) {
	return d.SQLiteDriver.Open(strings.Replace(dsn, d.asked, d.given, 1))
}

func TestSettingsAreReadBack(t *testing.T) {
	for _, d := range []*carelessDriver{
		{asked: "_synchronous=FULL", given: "_synchronous=NORMAL"}, {asked: "_synchronous=FULL", given: ""},
		{asked: "_journal_mode=WAL", given: "_journal_mode=DELETE"}, {asked: "_foreign_keys=true", given: "_foreign_keys=false"},
		{asked: "_query_only=true", given: ""},
	} {
		db, err := sqlite.OpenWith(context.Background(), filepath.Join(t.TempDir(), "brevet.db"), d)
		if err == nil {
			_ = db.Close()
			t.Errorf("a store with %q in place of %q was opened", d.given, d.asked)
		} else if !strings.Contains(err.Error(), "SQLite has set") {
			t.Errorf("%q in place of %q: %v", d.given, d.asked, err)
		}
	}
}
