// Package transfer moves a store from SQLite to PostgreSQL.
//
// All tables are copied in one transaction of PostgreSQL, with their row IDs, so that an interrupted transfer leaves nothing
// and can be repeated. Before the transaction is committed, each table is read back, and its number of rows and digest are
// compared with those of SQLite. Transfer refuses a store that a server has open, and a database with data of its own.
package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// copied are the tables that are copied, each after those that it refers to.
var copied = []string{
	"issuers", "ca_certificates", "cross_certificates", "policy_rules", "identities", "identity_labels", "tokens", "nonces", "sealing_key",
	"acme_external_keys", "acme_accounts", "acme_orders", "acme_authorizations", "policies", "token_revocations", "keys", "certificates",
	"bulk_revocations", "rotations", "operator_requests", "intents", "crl_numbers", "crls", "crl_points", "crl_segments", "crl_packed", "log",
	"log_epoch", "chain", "age", "restores",
}

// left are the tables that are not copied: the version of the schema, and the servers that use the store, which begin anew.
var left = []string{"goose_db_version", "epochs", "leases", "servers"}

// made are the tables that have rows in a store that is new.
var made = []string{"log_epoch", "sealing_key", "goose_db_version"}

// A Table is what a table has.
type Table struct {
	Name   string
	Rows   int64
	Digest [sha256.Size]byte // of all rows, in the order of the primary key
}

// ErrDone means that the database has the same rows already, because an earlier transfer was interrupted after its COMMIT.
var ErrDone = errors.New("the database has the rows of the store already")

// UsedError means that the database has data of its own.
type UsedError struct{ Table string }

// Error names a table with data, and the next step.
func (e *UsedError) Error() string {
	return fmt.Sprintf("the database has data in the table %s that is not that of this store: create an empty database", e.Table)
}

// Run copies the store at path to the database that a connection string names, and returns what the tables have. It returns
// [ErrDone] if an earlier call has done so. progress is called before each table is copied.
func Run(ctx context.Context, path, connection string, progress func(table string)) (tables []Table, err error) {
	done := false
	err = sqlite.Export(ctx, path, func(ctx context.Context, from engine.Querier) error {
		return postgres.Import(ctx, connection, func(ctx context.Context, to pgx.Tx) error {
			used, err := firstUsed(ctx, to)
			if err != nil {
				return err
			}
			if done = used != ""; done {
				tables, err = compare(ctx, from, to, used)
				return err
			}
			tables, err = copyAll(ctx, from, to, progress)
			return err
		})
	})
	if err == nil && done {
		err = ErrDone
	}
	return tables, err
}

