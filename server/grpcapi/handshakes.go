package grpcapi

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
)

// Bounds of what a client sends in a handshake. Only its own certificate is used: the server has the CA certificates.
const (
	maxCertificates     = 8
	maxCertificateBytes = 16 << 10                    // of all certificates
	maxHandshakeBytes   = maxCertificateBytes + 8<<10 // of everything
)

// checkCertificates implements tls.Config.VerifyPeerCertificate. It refuses what crypto/tls would keep for as long as the connection.
func checkCertificates(chain [][]byte, _ [][]*x509.Certificate) error {
	total := 0
	for _, der := range chain {
		total += len(der)
	}
	if len(chain) > maxCertificates || total > maxCertificateBytes {
		return fmt.Errorf("the client sent %d certificates of %d bytes, the maximum is %d of %d bytes",
			len(chain), total, maxCertificates, maxCertificateBytes)
	}
	return nil
}

// clientInfo is what a connection keeps of its handshake.
type clientInfo struct {
	credentials.CommonAuthInfo
	client *authz.Client // the client's own certificate; nil if it sent none
}

// AuthType implements credentials.AuthInfo.
func (clientInfo) AuthType() string { return "tls" }

// reduce keeps the client's own certificate of what crypto/tls knows of the client, and lets the rest go. The list of
// certificates is the connection's own, and keeps the whole message of the handshake.
func reduce(info credentials.AuthInfo) (credentials.AuthInfo, error) {
	kept := clientInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	state, ok := info.(credentials.TLSInfo)
	if !ok || len(state.State.PeerCertificates) == 0 {
		return kept, nil
	}
	var err error
	kept.client, err = authz.NewClient(state.State.PeerCertificates[0].Raw)
	clear(state.State.PeerCertificates)
	return kept, err
}

// boundedTLS has few handshakes compute at once, counts them, and keeps little of them.
type boundedTLS struct {
	credentials.TransportCredentials
	queue *admission.Queue
	meter Meter
}

// ServerHandshake implements credentials.TransportCredentials.
func (b boundedTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	shaking := &handshake{Conn: raw, ctx: ctx, queue: b.queue}
	conn, info, err := b.TransportCredentials.ServerHandshake(shaking)
	shaking.rest()
	shaking.over = true
	if err == nil {
		info, err = reduce(info)
	}
	b.meter.Handshake(err)
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (b boundedTLS) Clone() credentials.TransportCredentials {
	return boundedTLS{b.TransportCredentials.Clone(), b.queue, b.meter}
}

// handshake is a connection whose handshake is in its queue from when bytes of the client have come until the next ones
// are waited for: while it computes. A client that sends nothing, or slowly, takes nobody's place.
type handshake struct {
	net.Conn
	ctx   context.Context //nolint:containedctx // of the handshake, which knows of none
	queue *admission.Queue
	leave func() // nil while it is not in the queue
	read  int    // bytes
	over  bool
}

// Read implements net.Conn.
func (h *handshake) Read(p []byte) (int, error) {
	if h.over {
		return h.Conn.Read(p)
	}
	h.rest()
	if h.read >= maxHandshakeBytes {
		return 0, fmt.Errorf("the client sent %d bytes in its handshake, the maximum is %d", h.read, maxHandshakeBytes)
	}
	n, err := h.Conn.Read(p[:min(len(p), maxHandshakeBytes-h.read)])
	h.read += n
	if err != nil {
		return n, err
	}
	if h.leave, err = h.queue.Acquire(h.ctx, admission.Address(h.RemoteAddr())); err != nil {
		return 0, err
	}
	return n, nil
}

// rest leaves the queue.
func (h *handshake) rest() {
	if h.leave != nil {
		h.leave()
		h.leave = nil
	}
}
