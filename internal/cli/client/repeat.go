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

// repeatWaits are the delays before RepeatChanges repeats an RPC, unless the server requests longer ones.
var repeatWaits = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, time.Second}

// maxRepeatWait is the maximum delay that RepeatChanges accepts from the server.
const maxRepeatWait = 5 * time.Second

// RepeatChanges is an interceptor that repeats RPCs with a request ID. These are the RPCs that change something. It
// generates an ID if the request has none. If the server is unavailable or does not respond in time, it sends the
// request again. The server applies the requests with one ID only once.
func RepeatChanges(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if !setRequestID(req) {
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

// setRequestID generates an ID for a request that has an empty request_id. It returns false if the message type has no
// such field.
func setRequestID(req any) bool {
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
		_, _ = rand.Read(id) // never fails: without randomness crypto/rand ends the process
		r.Set(field, protoreflect.ValueOfBytes(id))
	}
	return true
}
