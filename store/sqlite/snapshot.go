package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
)

// Snapshot writes a consistent copy of the store at path to an empty file, also while a server has the store open. It does not
// delay the server's transactions, but the WAL grows until the copy is complete. It returns the version of the tables. Snapshot
// does not flush the copy.
func Snapshot(ctx context.Context, path, to string) (version int64, err error) {
	if _, err := os.Stat(path); err != nil {
		return 0, fmt.Errorf("copy the store: %w", err)
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "mode=ro&_busy_timeout=5000"}
	db, err := sql.Open("sqlite3", dsn.String())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var application int64
	if err := db.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&application); err != nil {
		return 0, fail("read "+path, err)
	}
	if application != applicationID {
		return 0, fmt.Errorf("%s is not a store of brevet: correct the state directory in the configuration", path)
	}
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, to); err != nil {
		return 0, fail("copy "+path, err)
	}
	copied, err := sql.Open("sqlite3", (&url.URL{Scheme: "file", Path: to, RawQuery: "mode=ro&immutable=1"}).String())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, copied.Close()) }()
	err = copied.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	return version, fail("read the version of the copy", err)
}