// firstUsed returns the name of a table that has rows, except those that each new store has.
func firstUsed(ctx context.Context, to pgx.Tx) (string, error) {
	for _, table := range append(slices.Clone(copied), left...) {
		if slices.Contains(made, table) {
			continue
		}
		var used bool
		if err := to.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM `+table+`)`).Scan(&used); err != nil || used {
			return table, err
		}
	}
	return "", nil
}

// compare returns a UsedError unless the database has the rows of the store.
func compare(ctx context.Context, from engine.Querier, to pgx.Tx, used string) (tables []Table, err error) {
	for _, name := range copied {
		c, err := columnsOf(ctx, from, name)
		if err != nil {
			return nil, err
		}
		s := &source{columns: c, digest: sha256.New()}
		if s.rows, err = from.Query(ctx, c.query()); err != nil {
			return nil, err
		}
		for s.Next() {
		}
		have := Table{Name: name, Rows: s.count, Digest: [sha256.Size]byte(s.digest.Sum(nil))}
		if err := errors.Join(s.Err(), s.rows.Close()); err != nil {
			return nil, err
		}
		got, err := readBack(ctx, to, c)
		if err != nil {
			return nil, err
		}
		if got != have {
			return nil, &UsedError{used}
		}
		tables = append(tables, have)
	}
	return tables, nil
}

// copyAll copies all tables.
func copyAll(ctx context.Context, from engine.Querier, to pgx.Tx, progress func(string)) (tables []Table, err error) {
	if _, err := to.Exec(ctx, `LOCK TABLE `+strings.Join(append(slices.Clone(copied), "epochs", "servers"), ", ")+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		return nil, err
	}
	if _, err := to.Exec(ctx, `DELETE FROM log_epoch; DELETE FROM sealing_key`); err != nil {
		return nil, err
	}
	for _, name := range copied {
		progress(name)
		have, err := copyTable(ctx, from, to, name)
		if err != nil {
			return nil, fmt.Errorf("copy the table %s: %w", name, err)
		}
		tables = append(tables, have)
	}
	return tables, setSequences(ctx, from, to)
}

// copyTable copies one table, reads it back, and compares the two.
func copyTable(ctx context.Context, from engine.Querier, to pgx.Tx, name string) (Table, error) {
	c, err := columnsOf(ctx, from, name)
	if err != nil {
		return Table{}, err
	}
	s := &source{columns: c, digest: sha256.New()}
	if s.rows, err = from.Query(ctx, c.query()); err != nil {
		return Table{}, err
	}
	_, err = to.CopyFrom(ctx, pgx.Identifier{name}, c.names, s)
	if err := errors.Join(err, s.rows.Close()); err != nil {
		return Table{}, err
	}
	have := Table{Name: name, Rows: s.count, Digest: [sha256.Size]byte(s.digest.Sum(nil))}
	got, err := readBack(ctx, to, c)
	if err == nil && got != have {
		err = fmt.Errorf("it has %d rows with the digest %x in SQLite, and %d with %x in PostgreSQL: nothing was moved", have.Rows, have.Digest, got.Rows, got.Digest)
	}
	return have, err
}

// readBack returns what a table of PostgreSQL has.
func readBack(ctx context.Context, to pgx.Tx, c columns) (Table, error) {
	rows, err := to.Query(ctx, c.query())
	if err != nil {
		return Table{}, err
	}
	defer rows.Close()
	got, digest := Table{Name: c.table}, sha256.New()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return got, err
		}
		got.Rows++
		if err := addRow(digest, values); err != nil {
			return got, err
		}
	}
	got.Digest = [sha256.Size]byte(digest.Sum(nil))
	return got, rows.Err()
}

// setSequences makes new rows get higher IDs than those of the store. Epochs continue, because intents name them.
func setSequences(ctx context.Context, from engine.Querier, to pgx.Tx) error {
	for _, table := range append(slices.Clone(copied), "epochs") {
		var sequence *string
		err := to.QueryRow(ctx, `
			SELECT pg_get_serial_sequence(a.attrelid::regclass::text, 'id') FROM pg_attribute a
			WHERE a.attrelid = CAST($1 AS regclass) AND a.attname = 'id' AND a.attidentity <> ''`, table).Scan(&sequence)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && sequence == nil {
			continue
		}
		if err != nil {
			return err
		}
		var last int64
		query := `SELECT coalesce(max(id), 0) FROM ` + table
		if table == "epochs" {
			query = `SELECT max((SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'epochs'), (SELECT coalesce(max(epoch), 0) FROM intents))`
		}
		if err := from.QueryRow(ctx, query).Scan(&last); err != nil {
			return err
		}
		if _, err := to.Exec(ctx, `SELECT setval($1::regclass, $2, true)`, *sequence, max(last, 1)); err != nil {
			return err
		}
	}
	return nil
}

// columns are the columns of a table.
type columns struct {
	table        string
	names, types []string
	key          []string // of the primary key
}

// columnsOf reads the columns of a table of SQLite.
func columnsOf(ctx context.Context, from engine.Querier, table string) (columns, error) {
	c := columns{table: table}
	keys := map[int]string{}
	err := engine.Query(ctx, from, `SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid`, table).Each(func(rows engine.Scanner) error {
		var name, kind string
		var place int
		err := rows.Scan(&name, &kind, &place)
		c.names, c.types = append(c.names, name), append(c.types, kind)
		if place > 0 {
			keys[place] = name
		}
		return err
	})
	for place := 1; place <= len(keys); place++ {
		c.key = append(c.key, keys[place])
	}
	if err == nil && len(c.key) == 0 {
		err = fmt.Errorf("the table %s has no primary key", table)
	}
	return c, err
}

// query selects all rows in the order of the primary key, which is the same in both databases: texts compare by bytes.
func (c *columns) query() string {
	return `SELECT ` + strings.Join(c.names, ", ") + ` FROM ` + c.table + ` ORDER BY ` + strings.Join(c.key, ", ")
}

// source reads rows of SQLite, and adds each to a digest. It implements pgx.CopyFromSource.
type source struct {
	columns columns
	rows    engine.Cursor
	digest  hash.Hash
	count   int64
	values  []any
	err     error
}

// Next implements pgx.CopyFromSource.
func (s *source) Next() bool {
	if s.err != nil || !s.rows.Next() {
		return false
	}
	s.values = make([]any, len(s.columns.names))
	targets := make([]any, len(s.values))
	for i := range targets {
		targets[i] = &s.values[i]
	}
	if s.err = s.rows.Scan(targets...); s.err != nil {
		return false
	}
	for i, v := range s.values { // the driver returns some texts as bytes
		if b, ok := v.([]byte); ok && s.columns.types[i] == "TEXT" {
			s.values[i] = string(b)
		}
	}
	s.count++
	s.err = addRow(s.digest, s.values)
	return s.err == nil
}

// Values implements pgx.CopyFromSource.
func (s *source) Values() ([]any, error) { return s.values, nil }

// Err implements pgx.CopyFromSource.
func (s *source) Err() error { return errors.Join(s.err, s.rows.Err()) }

// addRow adds the values of a row to a digest, each with its type and length.
func addRow(digest hash.Hash, values []any) error {
	for _, v := range values {
		var kind byte
		var content []byte
		switch v := v.(type) {
		case nil:
		case int64:
			kind, content = 'i', binary.BigEndian.AppendUint64(nil, uint64(v)) //nolint:gosec // its bits
		case string:
			kind, content = 't', []byte(v)
		case []byte:
			kind, content = 'b', v
		default:
			return fmt.Errorf("a value has the type %T", v)
		}
		head := binary.BigEndian.AppendUint64([]byte{kind}, uint64(len(content)))
		_, _ = digest.Write(append(head, content...)) // never fails
	}
	_, _ = digest.Write([]byte{'\n'})
	return nil
}
