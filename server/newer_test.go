package server_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/postgres"
)

// A server ends when another one has brought the tables to a newer version, as it finds when it connects again.
func TestServerEndsOnNewerTables(t *testing.T) {
	t.Parallel()
	connection := cluster.schema(t)
	o := servertest.Options{Shared: func(ctx context.Context, name string) (servertest.Store, error) {
		db, err := postgres.Open(ctx, connection, name)
		if err != nil {
			return nil, err
		}
		return store{db, db.Nonces(), db.Delegates()}, nil
	}}
	w := servertest.New(t, ground, o)
	w.StopServer(t)
	s := servertest.Must(server.New(t.Context(), w.Config(t, o)))(t)
	serving, ended := make(chan struct{}), make(chan error, 1)
	s.OnReady(func() { close(serving) })
	go func() { ended <- s.Run(context.Background()) }()
	select {
	case <-serving:
	case err := <-ended:
		t.Fatal(err)
	}
	conn := servertest.Must(pgx.Connect(t.Context(), connection))(t)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	execute := func(statement string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	execute(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)`)
	execute(`SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_locks WHERE classid = 1112692310 AND objid = CAST(current_schema() AS regnamespace)`)
	if newer, is := errors.AsType[*postgres.NewerError](<-ended); !is || newer.Have != 999 {
		t.Errorf("the server ended with %v", newer)
	}
	execute(`DELETE FROM goose_db_version WHERE version_id = 999`)
	w.Serve(t, o)
	w.Enrolled(t, "device", "device/afterwards")
}
