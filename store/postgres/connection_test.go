package postgres_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// ownCluster starts a server that the test can stop and change.
func ownCluster(t *testing.T) *postgrestest.Cluster {
	t.Helper()
	c, err := postgrestest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	return c
}

// must fails the test for an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openDatabase opens a database and counts the connections that are opened to it.
func openDatabase(t *testing.T, connection string) (engine.DB, *atomic.Int64) {
	t.Helper()
	dials := &atomic.Int64{}
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err == nil { // pgx tries again to cancel a statement that has ended meanwhile
			dials.Add(1)
		}
		return conn, err
	}
	db, err := postgres.OpenDatabase(t.Context(), config)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	return db, dials
}

// write writes nothing durable, in a transaction that commits.
func write(db engine.DB) error {
	return db.Write(context.Background(), "write", func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE log_epoch SET id = id`)
		return err
	})
}

// TestPoolerIsRefused connects through PgBouncer.
func TestPoolerIsRefused(t *testing.T) {
	for _, mode := range []string{"transaction", "session"} {
		c := ownCluster(t)
		connection, stop, err := c.Pooler(mode)
		must(t, err)
		t.Cleanup(stop)
		_, err = postgres.Open(t.Context(), connection, "first")
		if wrong := (*postgres.SettingError)(nil); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "PgBouncer") {
			t.Errorf("through PgBouncer, pool_mode = %s: %v", mode, err)
		}
		must(t, c.Wait(`SELECT bool_and(setting = '0') FROM pg_settings WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout')`))
	}
}

// TestSettingsAreCheckedAgain turns fsync off while the store is open.
func TestSettingsAreCheckedAgain(t *testing.T) {
	c := ownCluster(t)
	db, dials := openDatabase(t, c.Connection("postgres"))
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		must(t, write(db))
		before := dials.Load()
		must(t, c.Exec(`ALTER SYSTEM SET `+setting+` = off`, `SELECT pg_reload_conf()`))
		must(t, c.Wait(`SELECT current_setting($1) = 'off'`, setting))
		err := write(db)
		if wrong := (*postgres.SettingError)(nil); !errors.As(err, &wrong) || wrong.Setting != setting || !pki.IsTemporary(err) {
			t.Errorf("with %s off: %v", setting, err)
		}
		must(t, c.Exec(`ALTER SYSTEM RESET `+setting, `SELECT pg_reload_conf()`))
		must(t, c.Wait(`SELECT current_setting($1) = 'on'`, setting))
		if err := write(db); err != nil {
			t.Errorf("with %s on again: %v", setting, err)
		}
		if now := dials.Load(); now != before {
			t.Errorf("%d connections were opened", now-before)
		}
	}
}

