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
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/authz"
)

// Bounds of bulk issuing.
const (
	maxOrders    = 512 // carried out at once: half of what the CA has in flight (ca/writer.go), and the other half is the devices'
	ordersWindow = 256 // of one stream, from being read to being answered
)

// maxEcho bounds what an answer repeats of a request ID that is not of its form.
const maxEcho = 64

// bulk is what all streams of orders share.
type bulk struct {
	places   chan struct{} // one for each order that is carried out
	stopping <-chan struct{}
	// authorize checks the caller of a stream again.
	authorize func(ctx context.Context) error
	// conclude turns what an order came to into the error that a call of its own would have ended with.
	conclude func(ctx context.Context, begun time.Time, panicked any, err error) error
}

func newBulk(s *Server) *bulk {
	method := brevetv1.EnrollmentService_IssueCertificates_FullMethodName
	return &bulk{
		places: make(chan struct{}, maxOrders), stopping: s.stopping,
		authorize: func(ctx context.Context) error {
			_, err := s.config.Authorizer.Authorize(ctx, authz.IssueCertificates, clientOf(ctx))
			return err
		},
		conclude: func(ctx context.Context, begun time.Time, panicked any, err error) error {
			return s.answer(ctx, method, begun, panicked, s.note(ctx, err))
		},
	}
}

type orderStream = grpc.BidiStreamingServer[brevetv1.IssueCertificatesRequest, brevetv1.IssueCertificatesResponse]

// IssueCertificates serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) IssueCertificates(stream orderStream) error {
	o := &orders{Enrollment: e, stream: stream, window: make(chan struct{}, ordersWindow)}
	return o.carryOut(stream.Context())
}

// orders is one stream. An order has a place in the window from before it is read until its answer is on the way: who
// reads no answers is not read either, and HTTP/2 holds the rest back.
type orders struct {
	*Enrollment
	stream   orderStream
	window   chan struct{}
	underWay sync.WaitGroup

	mu     sync.Mutex // to send, one after the other
	issuer pki.IssuerID
}

// arrival is what a stream brought.
type arrival struct {
	order *brevetv1.IssueCertificatesRequest
	err   error
}

// carryOut carries out orders until the caller or the server ends it, and returns when what was begun is done.
func (o *orders) carryOut(ctx context.Context) error {
	work, done := apart(ctx)
	defer done()
	defer o.underWay.Wait()
	over := make(chan struct{})
	defer close(over)
	arrivals := o.read(over)
	for {
		if err := take(ctx, o.window, o.bulk.stopping); err != nil {
			return err
		}
		var next arrival
		select {
		case next = <-arrivals:
		case <-o.bulk.stopping:
			return errStopping()
		}
		if errors.Is(next.err, io.EOF) {
			return nil
		}
		if next.err != nil {
			return next.err
		}
		if err := take(ctx, o.bulk.places, o.bulk.stopping); err != nil {
			return err
		}
		o.underWay.Go(func() {
			o.answer(o.fulfil(work, next.order))
			<-o.window
		})
	}
}

// apart returns the context that a stream's orders are carried out under. It ends with the call, but by no deadline: the
// store takes that for its own slowness, and says so. And it is not traced: a stream is one call, of any number of orders.
func apart(ctx context.Context) (context.Context, context.CancelFunc) {
	untraced := trace.ContextWithSpanContext(context.WithoutCancel(ctx), trace.SpanContext{})
	work, end := context.WithCancel(untraced)
	stop := context.AfterFunc(ctx, end)
	return work, func() { stop(); end() }
}

