package client

import (
	"bytes"
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// TestRepeatChanges checks which RPCs are repeated, and that each repetition has the request ID of the first RPC.
func TestRepeatChanges(t *testing.T) {
	t.Parallel()
	conn, err := grpc.NewClient("passthrough:///ca:7443", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	unavailable := status.Error(codes.Unavailable, "not now")
	for name, c := range map[string]struct {
		req     interface{ GetRequestId() []byte }
		answers []error // errors of the first RPCs, in order; later ones succeed
		calls   int
		code    codes.Code
	}{
		"answered":             {&brevetv1.CreateTokenRequest{}, nil, 1, codes.OK},
		"unavailable once":     {&brevetv1.CreateTokenRequest{}, []error{unavailable}, 2, codes.OK},
		"with an ID":           {&brevetv1.RetireIdentityRequest{RequestId: bytes.Repeat([]byte{7}, 16)}, []error{status.Error(codes.DeadlineExceeded, "late")}, 2, codes.OK},
		"refused":              {&brevetv1.RevokeTokenRequest{}, []error{status.Error(codes.FailedPrecondition, "no")}, 1, codes.FailedPrecondition},
		"overloaded":           {&brevetv1.RevokeTokenRequest{}, []error{status.Error(codes.ResourceExhausted, "busy")}, 1, codes.ResourceExhausted},
		"unavailable for good": {&brevetv1.HoldCertificateRequest{}, []error{unavailable, unavailable, unavailable, unavailable, unavailable}, 4, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			given, calls := c.req.GetRequestId(), 0
			var id []byte
			err := RepeatChanges(t.Context(), "/method", c.req, nil, conn, func(_ context.Context, _ string, req, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				got := req.(interface{ GetRequestId() []byte }).GetRequestId()
				if len(got) != 16 || id != nil && !bytes.Equal(got, id) || len(given) > 0 && !bytes.Equal(got, given) {
					t.Errorf("call %d has the request ID %x", calls, got)
				}
				id = bytes.Clone(got)
				if calls++; calls > len(c.answers) {
					return nil
				}
				return c.answers[calls-1]
			})
			if status.Code(err) != c.code || calls != c.calls {
				t.Errorf("%d calls end with %v, want %d with %s", calls, err, c.calls, c.code)
			}
		})
	}
	calls := 0
	err = RepeatChanges(t.Context(), "/method", &brevetv1.ListTokensRequest{}, nil, conn, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		calls++
		return unavailable
	})
	if calls != 1 || status.Code(err) != codes.Unavailable {
		t.Errorf("a list is called %d times: %v", calls, err)
	}
}
