package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
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
// result of each handshake. The first error of l ends the listener.
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

// run accepts connections until the underlying listener ends.
func (t *listener) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		raw, err := t.Listener.Accept()
		if err != nil {
			t.failed <- err
			return
		}
		go t.shake(ctx, raw)
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
	explain(raw, err)
	_ = raw.Close() // the client learns the reason from the alert, if there is one
}

// explain tells a client that has sent a request of HTTP without TLS what is wrong, as net/http does.
func explain(raw net.Conn, err error) {
	malformed := tls.RecordHeaderError{}
	if !errors.As(err, &malformed) || malformed.Conn == nil {
		return
	}
	switch string(malformed.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(raw, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
	}
}
