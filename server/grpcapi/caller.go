package grpcapi

import (
	"context"
	"net"
	"net/netip"

	"google.golang.org/grpc/peer"

	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
)

type callerKey struct{}

func withCaller(ctx context.Context, c authz.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns the verified caller of an RPC. It is zero if the RPC needs no certificate.
func callerOf(ctx context.Context) authz.Caller {
	c, _ := ctx.Value(callerKey{}).(authz.Caller)
	return c
}

// clientOf returns the certificate that the client of an RPC sent in its TLS handshake, or nil if it sent none.
func clientOf(ctx context.Context) *authz.Client {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, _ := p.AuthInfo.(clientInfo)
	return info.client
}

// sourceOf returns the source that an RPC counts for. An RPC with a certificate that is no longer good counts for the
// client's address, so that it does not use up the rate of the identity's good certificate.
func sourceOf(ctx context.Context) admission.Source {
	if c := callerOf(ctx); !c.ID.IsZero() && !c.Past {
		return admission.Identity(c.ID, c.Key)
	}
	return addressOf(ctx)
}

func addressOf(ctx context.Context) admission.Source {
	if p, ok := peer.FromContext(ctx); ok {
		return admission.Address(p.Addr)
	}
	return admission.Source{}
}

// clientAddress returns the address of the client, and the zero Addr if it is not an IP address.
func clientAddress(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	tcp, ok := p.Addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// recordRefusal records err if it is a refusal, and returns it. If the caller is known, the record is in the audit log.
func (s *Server) recordRefusal(ctx context.Context, err error) error {
	c := callerOf(ctx)
	return s.config.Refusals.Record(ctx, c.Actor(), c.ID, err)
}
