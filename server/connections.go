package server

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/brevet-pki/brevet/server/admission"
)

// sharedListener bounds the connections that are open, and counts them. A source may have as many open as there is room
// left for others, and what is over is closed at once: so nobody can take all of them.
type sharedListener struct {
	net.Listener
	most    int
	open    prometheus.Gauge
	refused prometheus.Counter

	mu  sync.Mutex
	all int
	of  map[admission.Source]int // those with any
}

func newSharedListener(l net.Listener, most int, open prometheus.Gauge, refused prometheus.Counter) *sharedListener {
	return &sharedListener{Listener: l, most: most, open: open, refused: refused, of: map[admission.Source]int{}}
}

// Accept implements net.Listener.
func (l *sharedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if from := admission.Address(conn.RemoteAddr()); l.take(from) {
			return &sharedConn{Conn: conn, close: sync.OnceFunc(func() { l.giveBack(from) })}, nil
		}
		l.refused.Inc()
		_ = conn.Close() // nothing was sent
	}
}

func (l *sharedListener) take(from admission.Source) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[from] >= l.most-l.all {
		return false
	}
	l.all++
	l.of[from]++
	l.open.Inc()
	return true
}

func (l *sharedListener) giveBack(from admission.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[from]--; l.of[from] == 0 {
		delete(l.of, from)
	}
	l.open.Dec()
}

type sharedConn struct {
	net.Conn
	close func()
}

// Close implements net.Conn. It may be called again, and the connection counts once.
func (c *sharedConn) Close() error {
	c.close()
	return c.Conn.Close()
}
