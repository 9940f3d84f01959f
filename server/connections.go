package server

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/server/admission"
)

// Delays before a listener accepts again after a temporary error.
const minAcceptDelay, maxAcceptDelay = 5 * time.Millisecond, time.Second

// acceptLogInterval is the interval in which a listener logs at most one temporary error.
const acceptLogInterval = time.Minute

// sharedListener limits and counts the open connections of a listener, with an [admission.FairLimit]. It closes a
// connection above the limit immediately. After a temporary error, such as that of a process with too many open files, it
// logs the error, waits and continues, so that the servers of all ports treat these errors alike.
type sharedListener struct {
	net.Listener
	shares  *admission.FairLimit
	open    prometheus.Gauge
	refused prometheus.Counter
	log     *slog.Logger
	logged  rate.Sometimes
	closed  chan struct{}
	close   func() error // once
}

func newSharedListener(l net.Listener, most int, open prometheus.Gauge, refused prometheus.Counter, log *slog.Logger) *sharedListener {
	closed := make(chan struct{})
	return &sharedListener{
		Listener: l, shares: admission.NewFairLimit("connections", most), open: open, refused: refused,
		log: log, logged: rate.Sometimes{Interval: acceptLogInterval}, closed: closed,
		close: sync.OnceValue(func() error { close(closed); return l.Close() }),
	}
}

// Accept implements net.Listener. It returns only errors that end the listener.
func (l *sharedListener) Accept() (net.Conn, error) {
	delay := minAcceptDelay
	for {
		conn, err := l.Listener.Accept()
		if isTemporary(err) && l.wait(delay, err) {
			delay = min(2*delay, maxAcceptDelay)
			continue
		}
		if err != nil {
			return nil, err
		}
		delay = minAcceptDelay
		from := admission.Address(conn.RemoteAddr())
		if l.shares.Acquire(from) == nil {
			l.open.Inc()
			return &sharedConn{Conn: conn, close: sync.OnceFunc(func() { l.shares.Release(from); l.open.Dec() })}, nil
		}
		l.refused.Inc()
		_ = conn.Close() // its error is of no use: the server has sent nothing
	}
}

// Close implements net.Listener. It ends a delay of Accept.
func (l *sharedListener) Close() error { return l.close() }

// isTemporary reports whether Accept may succeed after an error.
func isTemporary(err error) bool {
	failure := net.Error(nil)
	return errors.As(err, &failure) && failure.Temporary() //nolint:staticcheck // deprecated, but nothing else tells these errors of Accept apart
}

// wait logs a temporary error and waits. It returns false if the listener is closed before that.
func (l *sharedListener) wait(delay time.Duration, err error) bool {
	l.logged.Do(func() { l.log.Error("accepting connections failed, retrying", "error", err) })
	select {
	case <-time.After(delay):
		return true
	case <-l.closed:
		return false
	}
}

// sharedConn is an open connection of a sharedListener.
type sharedConn struct {
	net.Conn
	close func() // stops counting the connection, once
}

// Close implements [net.Conn]. It may be called more than once.
func (c *sharedConn) Close() error {
	c.close()
	return c.Conn.Close()
}
