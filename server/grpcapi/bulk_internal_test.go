package grpcapi

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/peer"
)

// The processing of an issue request ends with its stream and keeps the stream's caller. If the stream's deadline
// passes, the error is Canceled, because the store would count an exceeded deadline as its own failure.
func TestIssueRequestsHaveNoDeadline(t *testing.T) {
	caller := &peer.Peer{LocalAddr: nil}
	ctx, cancel := context.WithDeadline(peer.NewContext(t.Context(), caller), time.Now().Add(-time.Second))
	defer cancel()
	work, end := workContext(ctx)
	defer end()
	<-work.Done()
	if err := work.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("at the deadline of its stream a request ends with %v", err)
	}
	if p, _ := peer.FromContext(work); p != caller {
		t.Error("a request does not know its caller")
	}
	open, done := workContext(t.Context())
	if open.Err() != nil {
		t.Error("a request ended before its stream")
	}
	done()
	if open.Err() == nil {
		t.Error("a request outlives its stream")
	}
}
