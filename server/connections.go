package server

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// countedListener counts the connections that are open.
type countedListener struct {
	net.Listener
	open prometheus.Gauge
}

// Accept implements net.Listener.
func (l countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Inc()
	return &countedConn{Conn: conn, open: l.open}, nil
}

type countedConn struct {
	net.Conn
	open   prometheus.Gauge
	closed sync.Once
}

// Close implements net.Conn. It may be called again, and the connection counts once.
func (c *countedConn) Close() error {
	c.closed.Do(c.open.Dec)
	return c.Conn.Close()
}
