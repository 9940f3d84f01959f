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

// loadWindow is the HTTP/2 flow-control window of a caller's connection and streams, in bytes.
const loadWindow = 64 << 10

// caller is an operator that requests certificates without pause over one connection, each in a new RPC with a new
// request ID. Devices that renew without pause cannot be the load, because the server refuses them (max_unexpired).
type caller struct {
	pair    *enroll.Pair // authenticates the connection
	conn    *grpc.ClientConn
	client  brevetv1.CertificateServiceClient
	devices *deviceSupply
	payload []byte // of a bare RPC
}

// certificatesEach is the number of certificates of one device in a deviceSupply. The server's default limit is 96.
const certificatesEach = 64

// deviceSupply yields the devices that certificates are requested for, one after the other. It is safe for concurrent
// use.
type deviceSupply struct {
	prefix string

	mu     sync.Mutex
	named  int // calls of next
	device requestedDevice
}

// next returns the device of the next certificate.
func (s *deviceSupply) next() (requestedDevice, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.named%certificatesEach == 0 {
		_, csr, err := newKeyAndCSR()
		if err != nil {
			return requestedDevice{}, err
		}
		s.device = requestedDevice{fmt.Sprintf("%s-%d", s.prefix, s.named/certificatesEach+1), csr}
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

// open connects to the server, and waits until the connection is ready.
func (c *caller) open(ctx context.Context) (err error) {
	// The windows have a fixed size, because grpc's dynamic windows send a ping with each response.
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

// issue requests one certificate with one RPC, and returns the RPC's duration.
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
	resp, err := c.requestOne(ctx, requestFor(id, device))
	took := time.Since(begin)
	if err != nil {
		return 0, enroll.CallError(c.pair.Origin.Server, err)
	}
	if f := resp.GetError(); f != nil {
		return 0, fmt.Errorf("a request failed: %s", f.GetMessage())
	}
	if len(resp.GetCertificate()) == 0 {
		return 0, errors.New("the server responded without a certificate")
	}
	return took, nil
}

// requestOne sends one request on a new stream, which costs as much as a unary RPC, and returns the response.
func (c *caller) requestOne(ctx context.Context, req *brevetv1.IssueCertificatesRequest) (*brevetv1.IssueCertificatesResponse, error) {
	stream, err := c.client.IssueCertificates(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) { // after io.EOF, Recv returns the error
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the stream does not end after its only response: %w", err)
	}
	return resp, nil
}

// load is the result of a load.
type load struct {
	rate      float64         // RPCs or certificates per second
	latencies []time.Duration // one for each of them, the shortest first
}

// putLoad makes RPCs for d: all callers at once, and each caller one after the other. If an RPC fails, it stops all
// callers and returns the error.
func putLoad[C any](ctx context.Context, callers []C, call func(C, context.Context) (time.Duration, error), d time.Duration) (load, error) {
	begin := time.Now()
	return putLoadWhile(ctx, callers, call, func() bool { return time.Since(begin) < d })
}

// putLoadWhile makes RPCs as putLoad does, while more returns true. Each caller calls more before each RPC.
func putLoadWhile[C any](ctx context.Context, callers []C, call func(C, context.Context) (time.Duration, error), more func() bool) (load, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	latencies := make([][]time.Duration, len(callers))
	var all sync.WaitGroup
	begin := time.Now()
	for i, c := range callers {
		all.Go(func() {
			for ctx.Err() == nil && more() {
				took, err := call(c, ctx)
				if isOverloaded(err) {
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

// loadOf returns the result of a load with these latencies that took so long in total.
func loadOf(took time.Duration, latencies ...[]time.Duration) load {
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return load{rate: float64(len(all)) / took.Seconds(), latencies: all}
}

// quantile returns the latency that a share of the RPCs does not exceed, in milliseconds, or NaN without RPCs.
func (l load) quantile(share float64) float64 {
	if len(l.latencies) == 0 {
		return math.NaN()
	}
	i := int(math.Ceil(share*float64(len(l.latencies)))) - 1
	return float64(l.latencies[i]) / float64(time.Millisecond)
}
