package grpcapi

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/handshake"
)

// clientInfo is the part of a handshake's result that the server keeps for the life of the connection. Of the chain that
// the client sends, the server uses only the client's own certificate, because it has the CA certificates itself.
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

// ServerHandshake implements credentials.TransportCredentials. The handshake has a goroutine of its own, because its stack
// grows to 32 KiB. That of the caller lives as long as the connection.
func (b boundedTLS) ServerHandshake(raw net.Conn) (conn net.Conn, info credentials.AuthInfo, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, info, err = b.handshake(raw)
	}()
	<-done
	return conn, info, err
}

func (b boundedTLS) handshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshake.Timeout)
	defer cancel()
	h := handshake.NewConn(ctx, raw, b.queue)
	conn, info, err := b.TransportCredentials.ServerHandshake(h)
	h.End()
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
