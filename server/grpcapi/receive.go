package grpcapi

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/authz"
)

var protobuf = encoding.GetCodecV2(proto.Name)

// message is the target into which codec decodes. If the message is malformed, codec stores a refusal here and returns
// no error, because gRPC would respond to an error with INTERNAL.
type message struct {
	into    any
	refusal *pki.Refusal
}

// codec is the protobuf codec of gRPC, except that it reports a message that is too long or does not decode in
// message.refusal.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, into any) error {
	m, ok := into.(*message)
	if !ok {
		return c.CodecV2.Unmarshal(data, into)
	}
	m.refusal = nil
	if data.Len() > maxMessage {
		m.refusal = pki.Refuse(pki.RuleSize, "send less, or in several calls",
			"the message has %d bytes, and %d are the most", data.Len(), maxMessage)
	} else if err := c.CodecV2.Unmarshal(data, m.into); err != nil {
		m.refusal = pki.Refuse(pki.RuleRequest, "send the message of this call as protobuf has it (proto/brevet/v1), with text in UTF-8",
			"the message does not decode")
	}
	return nil
}

// serviceRegistrar registers services with wrapped handlers: if tap has refused a unary RPC by its headers, the wrapper
// returns that refusal before it reads the message.
type serviceRegistrar struct {
	*grpc.Server
	server *Server
}

// RegisterService implements grpc.ServiceRegistrar.
func (r serviceRegistrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		d.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: r.server.method(m.Handler)}
	}
	r.Server.RegisterService(&d, impl)
}

// method wraps the generated handler of a unary RPC. The generated handler reads the message and then calls the
// interceptor (Server.unary).
func (s *Server) method(next grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, recv func(any) error, interceptor grpc.UnaryServerInterceptor) (resp any, err error) {
		c := callOf(ctx)
		defer func() { err = s.answer(ctx, c.method, c.begun, recover(), err) }()
		if c.refused != nil {
			return nil, s.recordRefusal(ctx, c.refused)
		}
		return next(srv, ctx, func(into any) (err error) {
			c.malformed, err = c.read(recv, into)
			return err
		}, interceptor)
	}
}

// unary is the interceptor of unary RPCs. It runs when the message has arrived.
func (s *Server) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	c := callOf(ctx)
	caller, err := s.config.Authorizer.Authorize(ctx, c.operation, clientOf(ctx))
	ctx = withCaller(ctx, caller)
	if err == nil && c.malformed != nil {
		err = c.malformed
	}
	leave := func() {}
	defer func() { leave() }()
	if err == nil {
		leave, err = s.config.Admission.Enter(ctx, c.operation, sourceOf(ctx), caller.NotAfter)
	}
	if err == nil {
		resp, err = next(ctx, req)
	}
	return resp, s.recordRefusal(ctx, err)
}

// stream is the interceptor of streams. It runs before the first message has arrived.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx := ss.Context()
	c := callOf(ctx)
	defer func() { err = s.answer(ctx, c.method, c.begun, recover(), err) }()
	if c.refused != nil {
		return s.recordRefusal(ctx, c.refused)
	}
	st := &stream{ServerStream: ss, call: c, admission: s.config.Admission, ctx: ctx,
		checks: s.config.Authorizer.NewStream(c.operation, clientOf(ctx), info.IsClientStream)}
	defer st.end()
	if !info.IsClientStream {
		var cancel context.CancelCauseFunc
		st.ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		go st.recheck(cancel)
	}
	err = next(srv, st)
	if refused := context.Cause(st.ctx); err != nil && refused != nil && ctx.Err() == nil {
		err = refused
	}
	return s.recordRefusal(ctx, err)
}

// recheckInterval is the interval at which the server authorizes the caller of a server-streaming RPC again, even if it
// sends no messages.
const recheckInterval = 3 * time.Second

// stream is an open stream. The server checks its caller repeatedly ([authz.Stream]). Its handler gets the first
// message only when Admission lets the stream run.
type stream struct {
	grpc.ServerStream
	call      *call
	ctx       context.Context //nolint:containedctx // the handler's, which ends with the caller's authorization
	checks    *authz.Stream
	admission Admission

	begun bool // whether the stream has entered its queue

	mu    sync.Mutex
	ended bool
	leave func() // frees the stream's slot; nil while it has none
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

// recheck authorizes the caller at intervals until the stream ends, and cancels the stream with the refusal.
func (s *stream) recheck(cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(recheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		if err := s.checks.Recheck(s.ctx); err != nil && s.ctx.Err() == nil {
			cancel(err)
			return
		}
	}
}

// RecvMsg implements grpc.ServerStream. When the first message has arrived, RecvMsg waits for a slot of the stream's
// queue. The stream holds the slot until it ends.
func (s *stream) RecvMsg(into any) error {
	refusal, err := s.call.read(s.ServerStream.RecvMsg, into)
	if err != nil {
		return err
	}
	if err := s.checks.Received(s.call); err != nil {
		return err
	}
	if refusal != nil {
		return refusal
	}
	return s.begin()
}

// SendMsg implements grpc.ServerStream.
func (s *stream) SendMsg(m any) error {
	if err := s.checks.Sent(s.call); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

// begin waits for a slot of the stream's queue, if the stream has none yet. Only the goroutine that reads the messages
// calls it. If the handler has returned in the meantime, begin frees the slot at once.
func (s *stream) begin() error {
	if s.begun {
		return nil
	}
	leave, err := s.admission.Enter(s.call, s.call.operation, sourceOf(s.call), time.Time{})
	if err != nil {
		return err
	}
	s.begun = true
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leave = leave; s.ended {
		leave()
	}
	return nil
}

// end frees the stream's slot, if it has one. It is called when the handler has returned.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.leave != nil {
		s.leave()
	}
}
