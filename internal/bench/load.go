package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// loadWindow is how many bytes a server may send ahead on a connection of the load.
const loadWindow = 64 << 10

// caller is an operator that orders certificates without pause over a connection that it keeps, each with a call of its own
// and a new request ID. A device that renewed without pause would be refused (max_unexpired).
type caller struct {
	pair    *enroll.Pair // authenticates the connection
	conn    *grpc.ClientConn
	client  brevetv1.CertificateServiceClient
	devices *deviceSupply
	payload []byte // of a bare RPC
}

// certificatesEach is how many certificates one device of a deviceSupply gets. Operators may give it 96 by default.
const certificatesEach = 64

// deviceSupply names the devices that certificates are ordered for, one after the other. It is safe for concurrent use.
type deviceSupply struct {
	prefix string

	mu     sync.Mutex
	named  int // certificates
	device orderedDevice
}

// next returns the device of the next certificate.
func (s *deviceSupply) next() (orderedDevice, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.named%certificatesEach == 0 {
		_, csr, err := newKeyAndCSR()
		if err != nil {
			return orderedDevice{}, err
		}
		s.device = orderedDevice{fmt.Sprintf("%s-%d", s.prefix, s.named/certificatesEach+1), csr}
	}
	s.named++
	return s.device, nil
}

func newRequestID() (pki.RequestID, error) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return pki.RequestIDFromBytes(b[:])
}

func newKeyAndCSR() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// openCallers connects as the operator, once for each caller.
func openCallers(ctx context.Context, operator *enroll.Pair, n int) (callers []*caller, err error) {
	for i := range n {
		c := &caller{pair: operator, devices: &deviceSupply{prefix: fmt.Sprintf("device/%d", i+1)}}
		if err := c.open(ctx); err != nil {
			return callers, fmt.Errorf("connect caller %d: %w", i+1, err)
		}
		callers = append(callers, c)
	}
	return callers, nil
}

// open makes the connection.
func (c *caller) open(ctx context.Context) (err error) {
	// Windows of a fixed size: a client that measures the line sends a ping with each answer.
	if c.conn, err = client.Connect(c.pair.Origin.Server, c.pair, grpc.WithStaticConnWindowSize(loadWindow), grpc.WithStaticStreamWindowSize(loadWindow)); err != nil {
		return err
	}
	c.client = brevetv1.NewCertificateServiceClient(c.conn)
	ctx, cancel := context.WithTimeout(ctx, client.CallTimeout)
	defer cancel()
	c.conn.Connect()
	for state := c.conn.GetState(); state != connectivity.Ready; state = c.conn.GetState() {
		if !c.conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connect to the server: %w", context.Cause(ctx))
		}
	}
	return nil
}

func (c *caller) close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

// issue gets one certificate with one call, and says how long the call took.
func (c *caller) issue(ctx context.Context) (time.Duration, error) {
	id, err := newRequestID()
	if err != nil {
		return 0, err
	}
	device, err := c.devices.next()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	answer, err := c.orderOne(ctx, orderFor(id, device))
	took := time.Since(begin)
	if err != nil {
		return 0, enroll.CallError(c.pair.Origin.Server, err)
	}
	if f := answer.GetError(); f != nil {
		return 0, fmt.Errorf("an order failed: %s", f.GetMessage())
	}
	if len(answer.GetCertificate()) == 0 {
		return 0, errors.New("the server answered without a certificate")
	}
	return took, nil
}

// orderOne makes a call with one order, which costs what a unary call does.
func (c *caller) orderOne(ctx context.Context, req *brevetv1.IssueCertificatesRequest) (*brevetv1.IssueCertificatesResponse, error) {
	stream, err := c.client.IssueCertificates(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) { // then Recv says why
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the stream of one order does not end: %w", err)
	}
	return answer, nil
}

// load is what callers got.
type load struct {
	rate      float64         // certificates of a second
	latencies []time.Duration // one for each certificate, the shortest first
}

// putLoad has all callers make calls for d, each one after the other. An error of one is an error of all.
func putLoad(ctx context.Context, callers []*caller, call func(*caller, context.Context) (time.Duration, error), d time.Duration) (load, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	latencies := make([][]time.Duration, len(callers))
	var all sync.WaitGroup
	begin := time.Now()
	for i, c := range callers {
		all.Go(func() {
			for time.Since(begin) < d && ctx.Err() == nil {
				took, err := call(c, ctx)
				if turnedAway(err) {
					err = fmt.Errorf("%w; %d callers are too many: give fewer --callers", err, len(callers))
				}
				if err != nil {
					fail(err)
					return
				}
				latencies[i] = append(latencies[i], took)
			}
		})
	}
	all.Wait()
	took := time.Since(begin)
	if ctx.Err() != nil {
		return load{}, context.Cause(ctx)
	}
	return loadOf(took, latencies...), nil
}

// loadOf is what callers got in so long.
func loadOf(took time.Duration, latencies ...[]time.Duration) load {
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return load{rate: float64(len(all)) / took.Seconds(), latencies: all}
}

// quantile is the latency that a share of the calls does not exceed, in milliseconds; not a number where there were none.
func (l load) quantile(share float64) float64 {
	if len(l.latencies) == 0 {
		return math.NaN()
	}
	i := int(math.Ceil(share*float64(len(l.latencies)))) - 1
	return float64(l.latencies[i]) / float64(time.Millisecond)
}
