package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/postgres"
)

// TestErrorsThatPass distinguishes what passes without an operator, so that a server is ready again when it has passed.
func TestErrorsThatPass(t *testing.T) {
	code := func(code string) error { return &pgconn.PgError{Code: code} }
	for err, passes := range map[error]bool{
		io.ErrUnexpectedEOF: true, code("57P01"): true, code("25006"): true,
		fmt.Errorf("dial: %w", context.DeadlineExceeded): true,
		code("53100"): false, code("58030"): false,
		errors.Join(&postgres.LostError{}, code("25006")): false, errors.Join(&postgres.LostError{}, code("42501")): false, // the mark failed
	} {
		soft := (*engine.Unavailable)(nil)
		if failed := postgres.Fail("read", err); !errors.As(failed, &soft) || soft.IsPassing() != passes {
			t.Errorf("%v becomes %v, and passes is not %v", err, failed, passes)
		}
	}
}
