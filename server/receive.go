package server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/brevet-pki/brevet/pki"
)

// gRPC reads and decodes a message before its own bounds and a codec are asked, and answers what it cannot take by itself:
// untyped, uncounted, and to callers who may not call. So the handlers are wrapped, the gate stands before the message,
// and messages are read here, from the octets that gRPC's transport has.

// frames are the octets of a call. gRPC's stream of the transport has these methods, though none of its interfaces: a
// grpc that has them no longer serves nothing, which every test of a call sees.
type frames interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

var protobuf = encoding.GetCodecV2(proto.Name)

// receive reads the next message of a call, or refuses it unread. After the last one it returns io.EOF. A message is a
// flag that says whether it is compressed, its length in four octets, and as many octets (gRPC over HTTP/2,
// Length-Prefixed-Message).
func receive(ctx context.Context, into any) error {
	f, ok := grpc.ServerTransportStreamFromContext(ctx).(frames)
	if !ok {
		return errors.New("server: this grpc gives out no octets")
	}
	var header [5]byte
	if err := f.ReadMessageHeader(header[:]); err != nil {
		return unread(ctx, err)
	}
	if length := binary.BigEndian.Uint32(header[1:]); length > maxMessage {
		return pki.Refuse(pki.RuleSize, "send less, or in several calls", "the message has %d octets, and %d are the most", length, maxMessage)
	}
	if header[0] != 0 {
		return pki.Refuse(pki.RuleRequest, "send messages as they are", "the message is compressed")
	}
	data, err := f.Read(int(binary.BigEndian.Uint32(header[1:])))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return unread(ctx, err)
	}
	defer data.Free()
	if err := protobuf.Unmarshal(data, into); err != nil {
		return pki.Refuse(pki.RuleRequest, "send the message of this call as protobuf has it (proto/brevet/v1), with text in UTF-8",
			"the message does not decode")
	}
	return nil
}

// receiveOnly reads the one message of a call that has one.
func receiveOnly(ctx context.Context, into any) error {
	err := receive(ctx, into)
	if err == nil {
		var header [1]byte
		err = grpc.ServerTransportStreamFromContext(ctx).(frames).ReadMessageHeader(header[:]) //nolint:forcetypeassert // receive has looked
		if errors.Is(err, io.EOF) {
			return nil
		}
		err = unread(ctx, err)
	}
	if err == nil || errors.Is(err, io.EOF) {
		return pki.Refuse(pki.RuleRequest, "send one message", "the call has not one message")
	}
	return err
}

// unread says why there is no message. What else fails than the call's end is the connection, so nobody hears of it.
func unread(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF) && ctx.Err() == nil:
		return pki.Refuse(pki.RuleRequest, "send whole messages", "the call ends within a message")
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return context.Canceled
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
	return func(srv any, ctx context.Context, _ func(any) error, _ grpc.UnaryServerInterceptor) (resp any, err error) {
		begun := time.Now()
		defer func() { err = s.answer(ctx, method, begun, recover(), err) }()
		known, err := s.gate.enter(ctx, method)
		leave := func() {}
		defer func() { leave() }()
		if err = s.intake.admit(known, method, err); err == nil {
			resp, err = next(srv, known, func(into any) (err error) {
				// A caller that sends nothing takes no place from those who do.
				if err = receiveOnly(ctx, into); err == nil {
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
		read := receiveOnly
		if info.IsClientStream {
			read = receive
		}
		err = next(srv, streamOf{ss, ctx, read, func() error { _, err := s.gate.enter(ctx, info.FullMethod); return err }})
	}
	return s.note(ctx, err)
}

// streamOf is a ServerStream whose context knows the caller, and which refuses messages as unary calls do.
type streamOf struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // the way grpc has a stream's context replaced
	read  func(context.Context, any) error
	enter func() error
}

// Context returns the context that knows the caller.
func (s streamOf) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream. A stream can outlive its caller's certificate, so that is looked at before each
// message is used.
func (s streamOf) RecvMsg(into any) error {
	if err := s.read(s.ctx, into); err != nil {
		return err
	}
	return s.enter()
}
