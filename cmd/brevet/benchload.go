package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// loadWindow is how many octets a server may send ahead on a connection of the load.
const loadWindow = 64 << 10

// caller is a device that renews without pause over a connection that it keeps, with a new request ID each time, and
// with one key: a certificate that was renewed with one key is not renewed with another.
type caller struct {
	pair   *enroll.Pair // authenticates the connection
	conn   *grpc.ClientConn
	client brevetv1.EnrollmentServiceClient
	csr    []byte
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

// enrollCallers registers devices and enrolls each.
func enrollCallers(ctx context.Context, operator *enroll.Pair, n int) (callers []*caller, err error) {
	conn, err := connect(operator.Origin.Server, operator)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	identities := brevetv1.NewIdentityServiceClient(conn)
	for i := range n {
		c, err := enrollCaller(ctx, identities, fmt.Sprintf("device/%d", i+1))
		if err != nil {
			return callers, fmt.Errorf("enroll caller %d: %w", i+1, err)
		}
		callers = append(callers, c)
	}
	return callers, nil
}

func enrollCaller(ctx context.Context, identities brevetv1.IdentityServiceClient, name string) (*caller, error) {
	if _, err := identities.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: name, Kind: "device"}); err != nil {
		return nil, err
	}
	resp, err := identities.CreateToken(ctx, &brevetv1.CreateTokenRequest{Id: name})
	if err != nil {
		return nil, err
	}
	token, err := enroll.ParseToken(resp.GetToken())
	if err != nil {
		return nil, err
	}
	key, csr, err := newKeyAndCSR()
	if err != nil {
		return nil, err
	}
	id, err := newRequestID()
	if err != nil {
		return nil, err
	}
	client, err := enroll.NewClient("")
	if err != nil {
		return nil, err
	}
	credential, err := client.Enroll(ctx, enroll.EnrollRequest{RequestID: id, Token: token, CSR: csr})
	if err != nil {
		return nil, err
	}
	c := &caller{}
	c.pair, err = enroll.NewPair(credential, key, enroll.Origin{Server: token.Server}, time.Now())
	if err != nil {
		return nil, err
	}
	if _, c.csr, err = newKeyAndCSR(); err != nil {
		return nil, err
	}
	err = c.open(ctx)
	return c, err
}

// open makes the connection.
func (c *caller) open(ctx context.Context) (err error) {
	// Windows of a fixed size: a client that measures the line sends a ping with each answer.
	if c.conn, err = connect(c.pair.Origin.Server, c.pair, grpc.WithStaticConnWindowSize(loadWindow), grpc.WithStaticStreamWindowSize(loadWindow)); err != nil {
		return err
	}
	c.client = brevetv1.NewEnrollmentServiceClient(c.conn)
	ctx, cancel := context.WithTimeout(ctx, callPatience)
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

// renew gets one certificate, and says how long the call took.
func (c *caller) renew(ctx context.Context) (time.Duration, error) {
	id, err := newRequestID()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	resp, err := c.client.Renew(ctx, &brevetv1.RenewRequest{RequestId: id.Bytes(), Csr: c.csr})
	took := time.Since(begin)
	if err != nil {
		return 0, enroll.CallError(c.pair.Origin.Server, err)
	}
	if len(resp.GetCredential().GetCertificate()) == 0 {
		return 0, errors.New("the server answered without a certificate")
	}
	return took, nil
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
