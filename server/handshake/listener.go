package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/server/admission"
)

// listener accepts connections whose TLS handshake has succeeded. Handshakes run beside each other, so that a slow client
// delays no other.
type listener struct {
	net.Listener
	config *tls.Config
	queue  *admission.Queue
	count  func(error)

	ready  chan net.Conn
	failed chan error // gets the error with which the underlying listener ends
	closed chan struct{}
	close  func() error // once
}

// Listen returns a listener for TLS connections, of the type *tls.Conn, whose handshake has succeeded. count gets the
// result of each handshake.
func Listen(l net.Listener, config *tls.Config, queue *admission.Queue, count func(error)) net.Listener {
	t := &listener{
		Listener: l, config: config, queue: queue, count: count,
		ready: make(chan net.Conn), failed: make(chan error, 1), closed: make(chan struct{}),
	}
	t.close = sync.OnceValue(func() error { close(t.closed); return l.Close() })
	go t.run()
	return t
}

// Accept implements net.Listener.
func (t *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-t.ready:
		return conn, nil
	case err := <-t.failed:
		t.failed <- err // for the next call
		return nil, err
	}
}

// Close implements net.Listener. It ends the handshakes in progress.
func (t *listener) Close() error { return t.close() }

// Delays before the listener accepts again after a temporary error.
const minAcceptDelay, maxAcceptDelay = 5 * time.Millisecond, time.Second

// run accepts connections until the underlying listener ends. After a temporary error, such as that of a process with too
// many open files, it waits and continues, as net/http does.
func (t *listener) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	delay := minAcceptDelay
	for {
		raw, err := t.Listener.Accept()
		switch {
		case err == nil:
			delay = minAcceptDelay
			go t.shake(ctx, raw)
		case isTemporary(err) && t.wait(delay):
			delay = min(2*delay, maxAcceptDelay)
		default:
			t.failed <- err
			return
		}
	}
}

// isTemporary reports whether Accept may succeed after an error.
func isTemporary(err error) bool {
	failure := net.Error(nil)
	return errors.As(err, &failure) && failure.Temporary() //nolint:staticcheck // deprecated, but nothing else tells these errors of Accept apart
}

// wait waits, and returns false if the listener is closed before that.
func (t *listener) wait(delay time.Duration) bool {
	select {
	case <-time.After(delay):
		return true
	case <-t.closed:
		return false
	}
}

// shake makes one handshake, and hands over its connection.
func (t *listener) shake(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	limited := NewConn(ctx, raw, t.queue)
	conn := tls.Server(limited, t.config)
	err := conn.HandshakeContext(ctx)
	limited.End()
	t.count(err)
	if err == nil {
		select {
		case t.ready <- conn:
			return
		case <-t.closed:
		}
	}
	_ = raw.Close() // the client learns the reason from the alert, if there is one
}
