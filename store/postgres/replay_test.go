package postgres_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/storetest"
	"github.com/brevet-pki/brevet/translog"
)

// replayed replays a log into an empty store, and returns its rows.
func replayed(t *testing.T, log []translog.Sequenced) map[string][]string {
	t.Helper()
	connection, release := cluster.Store(t)
	defer release()
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	config.DialFunc = cluster.Dial
	db, err := postgres.OpenWith(context.Background(), config, "restored")
	must(t, err)
	defer func() { must(t, db.Close()) }()
	for page := range slices.Chunk(log, 50) {
		if err := db.Log().Replay(t.Context(), page); err != nil {
			t.Fatalf("replay from entry %d on: %v", page[0].Index, err)
		}
	}
	head, err := db.Log().Head(t.Context())
	if err != nil || head.Size != uint64(len(log)) || len(log) > 0 && head.Chain != log[len(log)-1].Chain {
		t.Errorf("the replayed log ends with %+v, %v", head, err)
	}
	return rows(t, connection)
}

// selectColumns selects the columns of the tables: the table, the column, whether sequences number it, and the table whose
// rows it refers to.
const selectColumns = `
	SELECT c.table_name, c.column_name, c.is_identity = 'YES', coalesce((SELECT f.relname FROM pg_constraint k JOIN pg_class f ON f.oid = k.confrelid
	       WHERE k.contype = 'f' AND k.conrelid = CAST(quote_ident(c.table_name) AS regclass)
	             AND k.conkey = ARRAY[CAST(c.ordinal_position AS smallint)]), '')
	FROM information_schema.columns c WHERE c.table_schema = current_schema() ORDER BY c.table_name, c.ordinal_position`

// shared are the tables with what servers tell each other, which the log does not contain.
var shared = []string{"acme_nonces", "crl_chunks", "crl_leases", "delegate_requests"}

// rowQueries returns a query for each table, which returns its rows as text, without what the log does not contain. A number
// that a sequence gave is replaced by its place in the order, because sequences leave gaps.
func rowQueries(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	columns := map[string][]string{}
	result, err := conn.Query(ctx, selectColumns)
	if err != nil {
		return nil, err
	}
	var table, column, target string
	var isNumbered bool
	_, err = pgx.ForEachRow(result, []any{&table, &column, &isNumbered, &target}, func() error {
		value := "t." + column
		if isNumbered {
			target = table
		}
		if target != "" {
			value = fmt.Sprintf(`CASE WHEN %[1]s IS NOT NULL THEN (SELECT count(*) FROM %[2]s r WHERE r.id <= %[1]s) END`, value, target)
		}
		if !slices.Contains(shared, table) && storetest.NotInLog[table] == "" && storetest.NotInLog[table+"."+column] == "" {
			columns[table] = append(columns[table], fmt.Sprintf(`'%s=' || coalesce(quote_literal(CAST(%s AS text)), 'NULL')`, column, value))
		}
		return nil
	})
	queries := map[string]string{}
	for table, columns := range columns {
		queries[table] = `SELECT ` + strings.Join(columns, ` || ' ' || `) + ` COLLATE "C" FROM ` + table + ` t ORDER BY 1`
	}
	return queries, err
}

// cachedRowQueries has the result of rowQueries, which is the same for all stores. PostgreSQL takes as long for it as for the
// rows.
var cachedRowQueries struct {
	once    sync.Once
	queries map[string]string
	err     error
}

// rows returns the rows of all tables of a store as text, as rowQueries says.
func rows(t *testing.T, connection string) map[string][]string {
	t.Helper()
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	config.DialFunc = cluster.Dial
	conn, err := pgx.ConnectConfig(t.Context(), config)
	must(t, err)
	defer conn.Close(context.Background())
	cached := &cachedRowQueries
	cached.once.Do(func() { cached.queries, cached.err = rowQueries(context.Background(), conn) })
	must(t, cached.err)
	tables := slices.Sorted(maps.Keys(cached.queries))
	var all strings.Builder
	for _, table := range tables {
		all.WriteString(cached.queries[table] + ";")
	}
	results, err := conn.PgConn().Exec(t.Context(), all.String()).ReadAll() // in one round trip
	must(t, err)
	found := map[string][]string{}
	for i, table := range tables {
		found[table] = []string{}
		for _, row := range results[i].Rows {
			found[table] = append(found[table], string(row[0]))
		}
	}
	return found
}
