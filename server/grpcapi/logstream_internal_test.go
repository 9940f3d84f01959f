package grpcapi

import (
	"context"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// unreadStream is a stream whose client reads that many entries, and then none.
type unreadStream struct {
	grpc.ServerStream
	ctx  context.Context
	read int
}

// Context implements grpc.ServerStream.
func (u *unreadStream) Context() context.Context { return u.ctx }

// Send implements grpc.ServerStreamingServer.
func (u *unreadStream) Send(*brevetv1.ListEntriesResponse) error {
	if u.read--; u.read >= 0 {
		return nil
	}
	<-u.ctx.Done()
	return u.ctx.Err()
}

func TestAPageThatIsNotReadEndsItsStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		page := make([]*brevetv1.ListEntriesResponse, 3)
		if err := sendPage(&unreadStream{ctx: t.Context(), read: 3}, page); err != nil {
			t.Errorf("a page that is read ends with %v", err)
		}
		ctx, end := context.WithCancel(t.Context())
		defer end() // as grpc does with the stream's context
		if err := sendPage(&unreadStream{ctx: ctx, read: 2}, page); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("a page that is not read ends with %v", err)
		}
	})
}
