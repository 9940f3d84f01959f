package floor

import (
	"context"
	"crypto/rand"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"

	_ "github.com/mattn/go-sqlite3" // the driver
)

// sqliteSchema holds the tables of Brevet's store that issuing writes to.
//
//go:embed sqlite.sql
var sqliteSchema string

// sqlite is a SQLite database, used over one connection. It implements journal.
type sqlite struct {
	db   *sql.DB
	conn *sql.Conn
	ctx  context.Context //nolint:containedctx // never canceled; for a context that can be, the SQLite driver starts a goroutine for each statement

	entries int64 // of the log; chain is the chain value of the last one
	chain   [32]byte

	// The statements live as long as the connection.
	begin, commit, rollback          *sql.Stmt
	insertIntent, deleteIntent, mark *sql.Stmt
	certificate, log, seq            *sql.Stmt
}

// openSQLite creates the database, with identities that have one certificate each.
func openSQLite(ctx context.Context, directory string, identities int) (journal, error) {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(directory, "floor.db")+"?_journal_mode=WAL&_synchronous=FULL&_foreign_keys=true")
	if err != nil {
		return nil, err
	}
	j := &sqlite{db: db, ctx: context.WithoutCancel(ctx)}
	if err := j.open(identities); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

func (j *sqlite) open(identities int) error {
	var err error
	if j.conn, err = j.db.Conn(j.ctx); err != nil {
		return err
	}
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"} {
		var got string
		if err := j.conn.QueryRowContext(j.ctx, "PRAGMA "+name).Scan(&got); err != nil || got != want {
			return errors.Join(err, fmt.Errorf("SQLite has set %s to %q, and a durable store needs %q", name, got, want))
		}
	}
	if _, err := j.conn.ExecContext(j.ctx, sqliteSchema); err != nil {
		return err
	}
	if _, err := j.conn.ExecContext(j.ctx, `INSERT INTO epochs (server) VALUES ('')`); err != nil {
		return err
	}
	if _, err := j.conn.ExecContext(j.ctx, `INSERT INTO issuers (issuer) VALUES (randomblob(32))`); err != nil {
		return err
	}
	for i := range identities {
		if err := j.register(i); err != nil {
			return err
		}
	}
	return j.prepare()
}

func (j *sqlite) register(i int) error {
	_, err := j.conn.ExecContext(j.ctx, `
		INSERT INTO identities (id, spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at)
		VALUES (?, ?, 1, 'device', '{}', '[]', '[]', 2, 1, 0)`, i+1, fmt.Sprintf("spiffe://dev.brevet.internal/device/%d", i))
	if err != nil {
		return err
	}
	_, err = j.conn.ExecContext(j.ctx, `INSERT INTO keys (id, rest, identity, uses) VALUES (?1, randomblob(24), ?1, 1)`, i+1)
	if err != nil {
		return err
	}
	_, err = j.conn.ExecContext(j.ctx, `
		INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
		                          crl_partition, state, reason, version, der)
		VALUES (?1, randomblob(20), 1, ?1, randomblob(16), ?1, 'device', 0, 0, 0, 0, 1, 0, 1, randomblob(700))`, i+1)
	return err
}

func (j *sqlite) prepare() error {
	for _, s := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&j.begin, `BEGIN IMMEDIATE`}, {&j.commit, `COMMIT`}, {&j.rollback, `ROLLBACK`},
		{&j.insertIntent, `INSERT INTO intents (batch, epoch, items) VALUES (?, 1, ?)`},
		{&j.deleteIntent, `DELETE FROM intents WHERE batch = ?`},
		{&j.mark, `UPDATE epochs SET last_batch = ?`},
		{&j.certificate, `
			INSERT INTO certificates (serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
			                          crl_partition, state, reason, version, der)
			VALUES (?, 1, ?2, ?, ?2, 'device', ?, ?, ?, 0, 1, 0, 1, ?)`},
		{&j.log, `INSERT INTO log (entry) VALUES (?)`},
		{&j.seq, `INSERT INTO chain (id, value) VALUES (?, ?)`},
	} {
		var err error
		if *s.to, err = j.conn.PrepareContext(j.ctx, s.text); err != nil { //nolint:sqlclosecheck // close closes the connection and with it its statements
			return fmt.Errorf("%s: %w", s.text, err)
		}
	}
	return nil
}

func (j *sqlite) close() error {
	if j.conn == nil {
		return j.db.Close()
	}
	return errors.Join(j.conn.Close(), j.db.Close())
}

// write implements journal.
func (j *sqlite) write(rows []row) error {
	return j.transact(func() error {
		err := j.batch(len(rows))
		for i := 0; i < len(rows) && err == nil; i++ {
			err = j.record(rows[i])
		}
		if err == nil {
			_, err = j.seq.ExecContext(j.ctx, j.entries, j.chain[:])
		}
		return err
	})
}

// writeEntry implements journal.
func (j *sqlite) writeEntry() error {
	return j.transact(func() error {
		_, err := j.log.ExecContext(j.ctx, make([]byte, entrySize))
		return err
	})
}

// transact commits what do writes.
func (j *sqlite) transact(do func() error) error {
	if _, err := j.begin.ExecContext(j.ctx); err != nil {
		return err
	}
	err := do()
	if err == nil {
		_, err = j.commit.ExecContext(j.ctx)
	}
	if err != nil {
		_, rerr := j.rollback.ExecContext(j.ctx)
		return errors.Join(err, rerr)
	}
	return nil
}

func (j *sqlite) batch(n int) error {
	id, items := make([]byte, 16), make([]byte, 34+itemSize*n)
	_, _ = rand.Read(id) // never fails
	_, err := j.insertIntent.ExecContext(j.ctx, id, items)
	if err != nil {
		return err
	}
	if _, err := j.deleteIntent.ExecContext(j.ctx, id); err != nil {
		return err
	}
	_, err = j.mark.ExecContext(j.ctx, id)
	return err
}

func (j *sqlite) record(r row) error {
	_, err := j.certificate.ExecContext(j.ctx, r.serial, r.identity, r.request, r.issuedAt.UnixMilli(), r.notBefore.UnixMilli(), r.notAfter.UnixMilli(), r.der)
	if err != nil {
		return err
	}
	var entry []byte
	entry, j.chain = newEntry(j.chain, r)
	result, err := j.log.ExecContext(j.ctx, entry)
	if err != nil {
		return err
	}
	j.entries, err = result.LastInsertId()
	return err
}
