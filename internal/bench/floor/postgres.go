package floor

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// postgresSchema holds the tables of Brevet's store that issuing writes to.
//
//go:embed postgres.sql
var postgresSchema string

// postgres is a PostgreSQL database, used over one connection. It implements journal. A transaction is one round trip: its
// statements are sent together, and one of them writes all rows of a table. PostgreSQL commits when it has executed the last
// statement that came with it (protocol, "Pipelining").
type postgres struct {
	conn *pgx.Conn
	ctx  context.Context //nolint:containedctx // never canceled, as for SQLite

	certificates int64 // the newest ID, like entries
	entries      int64 // of the log; chain is the chain value of the last one
	chain        [32]byte
}

// openPostgres creates the tables, with identities that have one certificate each.
func openPostgres(ctx context.Context, connection string, identities int) (journal, error) {
	conn, err := pgx.Connect(ctx, connection)
	if err != nil {
		return nil, err
	}
	j := &postgres{conn: conn, ctx: context.WithoutCancel(ctx), certificates: int64(identities)}
	if err := j.open(identities); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

func (j *postgres) open(identities int) error {
	for _, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var got string
		if err := j.conn.QueryRow(j.ctx, "SHOW "+name).Scan(&got); err != nil || got != "on" {
			return errors.Join(err, fmt.Errorf("PostgreSQL has set %s to %q, and a durable store needs it on", name, got))
		}
	}
	if _, err := j.conn.Exec(j.ctx, postgresSchema); err != nil {
		return err
	}
	var b pgx.Batch
	b.Queue(`INSERT INTO epochs (server) VALUES ('')`)
	b.Queue(`INSERT INTO issuers (issuer) VALUES (sha256('issuer'))`)
	b.Queue(`
		INSERT INTO identities (id, spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at)
		SELECT i, 'spiffe://dev.brevet.internal/device/' || i - 1, 1, 'device', '{}', '[]', '[]', 2, 1, 0 FROM generate_series(1, $1::bigint) i`, identities)
	b.Queue(`INSERT INTO keys (id, rest, identity, uses) SELECT i, substr(sha256(i::text::bytea), 1, 24), i, 1 FROM generate_series(1, $1::bigint) i`, identities)
	b.Queue(`
		INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
		                          crl_partition, state, reason, version, der)
		SELECT i, substr(h, 1, 20), 1, i, substr(h, 1, 16), i, 'device', 0, 0, 0, 0, 1, 0, 1, decode(repeat(encode(h, 'hex'), 22), 'hex')
		FROM generate_series(1, $1::bigint) i, sha256(i::text::bytea) h`, identities)
	return j.conn.SendBatch(j.ctx, &b).Close()
}

func (j *postgres) close() error { return j.conn.Close(j.ctx) }

// write implements journal.
func (j *postgres) write(rows []row) error {
	var b pgx.Batch
	id, items := make([]byte, 16), make([]byte, 34+itemSize*len(rows))
	_, _ = rand.Read(id) // never fails
	b.Queue(`INSERT INTO intents (batch, epoch, items) VALUES ($1, 1, $2)`, id, items)
	b.Queue(`DELETE FROM intents WHERE batch = $1`, id)
	b.Queue(`UPDATE epochs SET last_batch = $1`, id)
	n := len(rows)
	ids, indexes, identities := make([]int64, n), make([]int64, n), make([]int64, n)
	serials, requests, ders, entries := make([][]byte, n), make([][]byte, n), make([][]byte, n), make([][]byte, n)
	issued, begins, ends := make([]int64, n), make([]int64, n), make([]int64, n)
	last, chain := j.entries, j.chain
	for i, r := range rows {
		last++
		ids[i], indexes[i], identities[i] = j.certificates+int64(i)+1, last, r.identity
		serials[i], requests[i], ders[i] = r.serial, r.request, r.der
		issued[i], begins[i], ends[i] = r.issuedAt.UnixMilli(), r.notBefore.UnixMilli(), r.notAfter.UnixMilli()
		entries[i], chain = newEntry(chain, r)
	}
	b.Queue(`
		INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
		                          crl_partition, state, reason, version, der)
		SELECT id, serial, 1, identity, request, identity, 'device', issued, begins, ends, 0, 1, 0, 1, der
		FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[])
			r (id, serial, identity, request, issued, begins, ends, der)`,
		ids, serials, identities, requests, issued, begins, ends, ders)
	b.Queue(`INSERT INTO log (id, entry) SELECT * FROM unnest($1::bigint[], $2::bytea[])`, indexes, entries)
	b.Queue(`INSERT INTO chain (id, value) VALUES ($1, $2)`, last, chain[:])
	if err := j.conn.SendBatch(j.ctx, &b).Close(); err != nil {
		return err
	}
	j.certificates += int64(n)
	j.entries, j.chain = last, chain
	return nil
}

// writeEntry implements journal.
func (j *postgres) writeEntry() error {
	_, err := j.conn.Exec(j.ctx, `INSERT INTO log (id, entry) VALUES ($1, $2)`, j.entries+1, make([]byte, entrySize))
	if err == nil {
		j.entries++
	}
	return err
}
