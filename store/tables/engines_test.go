package tables_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
	"github.com/brevet-pki/brevet/store/tables"
)

// cluster starts a PostgreSQL server for the first test that needs one.
var cluster = sync.OnceValues(func() (*postgrestest.Cluster, error) {
	defer func() { hasCluster = true }()
	return postgrestest.Start()
})

var hasCluster bool

// withCluster runs the tests, and stops the server if one was started.
type withCluster struct{ *testing.M }

func (m withCluster) Run() int {
	code := m.M.Run()
	if hasCluster {
		if c, err := cluster(); err == nil {
			_ = c.Stop() // the tests are over
		}
	}
	return code
}

// opener opens a store once more. Each call has another server's name, where the engine allows several servers.
type opener func(t *testing.T) *tables.DB

// onEngines runs a test on a new store of each engine.
func onEngines(t *testing.T, test func(t *testing.T, open opener)) {
	t.Run("sqlite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "brevet.db")
		test(t, func(t *testing.T) *tables.DB { return mustOpen(t, path) })
	})
	t.Run("postgres", func(t *testing.T) { onPostgres(t, test) })
}

// onPostgres runs a test on a new store in PostgreSQL.
func onPostgres(t *testing.T, test func(t *testing.T, open opener)) {
	t.Helper()
	c, err := cluster()
	if err != nil {
		t.Fatal(err)
	}
	connection, servers := c.Schema(t), 0
	test(t, func(t *testing.T) *tables.DB {
		t.Helper()
		servers++
		db, err := postgres.Open(context.Background(), connection, string(rune('a'+servers)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	})
}