// read passes on what arrives, one message at a time and the end of the stream last, until nobody wants more. It is a
// goroutine of its own because nothing but the end of the call interrupts Recv.
func (o *orders) read(over <-chan struct{}) <-chan arrival {
	arrivals := make(chan arrival)
	go func() {
		for {
			order, err := o.stream.Recv()
			select {
			case arrivals <- arrival{order, err}:
			case <-over:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return arrivals
}

// fulfil carries out one order, and gives its place back.
func (o *orders) fulfil(ctx context.Context, order *brevetv1.IssueCertificatesRequest) (*brevetv1.IssueCertificatesResponse, pki.IssuerID) {
	cert, c, err := o.issue(ctx, order)
	<-o.bulk.places
	resp := &brevetv1.IssueCertificatesResponse{RequestId: order.GetRequestId()}
	if len(resp.RequestId) > maxEcho {
		resp.RequestId = resp.RequestId[:maxEcho]
	}
	if err != nil {
		resp.Result = &brevetv1.IssueCertificatesResponse_Failure{Failure: failureOf(err)}
		return resp, pki.IssuerID{}
	}
	resp.Result = &brevetv1.IssueCertificatesResponse_Certificate{Certificate: c.GetCertificate()}
	resp.Issuer = &brevetv1.Issuer{Chain: c.GetChain(), Roots: c.GetRoots()}
	return resp, cert.Ref.Issuer
}

// issue returns what an order came to: a certificate with its chain, or the error as the caller may see it.
func (o *orders) issue(ctx context.Context, order *brevetv1.IssueCertificatesRequest) (cert ca.Certificate, c *brevetv1.Credential, err error) {
	begun := time.Now()
	defer func() { err = o.bulk.conclude(ctx, begun, recover(), err) }()
	if err := o.bulk.authorize(ctx); err != nil {
		return cert, nil, err
	}
	id, lifetime, err := requestOf(order)
	if err != nil {
		return cert, nil, err
	}
	register, err := registrationOf(order)
	if err != nil {
		return cert, nil, err
	}
	cert, err = o.Registrar.Order(ctx, ra.Order{
		RequestID: id, Name: order.GetId(), CSR: order.GetCsr(), Lifetime: lifetime, Register: register, By: callerOf(ctx).Actor(),
	})
	if err != nil {
		return cert, nil, err
	}
	c, err = o.credential(cert)
	return cert, c, err
}

// registrationOf reads what an order has its identity registered with: nil for nothing.
func registrationOf(order *brevetv1.IssueCertificatesRequest) (*ra.NewIdentity, error) {
	if order.GetRegistration() == nil {
		return nil, nil
	}
	n, err := newIdentityOf(order.GetId(), order.GetRegistration())
	return &n, err
}

// answer sends what an order came to, with the chain where the certificate before had another. Where nobody is left to
// be told, the record answers when the request comes again.
func (o *orders) answer(resp *brevetv1.IssueCertificatesResponse, issuer pki.IssuerID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch issuer {
	case pki.IssuerID{}: // of a failure
	case o.issuer:
		resp.Issuer = nil
	default:
		o.issuer = issuer
	}
	_ = o.stream.Send(resp)
}

// failureOf says in a message what the error of a call says in its status.
func failureOf(err error) *brevetv1.Failure {
	st := status.Convert(err)
	f := &brevetv1.Failure{Code: int32(st.Code()), Message: st.Message()} //nolint:gosec // codes are small
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *brevetv1.Refusal:
			f.Refusal = d
		case *errdetails.RetryInfo:
			f.RetryDelay = d.GetRetryDelay()
		}
	}
	return f
}

// errStopping ends the streams of a server that stops.
func errStopping() error {
	st := status.New(codes.Unavailable, "the server is stopping: send again, on a new stream, what is not answered")
	if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}); err == nil {
		st = with
	}
	return st.Err()
}

// take waits for a place.
func take(ctx context.Context, places chan<- struct{}, stopping <-chan struct{}) error {
	select {
	case <-stopping: // first, as there may be places all the time
		return errStopping()
	default:
	}
	select {
	case places <- struct{}{}:
		return nil
	case <-stopping:
		return errStopping()
	case <-ctx.Done():
		return ctx.Err()
	}
}