// TestSettingsAreCheckedAtTheStart opens a store with settings with which a commit is not durable, of the server, of the
// account, or of a standby that was promoted.
func TestSettingsAreCheckedAtTheStart(t *testing.T) {
	c := ownCluster(t)
	refuses := func(what, connection, setting string) {
		t.Helper()
		db, err := postgres.Open(t.Context(), connection, "first")
		if err == nil {
			must(t, db.Close())
		}
		if wrong := (*postgres.SettingError)(nil); !errors.As(err, &wrong) || wrong.Setting != setting {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		must(t, c.End())
		must(t, c.Run(setting+"=off"))
		refuses(setting+" is off", c.Connection("postgres"), setting)
	}
	must(t, c.End())
	must(t, c.Run())
	for _, value := range []string{"off", "local", "remote_write"} {
		refuses("the account has synchronous_commit "+value, c.Connection("postgres")+" synchronous_commit="+value, "synchronous_commit")
	}
	for _, value := range []string{"on", "remote_apply"} {
		openTables(t, c.Connection("postgres")+" synchronous_commit="+value, "first")
	}
}

// TestSettingsAreCheckedAfterAPromotion promotes a standby whose own settings do not make a commit durable. A server that has
// the primary open must not write to it, and neither read what such a server has written.
func TestSettingsAreCheckedAfterAPromotion(t *testing.T) {
	primary := ownCluster(t)
	standby, err := primary.Standby("standby")
	must(t, err)
	t.Cleanup(func() { _ = standby.Stop() })
	must(t, primary.Synchronous("standby"))
	db := openTables(t, postgrestest.Among("postgres", primary, standby), "first")
	must(t, logSomething(db, "before"))
	must(t, standby.End())
	must(t, standby.Run("synchronous_commit=local"))
	must(t, primary.Wait(`SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'`))
	must(t, logSomething(db, "again"))
	must(t, primary.Kill())
	must(t, standby.Promote())
	_, read := db.Log().Written(t.Context())
	for what, err := range map[string]error{"write": logSomething(db, "after"), "read": read} {
		if wrong := (*postgres.SettingError)(nil); !errors.As(err, &wrong) || wrong.Setting != "synchronous_commit" || !pki.IsTemporary(err) {
			t.Errorf("%s at the new primary: %v", what, err)
		}
	}
	must(t, standby.End())
	must(t, standby.Run())
	must(t, logSomething(db, "with other settings"))
}

// TestSettingsOfTheAccount opens the store with settings that an administrator may give an account, or a connection string.
func TestSettingsOfTheAccount(t *testing.T) {
	connection := cluster.Schema(t)
	for _, settings := range []string{
		" client_encoding=LATIN1", " statement_timeout=60000", " default_transaction_read_only=on", " default_transaction_isolation=serializable",
		" bytea_output=escape", " IntervalStyle=sql_standard DateStyle=German", " standard_conforming_strings=off", " row_security=off",
	} {
		db, _ := openDatabase(t, connection+settings)
		examine := func(ctx context.Context, q engine.Querier) error {
			var size int
			var limit string
			err := q.QueryRow(ctx, `SELECT octet_length(CAST(? AS text)), current_setting('statement_timeout')`, "ü").Scan(&size, &limit)
			if size != 2 || limit != "0" {
				t.Errorf("with%s: the text ü has %d bytes, and a statement the limit %s", settings, size, limit)
			}
			return err
		}
		isolated := func(ctx context.Context, q engine.Querier, want string) error {
			var have string
			err := q.QueryRow(ctx, `SELECT current_setting('transaction_isolation')`).Scan(&have)
			if err == nil && have != want {
				t.Errorf("with%s: a transaction is isolated by %s, want %s", settings, have, want)
			}
			return err
		}
		must(t, write(db))
		must(t, db.Write(t.Context(), "write", func(ctx context.Context, tx *engine.Tx) error {
			return errors.Join(examine(ctx, tx), isolated(ctx, tx, "read committed"))
		}))
		must(t, db.Look(t.Context(), "look", examine))
		for _, read := range []func(context.Context, string, func(context.Context, engine.Querier) error) error{db.Read, db.Look, db.ReadMany} {
			must(t, read(t.Context(), "read", func(ctx context.Context, q engine.Querier) error { return isolated(ctx, q, "repeatable read") }))
		}
		must(t, db.Apart(t.Context(), "write", func(ctx context.Context, tx *engine.Tx) error { return isolated(ctx, tx, "read committed") }))
	}
}

// TestPasswordsAreRefused checks that a connection string has no secret, in whatever form.
func TestPasswordsAreRefused(t *testing.T) {
	for connection, refused := range map[string]bool{
		"host=h user=u dbname=d":                           false,
		"postgres://u@h:5432/d?sslmode=verify-full":        false,
		"postgres://[::1]:5432/d":                          false,
		"host=h passfile=/nowhere user=u":                  false,
		"host=h password=hidden":                           true,
		"host=h password = hidden":                         true,
		"user='u'password=hidden host=h":                   true,
		"host=h sslpassword=hidden":                        true,
		"postgres://u:hidden@h/d":                          true,
		"postgres://u:hidden@h1:1,h2:2/d":                  true,
		"postgres://u:hidden@[::1]:5432,[::2]:5432/d":      true,
		"postgres://u@h/d?password=hidden":                 true,
		"postgres://u@h/d?sslmode=disable&password=hidden": true,
		"postgres://u@h/d?sslpassword=hidden":              true,
		"postgres://u@h/d?pass%77ord=hidden":               true,
		"postgres://u:hid%zzden@h/d":                       true,
	} {
		err := postgres.CheckConnection(connection)
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "passfile=") || err != nil && strings.Contains(err.Error(), "hid") {
			t.Errorf("%s: %v", connection, err)
		}
	}
}

// TestFilesOfConnections names the file that cannot be used.
func TestFilesOfConnections(t *testing.T) {
	dir := t.TempDir()
	open, private := filepath.Join(dir, "it's open"), filepath.Join(dir, "private")
	for path, mode := range map[string]fs.FileMode{open: 0o644, private: 0o600} {
		must(t, os.WriteFile(path, []byte("*:*:*:u:hidden\n"), mode))
	}
	query := "passfile=" + url.PathEscape(open) // pgx does not decode + as a space
	for connection, want := range map[string]string{
		"host=h user=u passfile=" + private:                                                      "",
		"postgres://u@h1:1,h2:2/d?passfile=" + private:                                           "",
		"host=h user=u passfile=" + dir + "/lost":                                                "lost: no such file",
		"passfile=" + private + " host=h passfile='" + strings.ReplaceAll(open, "'", `\'`) + "'": "it's open with the mode 0644",
		"postgres://u@h/d?passfile=" + private + "&" + query:                                     "it's open with the mode 0644",
		"postgres://u@h/d?" + query + "&passfile=" + private:                                     "",
		"postgres://u@h/d?passfile=" + dir + "/a;b+c":                                            "a;b+c: no such file",
		"passfile = '" + strings.ReplaceAll(open, "'", `\'`) + "' host=h":                        "it's open with the mode 0644",
		"postgres://u@h1:1,h2:2/d?" + query:                                                      "it's open with the mode 0644",
		"host=h sslmode=verify-full sslrootcert=" + dir + "/lost.crt":                            "lost.crt: no such file",
		"host=h sslmode=require sslcert=" + private + " sslkey=" + open:                          "it's open with the mode 0644",
		"host=h sslmode=nothing sslrootcert=" + private:                                          "not a connection string",
	} {
		connection = strings.Replace(connection, "sslkey="+open, "sslkey='"+strings.ReplaceAll(open, "'", `\'`)+"'", 1)
		_, err := postgres.Parse(connection)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden")) {
			t.Errorf("%s: %v, want %q", connection, err, want)
		}
	}
}

