package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/ca"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/authz"
)

// Limits of bulk issuance.
const (
	// maxIssueRequests is the maximum number of requests, of all streams, that the server processes at a time. It is half
	// of the certificates that package ca can have in flight (ca.maxInFlight), so that devices get the other half.
	maxIssueRequests = 512
	// streamWindow is the maximum number of requests of one stream that the server has read and not yet responded to.
	streamWindow = 256
)

// maxEchoed is the maximum number of bytes of a malformed request ID that a response repeats.
const maxEchoed = 64

// bulk holds what all streams of issue requests share.
type bulk struct {
	slots    chan struct{} // contains a value for each request being processed
	stopping <-chan struct{}
	workers  *workers // process requests
	// authenticate verifies the certificate of a stream's caller again. The registrar checks the state of the caller's
	// identity, which it reads together with the other data for its decision.
	authenticate func(ctx context.Context) error
	// conclude records the result of an issue request, and returns the error for its response. The error is the same as
	// that of a unary RPC.
	conclude func(ctx context.Context, begun time.Time, panicked any, err error) error
}

func newBulk(s *Server) *bulk {
	method := brevetv1.CertificateService_IssueCertificates_FullMethodName
	return &bulk{
		slots: make(chan struct{}, maxIssueRequests), stopping: s.stopping, workers: newWorkers(s.stopping),
		authenticate: func(ctx context.Context) error {
			_, err := s.config.Authorizer.Authenticate(authz.IssueCertificates, clientOf(ctx))
			return err
		},
		conclude: func(ctx context.Context, begun time.Time, panicked any, err error) error {
			return s.answer(ctx, method, begun, panicked, s.recordRefusal(ctx, err))
		},
	}
}

type bidiStream = grpc.BidiStreamingServer[brevetv1.IssueCertificatesRequest, brevetv1.IssueCertificatesResponse]

// IssueCertificates serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) IssueCertificates(stream bidiStream) error {
	i := &issueStream{Certificates: s, stream: stream, window: make(chan struct{}, streamWindow)}
	return i.serve(stream.Context())
}

// issueStream is one stream of issue requests. Each request occupies a place in the window from before it is read until
// its response is sent. If a client does not read the responses, the window becomes full, and the server reads no more
// requests. HTTP/2 flow control then stops the client from sending.
type issueStream struct {
	*Certificates
	stream bidiStream
	window chan struct{}
	active sync.WaitGroup // requests being processed

	mu sync.Mutex // serializes calls of Send
}

// received is the result of one Recv on a stream.
type received struct {
	req *brevetv1.IssueCertificatesRequest
	err error
}

// serve processes requests until the client or the server ends the stream. It returns when all requests that it has
// started to process are done.
func (i *issueStream) serve(ctx context.Context) error {
	work, end := workContext(ctx)
	defer end()
	defer i.active.Wait()
	done := make(chan struct{})
	defer close(done)
	requests := i.read(done)
	for {
		if err := acquire(ctx, i.window, i.bulk.stopping); err != nil {
			return err
		}
		var next received
		select {
		case next = <-requests:
		case <-i.bulk.stopping:
			return errStopping()
		}
		if errors.Is(next.err, io.EOF) {
			return nil
		}
		if next.err != nil {
			return next.err
		}
		if err := acquire(ctx, i.bulk.slots, i.bulk.stopping); err != nil {
			return err
		}
		i.active.Add(1)
		i.bulk.workers.run(func() {
			defer i.active.Done()
			i.send(i.process(work, next.req))
			<-i.window
		})
	}
}

// workContext returns the context for processing a stream's requests. It ends when ctx ends, but with the error
// context.Canceled and never with an exceeded deadline, which the store would log as its own slowness. It has no trace
// span, because one stream can have any number of requests.
func workContext(ctx context.Context) (context.Context, context.CancelFunc) {
	untraced := trace.ContextWithSpanContext(context.WithoutCancel(ctx), trace.SpanContext{})
	work, end := context.WithCancel(untraced)
	stop := context.AfterFunc(ctx, end)
	return work, func() { stop(); end() }
}

// read returns a channel with the requests of the stream, and at last the error that ends it. It stops when done is
// closed. It reads in a goroutine, because Recv blocks until a message arrives or the RPC ends.
func (i *issueStream) read(done <-chan struct{}) <-chan received {
	requests := make(chan received)
	go func() {
		for {
			req, err := i.stream.Recv()
			select {
			case requests <- received{req, err}:
			case <-done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return requests
}

// process processes one request, frees its slot and returns the response.
func (i *issueStream) process(ctx context.Context, req *brevetv1.IssueCertificatesRequest) *brevetv1.IssueCertificatesResponse {
	cert, err := i.issue(ctx, req)
	<-i.bulk.slots
	resp := &brevetv1.IssueCertificatesResponse{RequestId: req.GetRequestId()}
	if len(resp.RequestId) > maxEchoed {
		resp.RequestId = resp.RequestId[:maxEchoed]
	}
	if err != nil {
		resp.Result = &brevetv1.IssueCertificatesResponse_Error{Error: status.Convert(err).Proto()}
		return resp
	}
	resp.Result = &brevetv1.IssueCertificatesResponse_Certificate{Certificate: cert.DER}
	resp.IssuerId = cert.Ref.Issuer.Bytes()
	return resp
}

// issue returns the certificate for a request, or the error for the response.
func (i *issueStream) issue(ctx context.Context, req *brevetv1.IssueCertificatesRequest) (cert ca.Certificate, err error) {
	begun := time.Now()
	defer func() { err = i.bulk.conclude(ctx, begun, recover(), err) }()
	if err := i.bulk.authenticate(ctx); err != nil {
		return cert, err
	}
	id, lifetime, err := requestOf(req)
	if err != nil {
		return cert, err
	}
	register, err := registrationOf(req)
	if err != nil {
		return cert, err
	}
	return i.Registrar.Issue(ctx, ra.IssueRequest{
		RequestID: id, Name: req.GetIdentity(), CSR: req.GetCsr(), Lifetime: lifetime, Register: register, Actor: callerOf(ctx).Actor(),
	})
}

// registrationOf returns the identity that a request registers, or nil if it registers none.
func registrationOf(req *brevetv1.IssueCertificatesRequest) (*ra.NewIdentity, error) {
	if req.GetRegistration() == nil {
		return nil, nil
	}
	n, err := newIdentityOf(req.GetIdentity(), req.GetRegistration())
	return &n, err
}

// send sends a response. If the client has gone, the response is lost: when the client repeats the request, it gets the
// same certificate from the store.
func (i *issueStream) send(resp *brevetv1.IssueCertificatesResponse) {
	i.mu.Lock()
	defer i.mu.Unlock()
	_ = i.stream.Send(resp)
}

// errStopping returns the error with which streams end when the server stops.
func errStopping() error {
	st := status.New(codes.Unavailable, "the server is stopping: send again, on a new stream, what is not answered")
	if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}); err == nil {
		st = with
	}
	return st.Err()
}

// acquire waits until it can put a value into slots. It returns an error if the server stops or ctx ends.
func acquire(ctx context.Context, slots chan<- struct{}, stopping <-chan struct{}) error {
	select {
	case <-stopping: // checked first, because select chooses at random if a slot is free too
		return errStopping()
	default:
	}
	select {
	case slots <- struct{}{}:
		return nil
	case <-stopping:
		return errStopping()
	case <-ctx.Done():
		return ctx.Err()
	}
}
