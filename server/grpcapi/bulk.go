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
	// authenticate checks the certificate of a stream's caller again. Each request checks the caller's identity
	// with the records that it reads.
	authenticate func(ctx context.Context) error
	// conclude turns what an order came to into the error that a call of its own would have ended with.
	conclude func(ctx context.Context, begun time.Time, panicked any, err error) error
}

func newBulk(s *Server) *bulk {
	method := brevetv1.CertificateService_IssueCertificates_FullMethodName
	return &bulk{
		places: make(chan struct{}, maxOrders), stopping: s.stopping,
		authenticate: func(ctx context.Context) error {
			_, err := s.config.Authorizer.Authenticate(authz.IssueCertificates, clientOf(ctx))
			return err
		},
		conclude: func(ctx context.Context, begun time.Time, panicked any, err error) error {
			return s.answer(ctx, method, begun, panicked, s.note(ctx, err))
		},
	}
}

type orderStream = grpc.BidiStreamingServer[brevetv1.IssueCertificatesRequest, brevetv1.IssueCertificatesResponse]

// IssueCertificates serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) IssueCertificates(stream orderStream) error {
	o := &orders{Certificates: s, stream: stream, window: make(chan struct{}, ordersWindow)}
	return o.carryOut(stream.Context())
}

// orders is one stream. An order has a place in the window from before it is read until its answer is on the way: who
// reads no answers is not read either, and HTTP/2 holds the rest back.
type orders struct {
	*Certificates
	stream   orderStream
	window   chan struct{}
	underWay sync.WaitGroup

	mu sync.Mutex // to send, one after the other
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
func (o *orders) fulfil(ctx context.Context, order *brevetv1.IssueCertificatesRequest) *brevetv1.IssueCertificatesResponse {
	cert, err := o.issue(ctx, order)
	<-o.bulk.places
	resp := &brevetv1.IssueCertificatesResponse{RequestId: order.GetRequestId()}
	if len(resp.RequestId) > maxEcho {
		resp.RequestId = resp.RequestId[:maxEcho]
	}
	if err != nil {
		resp.Result = &brevetv1.IssueCertificatesResponse_Error{Error: status.Convert(err).Proto()}
		return resp
	}
	resp.Result = &brevetv1.IssueCertificatesResponse_Certificate{Certificate: cert.DER}
	resp.IssuerId = cert.Ref.Issuer.Bytes()
	return resp
}

// issue returns the certificate of an order, or the error as the caller may see it.
func (o *orders) issue(ctx context.Context, order *brevetv1.IssueCertificatesRequest) (cert ca.Certificate, err error) {
	begun := time.Now()
	defer func() { err = o.bulk.conclude(ctx, begun, recover(), err) }()
	if err := o.bulk.authenticate(ctx); err != nil {
		return cert, err
	}
	id, lifetime, err := requestOf(order)
	if err != nil {
		return cert, err
	}
	register, err := registrationOf(order)
	if err != nil {
		return cert, err
	}
	return o.Registrar.Issue(ctx, ra.IssueRequest{
		RequestID: id, Name: order.GetIdentity(), CSR: order.GetCsr(), Lifetime: lifetime, Register: register, Actor: callerOf(ctx).Actor(),
	})
}

// registrationOf reads what an order has its identity registered with: nil for nothing.
func registrationOf(order *brevetv1.IssueCertificatesRequest) (*ra.NewIdentity, error) {
	if order.GetRegistration() == nil {
		return nil, nil
	}
	n, err := newIdentityOf(order.GetIdentity(), order.GetRegistration())
	return &n, err
}

// answer sends a response. If the caller is gone, the record answers when the request comes again.
func (o *orders) answer(resp *brevetv1.IssueCertificatesResponse) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.stream.Send(resp)
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
