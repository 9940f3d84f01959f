package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
)

// Waits before a retry. A connection may be back soon; a full disk needs an operator.
const (
	retryConnection = 500 * time.Millisecond
	retryServer     = 5 * time.Second
)

// errStandby is the error of a server that does not write, because it follows another one.
var errStandby = errors.New("the server is a standby")

// errClosed is the error of a write after Close.
var errClosed = errors.New("the store is closed")

// acquireError means that a read got no connection.
type acquireError struct{ error }

// Unwrap returns the cause.
func (e *acquireError) Unwrap() error { return e.error }

// passing maps classes and codes of errors (PostgreSQL, appendix A) to advice. Passes is true only if the renewal of a lease
// shows that the cause has passed. The renewal has a connection of its own, does not take the lock for writing, and does not
// wait for a standby. So it may succeed while no write does.
var passing = map[string]engine.Advice{
	"08":    {Text: "there is no connection to PostgreSQL", After: retryConnection, Passes: true},
	"25006": {Text: "PostgreSQL is read-only: connect to the primary", After: retryConnection, Passes: true},
	"25P03": {Text: "a transaction stood still for too long, and PostgreSQL has ended it", After: retryConnection, Passes: true},
	"40":    {Text: "PostgreSQL has ended a transaction because of another one", After: retryConnection, Passes: true},
	"53100": {Text: "there is no space for PostgreSQL: free some on its disk", After: retryServer},
	"53200": {Text: "PostgreSQL has no memory", After: retryServer},
	"53300": {Text: "PostgreSQL has no free connection: raise max_connections, or end other clients", After: retryConnection},
	"53":    {Text: "PostgreSQL lacks a resource", After: retryServer},
	"55P03": {Text: "another process of Brevet writes for too long", After: retryConnection},
	"57P":   {Text: "PostgreSQL stops or starts", After: retryConnection, Passes: true},
	"58":    {Text: "the disk of PostgreSQL fails: look at its log", After: retryServer},
}

func fail(what string, err error) error { return engine.Fail(what, err, advise) }

// Fail implements engine.DB.
func (*database) Fail(what string, err error) error { return fail(what, err) }

// advise returns the advice about an error that may pass.
func advise(err error) (engine.Advice, bool) {
	if lost := (*LostError)(nil); errors.As(err, &lost) { // also if PostgreSQL did not take its mark
		return engine.Advice{Text: "records are missing in the database", After: retryServer}, true
	}
	if own := (*pgconn.PgError)(nil); errors.As(err, &own) {
		for n := len(own.Code); n >= 2; n-- {
			if advice, ok := passing[own.Code[:n]]; ok {
				return advice, true
			}
		}
		return engine.Advice{}, false
	}
	if errors.Is(err, errStandby) {
		return passing["25006"], true
	}
	if wrong := (*SettingError)(nil); errors.As(err, &wrong) {
		return engine.Advice{Text: "PostgreSQL is not set up for a store", After: retryServer}, true
	}
	if isReserved(err) {
		return engine.Advice{Text: "no server may use the database now", After: retryServer}, true
	}
	if isLost(err) {
		return passing["08"], true
	}
	if errors.Is(err, context.DeadlineExceeded) {
		// Without a connection, the network is the cause. A statement may also wait for a lock, or its COMMIT for a standby.
		noConnection := errors.As(err, new(*pgconn.ConnectError)) || errors.As(err, new(*acquireError))
		return engine.Advice{Text: "no answer in time", After: engine.RetryLate, Passes: noConnection}, true
	}
	return engine.Advice{}, false
}

// isReserved reports whether an error keeps servers from the database, because of a restore or of the version of its tables.
func isReserved(err error) bool {
	return errors.As(err, new(*ReservedError)) || errors.As(err, new(*NewerError)) || errors.As(err, new(*OlderError)) ||
		errors.As(err, new(*RestoredError)) || errors.As(err, new(*rules.IncompleteError)) || errors.As(err, new(*rules.UnacceptedError))
}

// isLost reports whether an error is one of the connection, and not one that the server has sent.
func isLost(err error) bool {
	if err == nil || errors.Is(err, context.DeadlineExceeded) { // which is a net.Error, too
		return false
	}
	connect := (*pgconn.ConnectError)(nil)
	network := net.Error(nil)
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "conn closed")
}
