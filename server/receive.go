package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
)

// gRPC decodes a message before an interceptor sees the call, and answers what it cannot decode by itself: untyped,
// uncounted, and to callers who may not call. So the handlers are wrapped instead, and the gate stands before the
// message is read.

// received is a message that is being read: what to decode it into, and whether that worked.
type received struct {
	into any
	err  error
}

// codec is gRPC's own for protobuf. It keeps the error of what it cannot decode, since gRPC would answer that at once.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*received)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	m.err = c.CodecV2.Unmarshal(data, m.into)
	return nil
}

// receive reads a call's message, or refuses it.
func receive(read func(any) error, into any) error {
	m := received{into: into}
	err := read(&m)
	switch {
	case status.Code(err) == codes.ResourceExhausted:
		// gRPC has answered already, with the same code and no rule: it keeps nothing of so large a message.
		return pki.Refuse(pki.RuleSize, "send less, or in several calls", "the message is over %d KiB", maxMessage>>10)
	case status.Code(err) == codes.Internal:
		// gRPC has answered this already, too: a call that ends without a message, or goes on after it.
		return pki.Refuse(pki.RuleRequest, "send one message", "the call has not one message")
	case err != nil:
		return err
	case m.err != nil:
		return pki.Refuse(pki.RuleRequest, "send the message of this call as protobuf has it (proto/brevet/v1), with text in UTF-8",
			"the message does not decode")
	}
	return nil
}

// gated registers services whose calls go through the server's gate.
type gated struct {
	*grpc.Server
	server *Server
}

// RegisterService implements grpc.ServiceRegistrar.
func (g gated) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		d.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: g.server.unary("/"+d.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	g.Server.RegisterService(&d, impl)
}

// unary puts the gate before the reading of a handler's message, the intake before the handler, and the typed answer
// behind it.
func (s *Server) unary(method string, next grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (resp any, err error) {
		begun := time.Now()
		defer func() { err = s.answer(ctx, method, begun, recover(), err) }()
		known, err := s.gate.enter(ctx, method)
		leave := func() {}
		defer func() { leave() }()
		if err = s.intake.admit(known, method, err); err == nil {
			resp, err = next(srv, known, func(into any) (err error) {
				// A caller that sends nothing takes no place from those who do.
				if err = receive(read, into); err == nil {
					leave, err = s.intake.enter(known, method)
				}
				return err
			}, nil)
		}
		return resp, s.note(known, err)
	}
}

// stream does the same for streams, whose interceptor comes before their messages.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	begun := time.Now()
	defer func() { err = s.answer(ss.Context(), info.FullMethod, begun, recover(), err) }()
	ctx, err := s.gate.enter(ss.Context(), info.FullMethod)
	leave := func() {}
	defer func() { leave() }()
	if err = s.intake.admit(ctx, info.FullMethod, err); err == nil {
		leave, err = s.intake.enter(ctx, info.FullMethod)
	}
	if err == nil {
		err = next(srv, streamOf{ss, ctx, func() error { _, err := s.gate.enter(ctx, info.FullMethod); return err }})
	}
	return s.note(ctx, err)
}

// streamOf is a ServerStream whose context knows the caller, and which refuses messages as unary calls do.
type streamOf struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // the way grpc has a stream's context replaced
	enter func() error
}

// Context returns the context that knows the caller.
func (s streamOf) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream. A stream can outlive its caller's certificate, so that is looked at before each
// message is used.
func (s streamOf) RecvMsg(into any) error {
	if err := receive(s.ServerStream.RecvMsg, into); err != nil {
		return err
	}
	return s.enter()
}