// TestRestartOfPostgreSQL writes and reads for the first time after PostgreSQL was restarted.
func TestRestartOfPostgreSQL(t *testing.T) {
	c := ownCluster(t)
	db, _ := openDatabase(t, c.Connection("postgres"))
	read := func(read func(context.Context, string, func(context.Context, engine.Querier) error) error) {
		t.Helper()
		err := read(t.Context(), "read", func(ctx context.Context, tx engine.Querier) error {
			return tx.QueryRow(ctx, `SELECT id FROM log_epoch`).Scan(new(int64))
		})
		if err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		must(t, write(db))
		read(db.Read)
		must(t, c.End())
		must(t, c.Run())
		must(t, write(db))
		read(db.Look)
		read(db.Read)
	}
}

// TestCanceledReader ends a caller's context while it reads.
func TestCanceledReader(t *testing.T) {
	t.Parallel()
	db, dials := openDatabase(t, cluster.Schema(t))
	ctx, cancel := context.WithCancel(t.Context())
	var first int64
	const process = `SELECT pg_backend_pid()`
	err := db.Look(ctx, "look", func(ctx context.Context, tx engine.Querier) error {
		cancel()
		return tx.QueryRow(ctx, process).Scan(&first)
	})
	if err != nil {
		t.Errorf("a caller that leaves while it looks: %v", err)
	}
	before := dials.Load()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Read(ctx, "read", func(ctx context.Context, tx engine.Querier) error {
			begun := make(chan struct{})
			go func() {
				<-begun
				cancel()
			}()
			close(begun)
			return tx.QueryRow(ctx, `SELECT length(CAST(pg_sleep(60) AS text))`).Scan(new(int64))
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("a caller that leaves while it reads: %v", err)
		}
	}
	if now := dials.Load(); now > before+20 { // at most one for each cancel request
		t.Errorf("%d connections were opened", now-before)
	}
	var last int64
	must(t, db.Read(t.Context(), "read", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, process).Scan(&last)
	}))
	if first != last {
		t.Error("the connection was closed")
	}
}

// TestLookThatTakesLong looks for longer than a look may take. The error must be temporary: the database may be slow.
func TestLookThatTakesLong(t *testing.T) {
	t.Parallel()
	db, _ := openDatabase(t, cluster.Schema(t))
	err := db.Look(t.Context(), "look", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT length(CAST(pg_sleep(60) AS text))`).Scan(new(int64))
	})
	if !pki.IsTemporary(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a look that takes long: %v", err)
	}
}

// deaf is a connection whose client does not read any more once stopped is closed.
type deaf struct {
	net.Conn
	stopped <-chan struct{}
	end     <-chan struct{}
}

// Read implements net.Conn.
func (d deaf) Read(b []byte) (int, error) {
	select {
	case <-d.stopped:
		<-d.end
		return 0, net.ErrClosed
	default:
		return d.Conn.Read(b[:min(len(b), 1<<10)])
	}
}

// TestWriterThatStopsReading stops reading in the middle of a large result, in a transaction that writes. PostgreSQL must
// end it, so that another process can write.
func TestWriterThatStopsReading(t *testing.T) {
	t.Parallel()
	c := ownCluster(t)
	must(t, c.WriteData("pg_hba.conf", []byte("local all all trust\nhost all all 127.0.0.0/8 trust\n")))
	must(t, c.End())
	const address = "127.66.86.87" // no other server has its port 5432
	must(t, c.Run("listen_addresses="+address))
	config, err := pgx.ParseConfig("user=brevet dbname=postgres sslmode=disable host=" + address)
	must(t, err)
	stopped, end := make(chan struct{}), make(chan struct{})
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return deaf{conn, stopped, end}, err
	}
	first, err := postgres.OpenDatabase(t.Context(), config)
	must(t, err)
	second, _ := openDatabase(t, c.Connection("postgres"))
	done := make(chan error, 1)
	go func() {
		done <- first.Write(context.Background(), "read much", func(ctx context.Context, tx *engine.Tx) error {
			close(stopped)
			return tx.QueryRow(ctx, `SELECT repeat('x', 100000000)`).Scan(new(string))
		})
	}()
	<-stopped
	must(t, write(second))
	close(end)
	if err := <-done; err == nil {
		t.Error("the transaction was not ended")
	}
	_ = first.Close() // its connections have ended
}
