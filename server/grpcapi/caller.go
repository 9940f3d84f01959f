package grpcapi

import (
	"context"

	"google.golang.org/grpc/peer"

	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
)

type callerKey struct{}

func withCaller(ctx context.Context, c authz.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns the verified caller of a call; it is zero if anybody may call.
func callerOf(ctx context.Context) authz.Caller {
	c, _ := ctx.Value(callerKey{}).(authz.Caller)
	return c
}

// clientOf returns the certificate that the client of a call sent in its handshake, or nil.
func clientOf(ctx context.Context) *authz.Client {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, _ := p.AuthInfo.(clientInfo)
	return info.client
}

// sourceOf returns what a call counts for. A certificate that is expired or superseded counts for the address: its holder
// must not spend what the identity's good certificate needs.
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

// note records a refusal, in the log if the caller is known, and returns the error.
func (s *Server) note(ctx context.Context, err error) error {
	c := callerOf(ctx)
	return s.config.Refusals.Record(ctx, c.Actor(), c.ID, err)
}
