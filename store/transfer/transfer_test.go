package transfer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
	"github.com/brevet-pki/brevet/store/sqlite"
)

var cluster *postgrestest.Cluster

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if cluster, err = postgrestest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = cluster.Stop() }()
	return m.Run()
}

// rows has a row of every table. x stands for bytes: x(32,'a') are 32 bytes 'a'.
const rows = `
INSERT INTO issuers VALUES (3, x(32,'a')), (7, x(32,'b'));
INSERT INTO ca_certificates VALUES (2, 3, x(32,'f'), x(32,'k'), 'issuing', x(5,'d'), 1000, 1);
INSERT INTO cross_certificates VALUES (4, 3, 7, x(32,'g'), x(5,'d'), 1000);
INSERT INTO policy_rules VALUES (5, 'cameras', 1);
INSERT INTO identities VALUES (9, 'spiffe://fleet.example/device/ü', 1, 'device', '{"a":"b"}', '[]', '[]', 2, NULL, 1, 1000, x(33,'s'), 5, NULL, 0, 0);
INSERT INTO identity_labels VALUES ('a', 'b', 9), ('Z', '', 9);
INSERT INTO tokens (id, token, identity, revision, profile, expires_at, replaces, created_by, created_at, era)
	VALUES (8, x(32,'t'), 9, 1, 'device', 2000, 0, 'system:x', 1000, 0);
INSERT INTO nonces VALUES (5000, x(16,'n'));
INSERT INTO sealing_key VALUES (1, x(32,'k')) ON CONFLICT (id) DO UPDATE SET key = excluded.key;
INSERT INTO acme_external_keys (id, public_id, identity, sealed, created_by, created_at, expires_at) VALUES (6, x(16,'e'), 9, x(40,'h'), 'system:x', 1, 2);
INSERT INTO acme_accounts VALUES (4, x(16,'i'), x(9,'p'), x(32,'t'), 1, NULL, 6, 1000);
INSERT INTO acme_orders VALUES (12, x(16,'o'), 4, '[]', 'server', 1, 2, NULL, x(52,'c'), x(16,'n'), 99);
INSERT INTO acme_authorizations VALUES (13, x(16,'u'), 12, 0, 'tok', 3, 1, NULL, NULL, NULL);
INSERT INTO policies VALUES (1, x(10,'{'), x(32,'q'), 'system:x', 1, '');
INSERT INTO token_revocations VALUES (9, 0, 'lost');
INSERT INTO keys VALUES (-9223372036854775807, x(24,'r'), 9, NULL, 1), (77, x(24,'r'), 9, 5, 0);
INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after, crl_partition, state, reason, version, account, der)
	VALUES (21, x(20,'s'), 3, 9, x(16,'q'), 77, 'device', 1, 1, 9, 7, 1, 0, 1, 4, x(0,'d'));
INSERT INTO certificates (id, serial, issuer, issued_at, not_after, crl_partition, state, reason, revoked_at, version, changed, digest)
	VALUES (25, x(20,'z'), 7, 1, 9, 7, 3, 5, 2, 1, 2, x(32,'d'));
INSERT INTO bulk_revocations VALUES (2, 3, NULL, NULL, NULL, 'device', NULL, NULL, NULL, NULL, 1, 1, NULL, 'system:x', 5, '', 25, 0, 0, NULL, 0, 0, 0);
INSERT INTO rotations VALUES (3, NULL, 9, NULL, NULL, NULL, NULL, NULL, NULL, 60000, 'system:x', 1, '', 25, 1, NULL, 0, 0, 0);
INSERT INTO operator_requests VALUES (31, 9, x(16,'r'), x(32,'c'), 1, 2, 3, 2, NULL, 3);
INSERT INTO intents VALUES (x(16,'b'), 41, x(3,'i'));
INSERT INTO crl_numbers VALUES (3, x(20,'1'));
INSERT INTO crls (issuer, crl_partition, delta, number, this_update, next_update, position, digest, size, entries) VALUES (3, 0, 0, x(20,'1'), 1, 2, 3, x(32,'d'), 4, 5);
INSERT INTO crl_points VALUES (1, 3, 7, 'http://a.example', '');
INSERT INTO crl_segments VALUES (14, 3, 7, x(20,'0'), x(4,'e'), 9);
INSERT INTO crl_packed VALUES (3, 7, 2, x'0102030405060708090a0b0c0d0e0f10');
INSERT INTO log VALUES (1, x(3,'1')), (2, x(3,'2'));
INSERT INTO chain VALUES (2, x(32,'c'));
INSERT INTO age VALUES (1, 5, 5);
INSERT INTO restores VALUES (1, NULL);
INSERT INTO sqlite_sequence VALUES ('epochs', 40);
`

// bytesOf replaces x(n,'c') by a literal.
func bytesOf(text string) string {
	for {
		before, rest, found := strings.Cut(text, "x(")
		if !found {
			return text
		}
		var n int
		var c rune
		_, _ = fmt.Sscanf(rest, "%d,'%c')", &n, &c) // the constant above is correct
		_, after, _ := strings.Cut(rest, ")")
		text = before + "X'" + strings.Repeat(fmt.Sprintf("%02x", c), n) + "'" + after
	}
}

// filled returns the path of a store with a row in every table.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	db, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.ExecContext(t.Context(), bytesOf(rows)); err != nil {
		t.Fatal(err)
	}
	return path
}

