package postgres

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// maxSilence is how long the machine at the other end of a TCP connection may be silent: it confirms no data, or does not
	// respond to the kernel's probes. Then the connection ends. Without the limit, the kernel repeats data for a quarter of
	// an hour after a network was cut. PostgreSQL has the same limit for its end, by setUp.
	maxSilence = 3 * time.Second
	// probeAfter is how long a connection without data is silent before the kernel probes it, and probeEvery the interval.
	// With maxSilence, Linux ends it if no probe is confirmed by then, so one of two may be lost (tcp(7), TCP_USER_TIMEOUT).
	probeAfter = time.Second
	probeEvery = time.Second
)

// limitSilence returns a dialer whose TCP connections end after maxSilence. The connections of a Unix socket do not need it.
func limitSilence(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return conn, nil
		}
		probes := net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeEvery, Count: int(maxSilence / probeEvery)}
		if err := errors.Join(tcp.SetKeepAliveConfig(probes), setUserTimeout(tcp, maxSilence)); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return conn, nil
	}
}
