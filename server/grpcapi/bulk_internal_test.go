package grpcapi

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/peer"
)

// An order ends with its stream, knows its caller, and meets no deadline, which would count as the store's failure.
func TestOrdersMeetNoDeadline(t *testing.T) {
	caller := &peer.Peer{LocalAddr: nil}
	ctx, cancel := context.WithDeadline(peer.NewContext(t.Context(), caller), time.Now().Add(-time.Second))
	defer cancel()
	work, end := apart(ctx)
	defer end()
	<-work.Done()
	if err := work.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("at the deadline of its stream an order ends with %v", err)
	}
	if p, _ := peer.FromContext(work); p != caller {
		t.Error("an order does not know its caller")
	}
	open, done := apart(t.Context())
	if open.Err() != nil {
		t.Error("an order ended before its stream")
	}
	done()
	if open.Err() == nil {
		t.Error("an order outlives its stream")
	}
}
