package server

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/server/admission"
)

// boundedTLS has few handshakes compute at once, and counts them.
type boundedTLS struct {
	credentials.TransportCredentials
	server *Server
}

// ServerHandshake implements credentials.TransportCredentials.
func (b boundedTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	shaking := &handshake{Conn: raw, ctx: ctx, lane: b.server.intake.lanes[handshakes]}
	conn, info, err := b.TransportCredentials.ServerHandshake(shaking)
	shaking.rest()
	shaking.over = true
	b.server.metrics.handshakes.WithLabelValues(resultOf(err)).Inc()
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (b boundedTLS) Clone() credentials.TransportCredentials {
	return boundedTLS{b.TransportCredentials.Clone(), b.server}
}

// handshake is a connection whose handshake is in its lane from when octets of the client have come until the next ones
// are waited for: while it computes. A client that sends nothing, or slowly, takes nobody's place.
type handshake struct {
	net.Conn
	ctx   context.Context //nolint:containedctx // of the handshake, which knows of none
	lane  *admission.Lane
	leave func() // nil while it is not in the lane
	over  bool
}

// Read implements net.Conn.
func (h *handshake) Read(p []byte) (int, error) {
	if h.over {
		return h.Conn.Read(p)
	}
	h.rest()
	n, err := h.Conn.Read(p)
	if err != nil {
		return n, err
	}
	if h.leave, err = h.lane.Enter(h.ctx, admission.Address(h.RemoteAddr())); err != nil {
		return 0, err
	}
	return n, nil
}

// rest leaves the lane.
func (h *handshake) rest() {
	if h.leave != nil {
		h.leave()
		h.leave = nil
	}
}
