package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"

	_ "github.com/mattn/go-sqlite3" // registers the driver sqlite3

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/tables"
)

// PeekInstalled reads the installed CA certificates from the store at path, in the order of installation. It does not take
// the lock, so that it works while a server has the store open. It writes nothing. If there is no file, it returns none.
func PeekInstalled(ctx context.Context, path string) (all []ca.InstalledCA, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "mode=ro&_query_only=1&_busy_timeout=5000"}
	db, err := sql.Open("sqlite3", dsn.String())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, fail("open "+path+" for reading", err)
	}
	defer func() { _ = tx.Rollback() }() // read only
	var application int64
	if err := tx.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&application); err != nil {
		return nil, fail("read "+path, err)
	}
	if application != applicationID {
		return nil, fmt.Errorf("%s is not a store of brevet: correct the state directory in the configuration", path)
	}
	return tables.ReadInstalled(ctx, transaction{tx})
}
