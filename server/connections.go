package server

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/brevet-pki/brevet/server/admission"
)

// sharedListener limits and counts the open connections of a listener, with an [admission.FairLimit]. It closes a
// connection above the limit immediately.
type sharedListener struct {
	net.Listener
	shares  *admission.FairLimit
	open    prometheus.Gauge
	refused prometheus.Counter
}

func newSharedListener(l net.Listener, most int, open prometheus.Gauge, refused prometheus.Counter) *sharedListener {
	return &sharedListener{Listener: l, shares: admission.NewFairLimit("connections", most), open: open, refused: refused}
}

// Accept implements net.Listener.
func (l *sharedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := admission.Address(conn.RemoteAddr())
		if l.shares.Acquire(from) == nil {
			l.open.Inc()
			return &sharedConn{Conn: conn, close: sync.OnceFunc(func() { l.shares.Release(from); l.open.Dec() })}, nil
		}
		l.refused.Inc()
		_ = conn.Close() // its error is of no use: the server has sent nothing
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
