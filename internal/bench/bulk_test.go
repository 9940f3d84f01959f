package bench

import (
	"context"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// agingServer is a client of a server that ends each stream after some responses. It leaves the request that it has just
// received without a response.
type agingServer struct {
	brevetv1.CertificateServiceClient
	responses int // of a stream
	streams   int
	issued    map[string]string // request ID to identity
}

// IssueCertificates implements brevetv1.CertificateServiceClient.
func (s *agingServer) IssueCertificates(ctx context.Context, _ ...grpc.CallOption) (brevetv1.CertificateService_IssueCertificatesClient, error) {
	s.streams++
	return &agingStream{server: s, ctx: ctx, requests: make(chan *brevetv1.IssueCertificatesRequest, 2*requestsInFlight)}, nil
}

type agingStream struct {
	brevetv1.CertificateService_IssueCertificatesClient
	server   *agingServer
	ctx      context.Context
	requests chan *brevetv1.IssueCertificatesRequest
	received int
}

func (s *agingStream) Send(q *brevetv1.IssueCertificatesRequest) error {
	s.requests <- q
	return nil
}

func (s *agingStream) CloseSend() error {
	close(s.requests)
	return nil
}

func (s *agingStream) Recv() (*brevetv1.IssueCertificatesResponse, error) {
	q, ok := <-s.requests
	if !ok {
		return nil, io.EOF
	}
	if s.received++; s.received > s.server.responses {
		return nil, status.Error(codes.Unavailable, "closing transport due to: max_age")
	}
	id := string(q.GetRequestId())
	if was, again := s.server.issued[id]; again && was != q.GetIdentity() {
		return nil, status.Error(codes.InvalidArgument, "request ID reused")
	}
	s.server.issued[id] = q.GetIdentity()
	return &brevetv1.IssueCertificatesResponse{
		RequestId: q.GetRequestId(), Result: &brevetv1.IssueCertificatesResponse_Certificate{Certificate: []byte{1}},
	}, nil
}

func TestBulkContinuesAfterTheMaximumAgeOfAConnection(t *testing.T) {
	const count = 1000
	server := &agingServer{responses: 90, issued: map[string]string{}}
	o := &bulkCaller{caller: &caller{client: server}}
	for range requestsInFlight {
		o.devices = append(o.devices, &deviceSupply{prefix: "device/x"})
	}
	var requested atomic.Int64
	requested.Store(requestsInFlight)
	latencies, err := o.requestWhile(t.Context(), func() bool { return requested.Add(1) <= count })
	if err != nil || len(latencies) != count || len(server.issued) != count || server.streams < 2 {
		t.Errorf("requestWhile: %d latencies, %v; %d certificates on %d streams, want %d on several", len(latencies), err, len(server.issued), server.streams, count)
	}
}

// A server that responds to nothing is not tried again and again.
func TestBulkStopsAtAServerThatDoesNotRespond(t *testing.T) {
	server := &agingServer{issued: map[string]string{}}
	o := &bulkCaller{caller: &caller{client: server}, devices: []*deviceSupply{{prefix: "device/x"}}}
	if _, err := o.requestWhile(t.Context(), func() bool { return true }); status.Code(err) != codes.Unavailable || server.streams != 1 {
		t.Errorf("requestWhile: %v after %d streams, want Unavailable after one", err, server.streams)
	}
}
