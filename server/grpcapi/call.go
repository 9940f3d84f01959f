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

// Bounds of unread calls: those whose headers have arrived, and whose first message has not. Each keeps what has arrived of
// its message, so together they keep maxUnread times maxReceived bytes at most.
const (
	maxUnread      = 256             // from all sources, see admission.Shares
	messageTimeout = 5 * time.Second // from the headers to the end of the first message
)

// call is the context of an RPC from its headers on. It ends after messageTimeout if no message has arrived.
type call struct {
	context.Context //nolint:containedctx // it is one
	method          string
	operation       authz.Operation // the zero value if the method is not served
	begun           time.Time
	refused         error        // why the call is refused by its headers, or nil
	arrived         func()       // ends the wait for the message
	malformed       *pki.Refusal // why the message of a unary call is refused, or nil
}

// Err implements context.Context. It returns context.DeadlineExceeded if the message is late, so gRPC answers with it.
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

// callOf returns the call of a context that gRPC made.
func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// tap looks at the headers of every call. gRPC runs it in the goroutine that reads the connection, so it must not block:
// it reads memory only, and handlers log what has to be written to the store.
//
// A call that may not be made is refused here, before gRPC allocates a stream. gRPC keeps the timer of a call with
// a deadline that is refused here until that deadline, which the client chooses. So the handler refuses such calls, also
// before their message is read.
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
		c.refused = s.await(c)
	}
	_, timed := ctx.Deadline()
	if c.refused == nil || timed || !callerOf(c).ID.IsZero() {
		return c, nil
	}
	return nil, s.answer(c, c.method, c.begun, nil, s.note(c, c.refused))
}

// await counts an unread call, or refuses it. The count ends when the message has arrived or the call is over.
func (s *Server) await(c *call) error {
	from := addressOf(c)
	if err := s.unread.Take(from); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(c.Context)
	late := time.AfterFunc(messageTimeout, func() { cancel(context.DeadlineExceeded) })
	end := sync.OnceFunc(func() { late.Stop(); s.unread.Return(from) })
	gone := context.AfterFunc(ctx, end)
	c.Context, c.arrived = ctx, func() { gone(); end() }
	return nil
}

// read reads a message of the call by recv, and reports what is wrong with it as a refusal. If it returns an error other
// than io.EOF, gRPC has answered the call with it.
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
