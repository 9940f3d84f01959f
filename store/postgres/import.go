package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// Import opens the database as [Open] does, with its tables up to date, and calls write in one transaction, which is durable
// if Import returns nil. No server writes meanwhile. If the connection fails at the COMMIT, the transaction may have been
// applied.
func Import(ctx context.Context, connection string, write func(context.Context, pgx.Tx) error) (err error) {
	config, err := parse(connection)
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, config, use{name: "brevet store migrate", mayRestore: true}, migrations)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	const what = "copy the tables"
	conn, err := db.connect(ctx)
	if err != nil {
		return fail(what, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // after the transaction
	return fail(what, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockWrites); err != nil {
			return err
		}
		return write(ctx, tx)
	}))
}
