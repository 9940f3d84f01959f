package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/authz"
)

// Limits on unread calls. A call is unread from the arrival of its headers until its first message is complete. The
// server buffers the part of the message that has arrived, so all unread calls use at most maxUnread times maxReceived
// bytes.
const (
	maxUnread      = 256             // unread calls of all sources; admission.FairLimit limits those of one source
	messageTimeout = 5 * time.Second // from the arrival of the headers to the end of the first message
)

// call is the context of an RPC, created when its headers arrive. If the first message has not arrived after
// messageTimeout, the context ends.
type call struct {
	context.Context //nolint:containedctx // call is a context itself
	method          string
	operation       authz.Operation // the zero value if the server does not have the method
	begun           time.Time
	refused         error        // the refusal of the call by its headers, or nil
	arrived         func()       // stops the timer for the first message
	malformed       *pki.Refusal // the refusal of a unary call's message, or nil
}

// Err implements context.Context. If the first message is late, it returns context.DeadlineExceeded, and gRPC sends the
// status DEADLINE_EXCEEDED.
func (c *call) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	return context.Cause(c.Context)
}

type callKey struct{}

// Value implements context.Context.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// callOf returns the call from the context of a handler or interceptor, which gRPC derives from the one that tap
// returns.
func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// tap is the server's [tap.ServerInHandle]: gRPC calls it when the headers of an RPC have arrived. gRPC calls it in the
// goroutine that reads the connection, so tap must not block. It does not access the store.
//
// If tap returns a refusal, gRPC ends the RPC before it allocates a stream. tap leaves two kinds of refusals to the
// handler, which returns them before it reads the message:
//   - of an RPC with a deadline, because gRPC would keep a timer of the refused RPC until then, and clients choose
//     deadlines
//   - of a known caller, because the refusal is written to the store
func (s *Server) tap(ctx context.Context, info *tap.Info) (_ context.Context, err error) {
	c := &call{Context: ctx, method: info.FullMethodName, operation: operations[info.FullMethodName], begun: time.Now(), arrived: func() {}}
	defer func() {
		if p := recover(); p != nil {
			err = s.answer(c, c.method, c.begun, p, nil)
		}
	}()
	caller, refused := s.config.Authorizer.Authenticate(c.operation, clientOf(ctx))
	c.Context = withCaller(ctx, caller)
	c.refused = s.config.Admission.Admit(c.operation, sourceOf(c), refused)
	if c.refused == nil {
		c.refused = s.awaitMessage(c)
	}
	_, hasDeadline := ctx.Deadline()
	if c.refused == nil || hasDeadline || !callerOf(c).ID.IsZero() {
		return c, nil
	}
	return nil, s.answer(c, c.method, c.begun, nil, s.recordRefusal(c, c.refused))
}

// awaitMessage counts c as an unread call and starts the timer for its first message, or returns a refusal. The call
// counts until its message has arrived or the call has ended.
func (s *Server) awaitMessage(c *call) error {
	from := addressOf(c)
	if err := s.unread.Acquire(from); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(c.Context)
	late := time.AfterFunc(messageTimeout, func() { cancel(context.DeadlineExceeded) })
	end := sync.OnceFunc(func() { late.Stop(); s.unread.Release(from) })
	stop := context.AfterFunc(ctx, end)
	c.Context, c.arrived = ctx, func() { stop(); end() }
	return nil
}

// read reads the next message with recv, which is RecvMsg or the decoder of a unary call. If the message is too long or
// does not decode, read returns a refusal. If it returns an error other than io.EOF, gRPC has already sent that error
// to the client.
func (c *call) read(recv func(any) error, into any) (*pki.Refusal, error) {
	m := message{into: into}
	if err := recv(&m); errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, status.Error(codes.Internal, err.Error())
	} else if err != nil {
		return nil, err
	}
	c.arrived()
	return m.refusal, nil
}
