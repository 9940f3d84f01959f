package server

import (
	"net"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// arrivals is a listener that accepts connections from given addresses.
type arrivals struct {
	net.Listener
	from chan string
}

// Accept implements net.Listener.
func (a arrivals) Accept() (net.Conn, error) {
	if len(a.from) == 0 {
		return nil, net.ErrClosed
	}
	from := <-a.from
	conn, other := net.Pipe()
	return arrived{conn, other, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 1))}, nil
}

type arrived struct {
	net.Conn
	other net.Conn
	from  net.Addr
}

// RemoteAddr implements net.Conn.
func (a arrived) RemoteAddr() net.Addr { return a.from }

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
	a := arrivals{from: make(chan string, 1000)}
	open := prometheus.NewGauge(prometheus.GaugeOpts{Name: "open"})
	refused := prometheus.NewCounter(prometheus.CounterOpts{Name: "refused"})
	l := newSharedListener(a, 100, open, refused)
	come := func(n int, from string) (accepted []net.Conn) {
		for range n {
			a.from <- from
		}
		for {
			conn, err := l.Accept()
			if err != nil { // all connections have been accepted
				return accepted
			}
			accepted = append(accepted, conn)
		}
	}
	var all []net.Conn
	for _, c := range []struct {
		from      string
		comes, in int
	}{{"192.0.2.1", 200, 50}, {"192.0.2.2", 200, 25}, {"192.0.2.2", 10, 0}, {"192.0.2.3", 10, 10}, {"2001:db8:0:1::1", 5, 5}, {"2001:db8:0:1::2", 200, 3}} {
		accepted := come(c.comes, c.from)
		if len(accepted) != c.in {
			t.Errorf("of %d connections from %s, %d are accepted, want %d", c.comes, c.from, len(accepted), c.in)
		}
		all = append(all, accepted...)
	}
	if valueOf(t, open) != 93 || valueOf(t, refused) != 200+200+10+10+5+200-93 {
		t.Errorf("%v connections are open and %v were refused", valueOf(t, open), valueOf(t, refused))
	}
	for _, conn := range all {
		_, _ = conn.Close(), conn.Close() // counted once
	}
	if valueOf(t, open) != 0 {
		t.Errorf("after all are closed, %v are open", valueOf(t, open))
	}
}
