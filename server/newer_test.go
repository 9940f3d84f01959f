package server_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/rules"
)

// A server ends when another one has brought the tables to a newer version, or has found that a standby was promoted without
// log entries, as it finds when it connects again.
func TestServerEndsOnTablesThatItMustNotUse(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		before, after string
		isRight       func(error) bool
	}{
		"newer tables": {
			`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)`, `DELETE FROM goose_db_version WHERE version_id = 999`,
			func(err error) bool {
				newer, is := errors.AsType[*postgres.NewerError](err)
				return is && newer.Have == 999
			},
		},
		"lost entries": {
			`INSERT INTO restores (id) VALUES (1)`, `DELETE FROM restores`,
			func(err error) bool { return errors.As(err, new(*rules.IncompleteError)) },
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			endsServer(t, c.before, c.after, c.isRight)
		})
	}
}

// endsServer executes a statement under a server, and cuts its connections. It fails unless the server ends with the right
// error, and serves again after another statement.
func endsServer(t *testing.T, before, after string, isRight func(error) bool) {
	t.Helper()
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
	execute(before)
	execute(`SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_locks WHERE classid = 1112692310 AND objid = CAST(current_schema() AS regnamespace)`)
	if err := <-ended; !isRight(err) {
		t.Errorf("the server ended with %v", err)
	}
	execute(after)
	w.Serve(t, o)
	w.Enrolled(t, "device", "device/afterwards")
}
