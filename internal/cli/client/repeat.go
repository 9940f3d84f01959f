package client

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

// repeatWaits are the waits before the repeats of a changing call, unless the server asks for longer ones.
var repeatWaits = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, time.Second}

// maxRepeatWait bounds the wait that a server asks for.
const maxRepeatWait = 5 * time.Second

// RepeatChanges is an interceptor for changing calls: those whose request has a request ID. It draws the ID if the request
// has none. If the server is unavailable or its answer does not arrive, it repeats the call: the server changes nothing
// twice for one ID.
func RepeatChanges(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if !drawRequestID(req) {
		return call(ctx, method, req, reply, conn, opts...)
	}
	for i := 0; ; i++ {
		err := call(ctx, method, req, reply, conn, opts...)
		if code := status.Code(err); i == len(repeatWaits) || code != codes.Unavailable && code != codes.DeadlineExceeded {
			return err
		}
		wait := min(max(repeatWaits[i], pki.RetryAfter(enroll.CallError(conn.Target(), err))), maxRepeatWait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// drawRequestID gives a request an ID if it takes one and has none, and reports whether it takes one.
func drawRequestID(req any) bool {
	m, ok := req.(proto.Message)
	if !ok {
		return false
	}
	r := m.ProtoReflect()
	field := r.Descriptor().Fields().ByName("request_id")
	if field == nil || field.Kind() != protoreflect.BytesKind {
		return false
	}
	if len(r.Get(field).Bytes()) == 0 {
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails: crypto/rand ends the process if it has no randomness
		r.Set(field, protoreflect.ValueOfBytes(id))
	}
	return true
}
