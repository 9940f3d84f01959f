package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
)

// statements is the number of prepared statements that a connection caches: more than the store has.
const statements = 128

// pragma is a setting that is read back after connecting, because commits would not be durable with other settings.
type pragma struct {
	name string
	want string
	set  bool // set by a statement, because the driver has no option for it
}

// writerPragmas are the settings of the writing connection. Synchronous 2 is FULL: mattn/go-sqlite3 compiles in 1
// (NORMAL) for WAL, which loses commits in a power failure. temp_store 2 is MEMORY: by default a savepoint's undo data
// beyond 64 KiB goes to a file. The checkpointer makes the checkpoints.
var writerPragmas = []pragma{
	{name: "journal_mode", want: "wal"}, {name: "synchronous", want: "2"}, {name: "foreign_keys", want: "1"},
	{name: "temp_store", want: "2", set: true}, {name: "wal_autocheckpoint", want: "0", set: true},
}

var readerPragmas = []pragma{{name: "journal_mode", want: "wal"}, {name: "query_only", want: "1"}}

func writerDSN(path string) string {
	return dsn(path, url.Values{
		"mode": {"rw"}, "_txlock": {"immediate"}, "_journal_mode": {"WAL"}, "_synchronous": {"FULL"}, "_foreign_keys": {"true"},
	})
}

func readerDSN(path string) string {
	return dsn(path, url.Values{"mode": {"ro"}, "_query_only": {"true"}})
}

// recoveryDSN opens a file only to roll back the transaction of a killed process.
func recoveryDSN(path string) string {
	return dsn(path, url.Values{"mode": {"rw"}})
}

func dsn(path string, options url.Values) string {
	options.Set("_busy_timeout", strconv.FormatInt(maxBusy.Milliseconds(), 10))
	options.Set("_mutex", "no")
	options.Set("_stmt_cache_size", strconv.Itoa(statements))
	file := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: options.Encode()}
	return file.String()
}

// connector opens connections, and returns only those whose settings read back as required.
type connector struct {
	driver driver.Driver
	dsn    string
	check  []pragma
}

// Driver returns the underlying driver.
func (c connector) Driver() driver.Driver { return c.driver }

// Connect opens a connection and reads its settings back.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	for _, p := range c.check {
		if err := p.readBack(ctx, conn); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

func (p pragma) readBack(ctx context.Context, conn driver.Conn) error {
	q, ok := conn.(driver.QueryerContext)
	if !ok {
		return errors.New("the driver cannot query")
	}
	if p.set {
		rows, err := q.QueryContext(ctx, "PRAGMA "+p.name+" = "+p.want, nil)
		if err != nil {
			return err
		}
		if err := rows.Close(); err != nil {
			return err
		}
	}
	rows, err := q.QueryContext(ctx, "PRAGMA "+p.name, nil)
	if err != nil {
		return err
	}
	defer rows.Close()
	got := make([]driver.Value, 1)
	if err := rows.Next(got); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if text := fmt.Sprint(got[0]); text != p.want {
		return fmt.Errorf("SQLite has set %s to %s, not %s: the store needs a local file system that can do shared memory", p.name, text, p.want)
	}
	return nil
}
