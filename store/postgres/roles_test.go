package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// documented returns the statements in docs/operations.md for the accounts of the database, in blocks.
func documented(t *testing.T) [][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	must(t, err)
	_, section, _ := strings.Cut(string(text), "### Accounts of the database\n")
	section, _, _ = strings.Cut(section, "\n### ")
	var blocks [][]string
	for _, part := range strings.Split(section, "```sql\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		blocks = append(blocks, slices.DeleteFunc(strings.Split(block, ";\n"), func(s string) bool { return s == "" }))
	}
	if len(blocks) != 3 {
		t.Fatalf("%d blocks of SQL", len(blocks))
	}
	return blocks
}

// execute executes statements in a database.
func execute(t *testing.T, connection string, statements ...string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), connection)
	must(t, err)
	defer conn.Close(context.Background())
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// as returns a connection string of an account.
func as(c *postgrestest.Cluster, account string) string {
	return strings.Replace(c.Connection("brevet"), "user=brevet", "user="+account, 1)
}

// TestAccounts sets up the accounts as docs/operations.md says.
func TestAccounts(t *testing.T) {
	c, blocks := ownCluster(t), documented(t)
	must(t, execute(t, c.Connection("postgres"), blocks[0]...))
	must(t, execute(t, c.Connection("brevet"), blocks[1]...))
	db := openTables(t, as(c, "brevet_server"), "first")
	must(t, logSomething(db, "by the server's account"))
	must(t, execute(t, c.Connection("brevet"), blocks[2]...))

	reader, err := pgx.Connect(t.Context(), as(c, "brevet_reader"))
	must(t, err)
	defer reader.Close(context.Background())
	result, err := reader.Query(t.Context(), `SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = CAST('brevet' AS regnamespace)`)
	must(t, err)
	all, err := pgx.CollectRows(result, pgx.RowTo[string])
	must(t, err)
	granted := strings.Join(blocks[2], "")
	for _, table := range all {
		for _, statement := range []string{`INSERT INTO %s DEFAULT VALUES`, `DELETE FROM %s`, `TRUNCATE %s`, `DROP TABLE %s`, `SELECT FROM %s FOR UPDATE`, `DO $$ BEGIN LOCK TABLE %s IN SHARE MODE; END $$`} {
			mustBeForbidden(t, reader, fmt.Sprintf(statement, table))
		}
		if strings.Contains(granted, "brevet."+table) {
			_, err := reader.Exec(t.Context(), `SELECT * FROM `+table)
			must(t, err)
		} else {
			mustBeForbidden(t, reader, `SELECT FROM `+table)
		}
	}
	for _, statement := range []string{
		`UPDATE certificates SET state = 1`, `UPDATE log SET entry = ''`, `CREATE TABLE brevet.a ()`, `CREATE TABLE public.a ()`, `CREATE TEMPORARY TABLE a ()`, `CREATE SCHEMA a`,
	} {
		mustBeForbidden(t, reader, statement)
	}
	checkAdvisoryLocks(t, reader)
	server, err := pgx.Connect(t.Context(), as(c, "brevet_server"))
	must(t, err)
	defer server.Close(context.Background())
	for _, statement := range []string{`CREATE TABLE public.a ()`, `CREATE SCHEMA a`, `CREATE ROLE a`, `ALTER SYSTEM SET fsync = off`} {
		mustBeForbidden(t, server, statement)
	}
}

// checkAdvisoryLocks fails unless all functions that take advisory locks are forbidden to the account that reads. With the locks of
// use.go it would keep servers, restores and migrations of the tables waiting.
func checkAdvisoryLocks(t *testing.T, reader *pgx.Conn) {
	t.Helper()
	for _, lock := range []string{`pg_try_advisory_lock_shared`, `pg_try_advisory_lock`} {
		mustBeForbidden(t, reader, `SELECT `+lock+`(`+postgres.UseKeys+`)`)
	}
	result, err := reader.Query(t.Context(), `
		SELECT CAST(oid AS regprocedure) || '', has_function_privilege(oid, 'EXECUTE') FROM pg_proc WHERE proname ~ '^pg_(try_)?advisory_(xact_)?lock'`)
	must(t, err)
	var function string
	var may bool
	all := 0
	_, err = pgx.ForEachRow(result, []any{&function, &may}, func() error {
		all++
		if may {
			t.Errorf("the account that reads may call %s", function)
		}
		return nil
	})
	must(t, err)
	if all < 16 {
		t.Errorf("PostgreSQL has %d functions that take advisory locks", all)
	}
}

// TestRestoreBesideReader restores the database with the account of servers while the account that reads is connected.
func TestRestoreBesideReader(t *testing.T) {
	c, blocks := ownCluster(t), documented(t)
	must(t, execute(t, c.Connection("postgres"), blocks[0]...))
	must(t, execute(t, c.Connection("brevet"), blocks[1]...))
	server := openTables(t, as(c, "brevet_server"), "first")
	must(t, execute(t, c.Connection("brevet"), blocks[2]...))
	reader, err := pgx.Connect(t.Context(), as(c, "brevet_reader"))
	must(t, err)
	defer reader.Close(context.Background())
	_, err = reader.Exec(t.Context(), `BEGIN; SELECT FROM certificates`)
	must(t, err)
	restore := func() error {
		db, err := postgres.OpenForRestore(t.Context(), as(c, "brevet_server"), "first")
		if err == nil {
			err = db.Close()
		}
		return err
	}
	mustBe[*postgres.InUseError](t, restore(), ": brevet first; stop all servers")
	must(t, server.Close())
	must(t, restore())
}

func mustBeForbidden(t *testing.T, conn *pgx.Conn, statement string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), statement)
	if own := (*pgconn.PgError)(nil); !errors.As(err, &own) || own.Code != "42501" {
		t.Errorf("%s: %v", statement, err)
	}
}
