package postgrestest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres"
)

// emptied is a schema with the tables of a store, which tests use one after the other.
type emptied struct {
	connection, name string
}

// Store returns a connection string for a schema with the tables of an empty store, and a function that gives the schema back.
// That is called at the end of the test, too. The tables are those of an earlier test, without its rows: that takes a tenth
// of the time of [Cluster.Schema]. A test that changes the tables themselves needs a schema of its own. The stores of the
// test must be closed before the schema is given back.
func (c *Cluster) Store(t testing.TB) (connection string, release func()) {
	t.Helper()
	s, err := c.take(t.Context())
	if err != nil {
		t.Fatalf("empty the tables of a store: %v", err)
	}
	release = sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.free = append(c.free, s)
	})
	t.Cleanup(release)
	return s.connection, release
}

// take returns a schema without rows but those that a new store has.
func (c *Cluster) take(ctx context.Context) (*emptied, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	if n := len(c.free); n > 0 {
		s := c.free[n-1]
		c.free = c.free[:n-1]
		return s, c.execute(ctx, fmt.Sprintf(`SELECT emptying.empty('%s')`, s.name))
	}
	connection, err := c.Cluster.Schema(ctx)
	if err != nil {
		return nil, err
	}
	db, err := postgres.Open(ctx, connection, "postgrestest")
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(connection, "search_path=")
	return &emptied{connection: connection, name: name}, c.execute(ctx, fmt.Sprintf(`SELECT emptying.remember('%s')`, name))
}

// connect connects for [Cluster.Store], once.
func (c *Cluster) connect(ctx context.Context) (err error) {
	if c.admin != nil {
		return nil
	}
	if c.admin, err = pgx.Connect(ctx, c.Connection("postgres")); err != nil {
		return err
	}
	return c.execute(ctx, emptying)
}

func (c *Cluster) execute(ctx context.Context, statements string) error {
	_, err := c.admin.PgConn().Exec(ctx, statements).ReadAll()
	return err
}

// emptying defines the functions that empty a schema. Copies of the tables that have rows in a new store are in a schema of
// their own. A table that no test has written has no page, and is skipped.
const emptying = `
CREATE SCHEMA emptying;
CREATE TABLE emptying.sequences (store text, sequence regclass, last bigint);
CREATE FUNCTION emptying.remember(store text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE name text; has boolean;
BEGIN
	EXECUTE format('CREATE SCHEMA %I', store || '_new');
	FOR name IN SELECT relname FROM pg_class WHERE relnamespace = CAST(store AS regnamespace) AND relkind = 'r' LOOP
		EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I)', store, name) INTO has;
		IF has THEN
			EXECUTE format('CREATE TABLE %I.%I AS TABLE %I.%I', store || '_new', name, store, name);
		END IF;
	END LOOP;
	INSERT INTO emptying.sequences SELECT store, CAST(oid AS regclass), pg_sequence_last_value(oid) FROM pg_class
		WHERE relnamespace = CAST(store AS regnamespace) AND relkind = 'S';
END $$;
CREATE FUNCTION emptying.empty(store text) RETURNS void LANGUAGE plpgsql SET session_replication_role = replica AS $$
DECLARE name text;
BEGIN
	FOR name IN SELECT relname FROM pg_class WHERE relnamespace = CAST(store AS regnamespace) AND relkind = 'r' AND pg_relation_size(oid) > 0 LOOP
		EXECUTE format('LOCK TABLE %I.%I', store, name);
		IF pg_relation_size(CAST(format('%I.%I', store, name) AS regclass)) > 1000000 THEN
			EXECUTE format('TRUNCATE %I.%I CASCADE', store, name);
		ELSE
			EXECUTE format('DELETE FROM %I.%I', store, name);
		END IF;
	END LOOP;
	FOR name IN SELECT relname FROM pg_class WHERE relnamespace = CAST(store || '_new' AS regnamespace) AND relkind = 'r' LOOP
		EXECUTE format('INSERT INTO %I.%I OVERRIDING SYSTEM VALUE TABLE %I.%I', store, name, store || '_new', name);
	END LOOP;
	PERFORM setval(sequence, coalesce(last, 1), last IS NOT NULL) FROM emptying.sequences q
		WHERE q.store = empty.store AND last IS DISTINCT FROM pg_sequence_last_value(sequence);
END $$`
