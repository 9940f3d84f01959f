package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/tables"
)

// connectToLook returns a connection to the server of the store, without its locks and checks. Of several hosts, it takes the
// one that Open takes: a standby does not know the processes that use the primary.
func connectToLook(ctx context.Context, connection string) (*pgx.Conn, error) {
	config, err := parse(connection)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxConnect)
	defer cancel()
	return pgx.ConnectConfig(ctx, configure(config))
}

// PeekInstalled reads the installed CA certificates, in the order of installation, without opening the store. It writes
// nothing. If the database has no store, it returns none.
func PeekInstalled(ctx context.Context, connection string) (all []ca.InstalledCA, err error) {
	const what = "read the CA certificates"
	conn, err := connectToLook(ctx, connection)
	if err != nil {
		return nil, fail(what, hinted(err))
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('ca_certificates') IS NOT NULL`).Scan(&exists); err != nil || !exists {
		return nil, fail(what, err)
	}
	all, err = tables.ReadInstalled(ctx, &session{conn: conn})
	return all, fail(what, err)
}

// NameInUseError means that another process uses the database under the name of a server.
type NameInUseError struct {
	Server  string
	Address string // of the process; empty for one that is connected by a Unix socket
}

// Error names the server and the next step.
func (e *NameInUseError) Error() string {
	at := ""
	if e.Address != "" {
		at = " at " + e.Address
	}
	or := ""
	if most := maxProcessName - len(usedBy("").name) - 1; len(e.Server) >= most {
		or = fmt.Sprintf(", or as one whose name has the same first %d characters", most)
	}
	return fmt.Sprintf("store.server: another process runs as the server %s%s%s: give this server another name; if it is to replace that one, stop that one first",
		e.Server, or, at)
}

// Limits of CheckUnused.
const (
	// maxNameWait is how long it waits for the end of connections, such as those of a process that has just ended.
	maxNameWait = 5 * time.Second
	// maxProcessName is the length to which PostgreSQL cuts the name of a process, in bytes.
	maxProcessName = 63
)

// CheckUnused returns a [*NameInUseError] if another process uses the database under the name of a server, or under one that
// PostgreSQL has cut to the same name. Another error means that it could not look. The caller must not have opened the store.
func CheckUnused(ctx context.Context, connection, server string) error {
	const what = "look for other processes of the server"
	conn, err := connectToLook(ctx, connection)
	if err != nil {
		return fail(what, hinted(err))
	}
	ctx, cancel := context.WithTimeout(ctx, maxNameWait+maxLook)
	defer cancel()
	defer func() { _ = conn.Close(ctx) }() // it has only read
	for begun := time.Now(); ; time.Sleep(useInterval) {
		used := &NameInUseError{Server: server}
		err := conn.QueryRow(ctx, `
			SELECT coalesce(host(a.client_addr), '') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE `+usesBeside+` AND a.application_name = left($1, $2) LIMIT 1`, usedBy(server).name, maxProcessName).Scan(&used.Address)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return nil
		case err != nil:
			return fail(what, err)
		case time.Since(begun) > maxNameWait:
			return used
		}
	}
}
