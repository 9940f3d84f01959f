// Package handshake limits what TLS handshakes cost a server: how many of them use the CPU at the same time, how long
// they take, and how much data a client sends.
package handshake

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/server/admission"
)

// Timeout is the maximum duration of a handshake.
const Timeout = 10 * time.Second

// Limits on the data that a client sends in its handshake.
const (
	MaxCertificates     = 8
	maxCertificateBytes = 16 << 10                    // total size of the client's certificates
	maxBytes            = maxCertificateBytes + 8<<10 // total size of the client's handshake messages
)

// CheckCertificates implements tls.Config.VerifyPeerCertificate. It limits the number and the size of the client's
// certificates, because crypto/tls keeps them in memory until the connection is closed.
func CheckCertificates(chain [][]byte, _ [][]*x509.Certificate) error {
	total := 0
	for _, der := range chain {
		total += len(der)
	}
	if len(chain) > MaxCertificates || total > maxCertificateBytes {
		return fmt.Errorf("the client sent %d certificates of %d bytes, the maximum is %d of %d bytes",
			len(chain), total, MaxCertificates, maxCertificateBytes)
	}
	return nil
}

// Conn is a connection during its TLS handshake. It holds a slot of the queue only while the handshake uses the CPU: from
// the arrival of bytes from the client until the next call of Read. A client that sends nothing, or slowly, therefore
// takes no slot from others.
type Conn struct {
	net.Conn
	ctx   context.Context //nolint:containedctx // with the handshake's timeout; Read has no context
	queue *admission.Queue
	leave func() // frees the slot; nil while the handshake has none
	read  int    // number of bytes read
	done  atomic.Bool
}

// NewConn returns a Conn whose handshake must end before ctx does.
func NewConn(ctx context.Context, raw net.Conn, queue *admission.Queue) *Conn {
	return &Conn{Conn: raw, ctx: ctx, queue: queue}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if c.done.Load() {
		return c.Conn.Read(p)
	}
	c.release()
	if c.read >= maxBytes {
		return 0, fmt.Errorf("the client sent %d bytes in its handshake, the maximum is %d", c.read, maxBytes)
	}
	n, err := c.Conn.Read(p[:min(len(p), maxBytes-c.read)])
	c.read += n
	if err != nil {
		return n, err
	}
	if c.leave, err = c.queue.Acquire(c.ctx, admission.Address(c.RemoteAddr())); err != nil {
		return 0, err
	}
	return n, nil
}

// End ends the limits of the handshake. The goroutine of the handshake calls it when the handshake has ended.
func (c *Conn) End() {
	c.release()
	c.done.Store(true)
}

// release frees the handshake's slot, if it has one.
func (c *Conn) release() {
	if c.leave != nil {
		c.leave()
		c.leave = nil
	}
}
