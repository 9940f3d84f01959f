package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/tables"
)

// PeekInstalled reads the installed CA certificates, in the order of installation, without opening the store. It writes
// nothing. If the database has no store, it returns none.
func PeekInstalled(ctx context.Context, connection string) (all []ca.InstalledCA, err error) {
	const what = "read the CA certificates"
	conn, err := pgx.Connect(ctx, connection)
	if err != nil {
		return nil, fail(what, err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('ca_certificates') IS NOT NULL`).Scan(&exists); err != nil || !exists {
		return nil, fail(what, err)
	}
	all, err = tables.ReadInstalled(ctx, &session{conn: conn})
	return all, fail(what, err)
}
