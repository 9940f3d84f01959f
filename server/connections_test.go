package server

import (
	"net"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// fakeListener is a listener to which a connection comes from each address in from.
type fakeListener struct {
	net.Listener
	from chan string
}

// Accept implements net.Listener.
func (a fakeListener) Accept() (net.Conn, error) {
	if len(a.from) == 0 {
		return nil, net.ErrClosed
	}
	from := <-a.from
	conn, other := net.Pipe()
	return fakeConn{conn, other, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 1))}, nil
}

type fakeConn struct {
	net.Conn
	other net.Conn
	from  net.Addr
}

// RemoteAddr implements net.Conn.
func (a fakeConn) RemoteAddr() net.Addr { return a.from }

func valueOf(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var v dto.Metric
	if err := m.Write(&v); err != nil {
		t.Fatal(err)
	}
	return v.GetGauge().GetValue() + v.GetCounter().GetValue()
}

func TestConnectionsAreSharedBetweenAddresses(t *testing.T) {
	t.Parallel()
	a := fakeListener{from: make(chan string, 1000)}
	open := prometheus.NewGauge(prometheus.GaugeOpts{Name: "open"})
	refused := prometheus.NewCounter(prometheus.CounterOpts{Name: "refused"})
	l := newSharedListener(a, 100, open, refused)
	connect := func(n int, from string) (accepted []net.Conn) {
		for range n {
			a.from <- from
		}
		for {
			conn, err := l.Accept()
			if err != nil { // no more connections wait
				return accepted
			}
			accepted = append(accepted, conn)
		}
	}
	var all []net.Conn
	for _, c := range []struct {
		from           string
		attempts, want int
	}{{"192.0.2.1", 200, 50}, {"192.0.2.2", 200, 25}, {"192.0.2.2", 10, 0}, {"192.0.2.3", 10, 10}, {"2001:db8:0:1::1", 5, 5}, {"2001:db8:0:1::2", 200, 3}} {
		accepted := connect(c.attempts, c.from)
		if len(accepted) != c.want {
			t.Errorf("of %d connections from %s, %d are accepted, want %d", c.attempts, c.from, len(accepted), c.want)
		}
		all = append(all, accepted...)
	}
	if valueOf(t, open) != 93 || valueOf(t, refused) != 200+200+10+10+5+200-93 {
		t.Errorf("%v connections are open and %v were refused", valueOf(t, open), valueOf(t, refused))
	}
	for _, conn := range all {
		_, _ = conn.Close(), conn.Close() // the second Close must not be counted
	}
	if valueOf(t, open) != 0 {
		t.Errorf("after all are closed, %v are open", valueOf(t, open))
	}
}
