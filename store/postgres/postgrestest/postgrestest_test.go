package postgrestest

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T) *Cluster {
	t.Helper()
	c, err := Start()
	must(t, err)
	t.Cleanup(func() { must(t, c.Stop()) })
	return c
}

// open connects to a database with Dial.
func open(t *testing.T, c *Cluster, connection string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	config.DialFunc = c.Dial
	conn, err := pgx.ConnectConfig(t.Context(), config)
	must(t, err)
	return conn
}

// content returns the rows of all tables of a schema, and the last values of its sequences.
func content(t *testing.T, conn *pgx.Conn) map[string]string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT relname::text, relkind = 'S' FROM pg_class WHERE relnamespace = CAST(current_schema() AS regnamespace) AND relkind IN ('r', 'S')`)
	must(t, err)
	kinds := map[string]bool{}
	var name string
	var isSequence bool
	_, err = pgx.ForEachRow(rows, []any{&name, &isSequence}, func() error {
		kinds[name] = isSequence
		return nil
	})
	must(t, err)
	found := map[string]string{}
	for name, isSequence := range kinds {
		query := fmt.Sprintf(`SELECT coalesce(string_agg(CAST(t AS text), '; ' ORDER BY CAST(t AS text)), '') FROM %s t`, name)
		if isSequence {
			query = fmt.Sprintf(`SELECT CAST(ROW(last_value, is_called) AS text) FROM %s`, name)
		}
		var text string
		must(t, conn.QueryRow(t.Context(), query).Scan(&text))
		found[name] = text
	}
	return found
}

// TestStoresAreEmpty compares the tables of a store that another test has had with what they were when they were new.
func TestStoresAreEmpty(t *testing.T) {
	c := start(t)
	connection, release := c.Store(t)
	conn := open(t, c, connection)
	before := content(t, conn)
	db, err := postgres.Open(t.Context(), connection, "server")
	must(t, err)
	epoch, _, err := db.CA().Begin(t.Context())
	must(t, err)
	if _, err := db.CA().Write(t.Context(), epoch, nil, nil); err != nil {
		t.Error(err)
	}
	must(t, db.RA().Refused(t.Context(), audit.Refusal{By: pki.ActorCommand("test"), Why: pki.Refuse(pki.RuleAccess, "", "no"), At: time.Now()}))
	if _, err := db.Log().Sequence(t.Context(), 10); err != nil {
		t.Error(err)
	}
	must(t, db.Close())
	for _, statement := range []string{
		`INSERT INTO issuers (issuer) VALUES (decode(repeat('aa', 32), 'hex'))`, `UPDATE sealing_key SET key = decode(repeat('aa', 32), 'hex')`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if after := content(t, conn); maps.Equal(before, after) {
		t.Error("the test has written nothing")
	}
	other, _ := c.Store(t)
	if other == connection {
		t.Error("two tests have the same tables")
	}
	release()
	again, _ := c.Store(t)
	if again != connection {
		t.Errorf("the next test has the tables of %s, want those of %s", again, connection)
	}
	after := content(t, conn)
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if before[name] != after[name] {
			t.Errorf("%s has %s, want %s", name, after[name], before[name])
		}
	}
	must(t, conn.Close(t.Context()))
}

// TestSessionsLeaveNothing checks that a process of PostgreSQL serves sessions one after the other, and that nothing of one
// session is in the next one. A process whose session did not end properly ends.
func TestSessionsLeaveNothing(t *testing.T) {
	c := start(t)
	const connection = " search_path=public application_name=first"
	process := func(conn *pgx.Conn) uint32 { return conn.PgConn().PID() }
	first := open(t, c, c.Connection("postgres")+connection)
	for _, statement := range []string{
		`SET lock_timeout = 77`, `PREPARE left_behind AS SELECT 1`, `CREATE TEMPORARY TABLE left_behind ()`, `SELECT pg_advisory_lock(77)`, `LISTEN left_behind`,
	} {
		_, err := first.Exec(t.Context(), statement)
		must(t, err)
	}
	must(t, first.Close(t.Context()))

	second := open(t, c, c.Connection("postgres")+connection)
	if process(second) != process(first) {
		t.Error("the second session has another process")
	}
	var own, left int
	must(t, second.QueryRow(t.Context(), `SELECT pg_backend_pid(), CAST(current_setting('lock_timeout') AS integer)
		+ (SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind') + (SELECT count(*) FROM pg_class WHERE relname = 'left_behind')
		+ (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory') + (SELECT count(*) FROM pg_listening_channels())`).Scan(&own, &left))
	if own != int(process(second)) || left != 0 {
		t.Errorf("the process %d, which should be %d, has %d things of the first session", own, process(second), left)
	}
	third := open(t, c, c.Connection("postgres")+connection)
	other := open(t, c, c.Connection("template1")+connection)
	if process(third) == process(second) || process(other) == process(second) {
		t.Error("two sessions have the same process")
	}
	_, err := second.Exec(t.Context(), `BEGIN`)
	must(t, err)
	must(t, second.Close(t.Context()))
	must(t, third.PgConn().Conn().Close()) // without the message that ends a session
	fourth := open(t, c, c.Connection("postgres")+connection)
	if p := process(fourth); p == process(second) || p == process(third) {
		t.Error("a session has the process of one that did not end properly")
	}
	must(t, fourth.Close(t.Context()))
	must(t, other.Close(t.Context()))
}

// TestSessionsHaveDeadlines checks that a deadline ends a read, and that a connection is not used after its end.
func TestSessionsHaveDeadlines(t *testing.T) {
	c := start(t)
	conn := open(t, c, c.Connection("postgres"))
	under := conn.PgConn().Conn()
	must(t, under.SetReadDeadline(time.Now().Add(-time.Second)))
	if _, err := under.Read(make([]byte, 1)); err == nil || !err.(net.Error).Timeout() { //nolint:errorlint,forcetypeassert // net.Conn returns it so
		t.Errorf("a read after the deadline: %v", err)
	}
	must(t, under.SetDeadline(time.Time{}))
	must(t, conn.Close(t.Context()))
	if _, err := under.Read(make([]byte, 1)); err == nil {
		t.Error("a closed connection is read from")
	}
	if _, err := under.Write([]byte{'Q'}); err == nil {
		t.Error("a closed connection is written to")
	}
}
