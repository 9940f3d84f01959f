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

// Limits on the data that a client sends in its handshake. The server uses only the client's own certificate of the
// chain, because it has the CA certificates itself.
const (
	maxCertificates     = 8
	maxCertificateBytes = 16 << 10                    // total size of the client's certificates
	maxHandshakeBytes   = maxCertificateBytes + 8<<10 // total size of the client's handshake messages
)

// checkCertificates implements tls.Config.VerifyPeerCertificate. It limits the number and the size of the client's
// certificates, because crypto/tls keeps them in memory until the connection is closed.
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

// clientInfo is the part of a handshake's result that the server keeps for the life of the connection.
type clientInfo struct {
	credentials.CommonAuthInfo
	client *authz.Client // the client's own certificate; nil if it sent none
}

// AuthType implements credentials.AuthInfo.
func (clientInfo) AuthType() string { return "tls" }

// reduce returns a clientInfo with the client's own certificate. It also clears the list of certificates, which belongs
// to the TLS connection: the certificates in it keep the whole handshake message in memory.
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

// boundedTLS limits how many handshakes use the CPU at the same time, counts handshakes, and keeps only a clientInfo of
// each.
type boundedTLS struct {
	credentials.TransportCredentials
	queue *admission.Queue
	meter Meter
}

// ServerHandshake implements credentials.TransportCredentials.
func (b boundedTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	h := &handshake{Conn: raw, ctx: ctx, queue: b.queue}
	conn, info, err := b.TransportCredentials.ServerHandshake(h)
	h.release()
	h.done = true
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

// handshake is a connection during its TLS handshake. It holds a slot of the queue only while the handshake uses the
// CPU: from the arrival of bytes from the client until the next call of Read. A client that sends nothing, or slowly,
// therefore takes no slot from others.
type handshake struct {
	net.Conn
	ctx   context.Context //nolint:containedctx // with the handshake's timeout; Read has no context
	queue *admission.Queue
	leave func() // frees the slot; nil while the handshake has none
	read  int    // number of bytes read
	done  bool   // whether the handshake has ended
}

// Read implements net.Conn.
func (h *handshake) Read(p []byte) (int, error) {
	if h.done {
		return h.Conn.Read(p)
	}
	h.release()
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

// release frees the handshake's slot, if it has one.
func (h *handshake) release() {
	if h.leave != nil {
		h.leave()
		h.leave = nil
	}
}