func ignore(string) {}

// shared are the tables that PostgreSQL alone has: with what servers tell each other.
var shared = []string{"acme_nonces", "crl_chunks", "crl_leases", "delegate_requests"}

// TestEveryTableIsKnown fails if a table of either schema is neither copied nor left on purpose.
func TestEveryTableIsKnown(t *testing.T) {
	known := slices.Sorted(slices.Values(append(slices.Clone(copied), left...)))
	raw, err := sql.Open("sqlite3", filled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	var have []string
	result, err := raw.QueryContext(t.Context(), `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name`)
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	for result.Next() {
		var name string
		if err := result.Scan(&name); err != nil {
			t.Fatal(err)
		}
		have = append(have, name)
	}
	if err := result.Err(); err != nil || !slices.Equal(have, known) {
		t.Errorf("SQLite has the tables %v, want %v, %v", have, known, err)
	}
	connection := cluster.Schema(t)
	query(t, connection, func(conn *pgx.Conn) {
		rows, err := conn.Query(t.Context(), `SELECT tablename::text COLLATE "C" FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1`)
		if err != nil {
			t.Fatal(err)
		}
		have, err := pgx.CollectRows(rows, pgx.RowTo[string])
		have = slices.DeleteFunc(have, func(name string) bool { return slices.Contains(shared, name) })
		if err != nil || !slices.Equal(have, known) {
			t.Errorf("PostgreSQL has the tables %v, want %v, %v", have, known, err)
		}
	})
}

// query opens the store in a database, and calls do with a connection.
func query(t *testing.T, connection string, do func(*pgx.Conn)) {
	t.Helper()
	err := postgres.Import(t.Context(), connection, func(context.Context, pgx.Tx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), connection)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	do(conn)
}

// TestRun interrupts a transfer before each table, and repeats it. Afterwards new rows get other IDs than the old ones.
func TestRun(t *testing.T) {
	path, connection := filled(t), cluster.Schema(t)
	for _, table := range copied {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Run(ctx, path, connection, func(next string) {
			if next == table {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("interrupted before %s: %v", table, err)
		}
	}
	tables, err := Run(t.Context(), path, connection, ignore)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Rows == 0 {
			t.Errorf("the table %s has no row, so it is not tested", table.Name)
		}
	}
	if again, err := Run(t.Context(), path, connection, ignore); !errors.Is(err, ErrDone) || !slices.Equal(again, tables) {
		t.Errorf("a repeated transfer: %v, want ErrDone", err)
	}
	query(t, connection, func(conn *pgx.Conn) {
		for statement, want := range map[string]int64{
			`INSERT INTO issuers (issuer) VALUES (decode(repeat('cc', 32), 'hex')) RETURNING id`: 8,
			`INSERT INTO epochs (server) VALUES ('a') RETURNING id`:                              42,
			`INSERT INTO log (entry) VALUES ('') RETURNING id`:                                   3,
		} {
			var id int64
			if err := conn.QueryRow(t.Context(), statement).Scan(&id); err != nil || id != want {
				t.Errorf("%s: %d, %v, want %d", statement, id, err, want)
			}
		}
	})
	var used *UsedError
	if _, err := Run(t.Context(), path, connection, ignore); !errors.As(err, &used) {
		t.Errorf("a database with other data: %v, want a UsedError", err)
	}
}

// TestRunRefusesAnOpenStore checks that a store is not copied while a server uses it.
func TestRunRefusesAnOpenStore(t *testing.T) {
	path := filled(t)
	db, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // nothing was written
	var locked *sqlite.LockedError
	if _, err := Run(t.Context(), path, cluster.Schema(t), ignore); !errors.As(err, &locked) {
		t.Errorf("%v, want a LockedError", err)
	}
}

// TestRunComparesTheTables has PostgreSQL alter or drop a row that it is sent. Nothing may be moved then, and a repeated
// transfer succeeds without the fault.
func TestRunComparesTheTables(t *testing.T) {
	for what, body := range map[string]string{
		"a row is altered": `NEW.profile := 'other'; RETURN NEW;`,
		"a row is lost":    `RETURN NULL;`,
	} {
		t.Run(what, func(t *testing.T) {
			path, connection := filled(t), cluster.Schema(t)
			query(t, connection, func(conn *pgx.Conn) {
				execute := func(statement string) {
					t.Helper()
					if _, err := conn.Exec(t.Context(), statement); err != nil {
						t.Fatal(err)
					}
				}
				execute(`CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + body + ` END $$`)
				execute(`CREATE TRIGGER spoil BEFORE INSERT ON rotations FOR EACH ROW WHEN (NEW.id = 3) EXECUTE FUNCTION spoil()`)
				_, err := Run(t.Context(), path, connection, ignore)
				if err == nil || !strings.Contains(err.Error(), "copy the table rotations: it has 1 rows") || !strings.Contains(err.Error(), "nothing was moved") {
					t.Errorf("%v, want an error that names the table", err)
				}
				var left int
				if err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM identities) + (SELECT count(*) FROM log)`).Scan(&left); err != nil || left != 0 {
					t.Errorf("%d rows were moved, %v", left, err)
				}
				execute(`DROP TRIGGER spoil ON rotations`)
			})
			if _, err := Run(t.Context(), path, connection, ignore); err != nil {
				t.Error(err)
			}
		})
	}
}
