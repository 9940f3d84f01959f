package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"

	sqlite3 "github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
)

// schema describes the tables of a file.
type schema struct {
	migrations fs.FS // goose migrations, in its root
	// applicationID is the application ID that the first migration sets. A file with another one belongs to another
	// program.
	applicationID int64
}

// NewerError means that a newer Brevet has written the store. The store was left unchanged.
type NewerError struct {
	Path  string
	Have  int64 // the version of the store's tables
	Known int64 // the newest version that this program supports
}

// Error names both versions and the next step.
func (e *NewerError) Error() string {
	return fmt.Sprintf("%s has tables of version %d, and this brevet knows them up to %d: run the newer brevet that wrote it", e.Path, e.Have, e.Known)
}

func (s schema) provider(db *sql.DB) (*goose.Provider, error) {
	return goose.NewProvider(goose.DialectSQLite3, db, s.migrations, goose.WithDisableGlobalRegistry(true))
}

func (s schema) migrate(ctx context.Context, db *sql.DB) error {
	provider, err := s.provider(db)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// checkVersion checks a store with a read-only connection, before a connection that could change it is opened.
func (s schema) checkVersion(ctx context.Context, d driver.Driver, path string) error {
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return err // a new store
	}
	err := s.inspect(ctx, d, path, readerDSN(path))
	var left sqlite3.Error
	if errors.As(err, &left) && left.Code == sqlite3.ErrReadonly {
		// A process was killed during a transaction. SQLite can roll it back only through a connection that may write. This
		// restores the last commit, whatever version the store has.
		err = s.inspect(ctx, d, path, recoveryDSN(path))
	}
	return err
}

// inspect returns an error if another program or a newer Brevet has written the database.
func (s schema) inspect(ctx context.Context, d driver.Driver, path, dsn string) error {
	db := sql.OpenDB(connector{d, dsn, nil})
	defer db.Close()
	provider, err := s.provider(db)
	if err != nil {
		return fail("read the migrations", err)
	}
	sources := provider.ListSources()
	known := sources[len(sources)-1].Version

	var owner, tables, migrated, have int64
	row := db.QueryRowContext(ctx, `
		SELECT (SELECT application_id FROM pragma_application_id),
		       (SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'goose\_%' ESCAPE '\' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'),
		       (SELECT count(*) FROM sqlite_schema WHERE name = 'goose_db_version')`)
	if err := row.Scan(&owner, &tables, &migrated); err != nil {
		return fail("read "+path, err)
	}
	if tables > 0 && (owner != s.applicationID || migrated == 0) {
		return fmt.Errorf("%s is another program's database: name another file", path)
	}
	if migrated == 0 {
		return nil // created but never filled
	}
	row = db.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`)
	if err := row.Scan(&have); err != nil {
		return fail("read the version of "+path, err)
	}
	if have > 0 && have < sources[0].Version {
		return fmt.Errorf("%s was made by a development version of brevet, before the first release, and this one does not read it: run the brevet that wrote it, or start again in another directory", path)
	}
	if have > known {
		return &NewerError{Path: path, Have: have, Known: known}
	}
	return nil
}
