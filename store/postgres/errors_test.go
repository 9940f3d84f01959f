package postgres_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/postgres"
)

// TestErrorsThatPass distinguishes errors whose cause has passed when a lease is renewed. The renewal takes no lock for writing,
// and does not wait for a standby.
func TestErrorsThatPass(t *testing.T) {
	code := func(code string) error { return &pgconn.PgError{Code: code} }
	config, err := pgx.ParseConfig("host=db.invalid")
	must(t, err)
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, context.DeadlineExceeded }
	_, unreachable := pgx.ConnectConfig(t.Context(), config)
	for err, passes := range map[error]bool{
		io.ErrUnexpectedEOF: true, code("57P01"): true, code("25006"): true, unreachable: true,
		context.DeadlineExceeded: false, code("55P03"): false, code("53300"): false,
		code("53100"): false, code("58030"): false,
		errors.Join(&postgres.LostError{}, code("25006")): false, errors.Join(&postgres.LostError{}, code("42501")): false, // the mark failed
	} {
		soft := (*engine.Unavailable)(nil)
		if failed := postgres.Fail("read", err); !errors.As(failed, &soft) || soft.IsPassing() != passes {
			t.Errorf("%v becomes %v, and passes is not %v", err, failed, passes)
		}
	}
}
