package server

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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
	l := newSharedListener(a, 100, open, refused, slog.New(slog.DiscardHandler))
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

// crowded is a listener whose Accept fails until its process has closed files. Then a connection comes to it.
type crowded struct {
	net.Listener
	failures int
	err      error
}

// Accept implements net.Listener.
func (c *crowded) Accept() (net.Conn, error) {
	if c.failures--; c.failures >= 0 {
		return nil, c.err
	}
	conn, other := net.Pipe()
	return fakeConn{conn, other, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}, nil
}

// Close implements net.Listener.
func (*crowded) Close() error { return nil }

var errTooManyFiles = &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}

// shareCrowded returns a sharedListener for a crowded listener, and its log.
func shareCrowded(c *crowded) (*sharedListener, *bytes.Buffer) {
	var log bytes.Buffer
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "open"})
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "refused"})
	return newSharedListener(c, 100, gauge, counter, slog.New(slog.NewTextHandler(&log, nil))), &log
}

// A listener delays Accept after temporary errors, and logs one of them each minute.
func TestTemporaryErrorsDelayAccept(t *testing.T) {
	t.Parallel()
	for failures, c := range map[int]struct {
		least time.Duration
		logs  int
	}{20: {13 * time.Second, 1}, 100: {93 * time.Second, 2}} { // 5, 10, … 640 ms, and then delays of a second
		synctest.Test(t, func(t *testing.T) {
			l, log := shareCrowded(&crowded{failures: failures, err: errTooManyFiles})
			begun := time.Now()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if took := time.Since(begun); took < c.least || took > c.least+time.Second {
				t.Errorf("after %d errors, the listener accepts after %s", failures, took)
			}
			if n := strings.Count(log.String(), "accepting connections failed, retrying"); n != c.logs || !strings.Contains(log.String(), "too many open files") {
				t.Errorf("after %d errors, the log has %d of them, want %d: %s", failures, n, c.logs, log)
			}
		})
	}
}

// A listener that is closed while it waits ends at once, and so does one whose error is permanent.
func TestListenersEnd(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, want := range map[string]error{"temporary": errTooManyFiles, "permanent": broken} {
		synctest.Test(t, func(t *testing.T) {
			l, _ := shareCrowded(&crowded{failures: 100, err: want})
			ended := make(chan time.Time, 1)
			go func() {
				if _, err := l.Accept(); !errors.Is(err, want) {
					t.Errorf("%s: the listener ends with %v", name, err)
				}
				ended <- time.Now()
			}()
			time.Sleep(5500 * time.Millisecond) // between two delays
			closed := time.Now()
			if err := errors.Join(l.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			if at := <-ended; at.After(closed) {
				t.Errorf("%s: the listener ends %s after it is closed", name, at.Sub(closed))
			}
		})
	}
}
