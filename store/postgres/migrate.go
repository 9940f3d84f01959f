package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// NewerError means that a newer Brevet has written the store. The store was left unchanged.
type NewerError struct {
	Have  int64 // the version of the store's tables
	Known int64 // the newest version that this program supports
}

// Error names both versions and the next step.
func (e *NewerError) Error() string {
	return fmt.Sprintf("the database has tables of version %d, and this brevet knows them up to %d: run the newer brevet that wrote it", e.Have, e.Known)
}

// EndsServer returns true: a server that meets such tables must be replaced by the newer one.
func (*NewerError) EndsServer() bool { return true }

// migrate brings the tables up to date. Processes that start at the same time wait for each other. It changes tables only if
// no other process uses the database, and returns an [*InUseError] otherwise: an older server that runs does not know them.
func (db *database) migrate(ctx context.Context, migrations fs.FS) (err error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	handle := stdlib.OpenDB(*db.config, stdlib.OptionAfterConnect(check))
	defer func() { err = errors.Join(err, handle.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, handle, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	conn, err := handle.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return conn.Raw(func(driver any) error {
		return db.migrateWith(ctx, driver.(*stdlib.Conn).Conn(), provider) //nolint:forcetypeassert // the driver of stdlib.OpenDB
	})
}

// migrateWith is migrate with a connection for the locks, which end with it.
func (db *database) migrateWith(ctx context.Context, conn *pgx.Conn, provider *goose.Provider) error {
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(`+migrationKeys+`)`); err != nil {
		return err
	}
	have, known, err := provider.GetVersions(ctx)
	if err != nil {
		return err
	}
	db.version = known
	if have > known {
		return &NewerError{Have: have, Known: known}
	}
	if have == known {
		return nil
	}
	ok, err := tryLock(ctx, conn, `pg_try_advisory_lock`)
	if err != nil {
		return err
	}
	if !ok {
		users, err := usersBeside(ctx, conn)
		return errors.Join(&InUseError{fmt.Sprintf("the tables have version %d, and this brevet needs version %d", have, known), users}, err)
	}
	_, err = provider.Up(ctx)
	return err
}

// migrationKeys are the keys of the advisory lock of the process that changes the tables: one that differs from that of
// lockWrites, and the schema. The connection's lock_timeout limits the wait.
const migrationKeys = `1112692309, CAST(CAST(quote_ident(current_schema()) AS regnamespace) AS integer)`
