package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/brevet-pki/brevet/pki"
)

// issueOverNewConnection requests one certificate over a new connection, as a device does that wakes up. It returns how
// long that took, including the TLS handshake.
func (c *caller) issueOverNewConnection(ctx context.Context) (time.Duration, error) {
	return c.newConnection(ctx, func(c *caller) error {
		_, err := c.issue(ctx)
		return err
	})
}

// checkOverNewConnection makes an empty RPC over a new connection, to measure handshake and RPC without a certificate.
func (c *caller) checkOverNewConnection(ctx context.Context) (time.Duration, error) {
	return c.newConnection(ctx, func(c *caller) error {
		_, err := healthv1.NewHealthClient(c.conn).Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	})
}

// newConnection runs do with a new connection, and returns how long connection and do took.
func (c *caller) newConnection(ctx context.Context, do func(*caller) error) (time.Duration, error) {
	begin := time.Now()
	again := &caller{pair: c.pair, devices: c.devices, payload: c.payload}
	if err := again.open(ctx); err != nil {
		return 0, err
	}
	if err := do(again); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	return took, again.close()
}

// arrive sends requests for certificates at random times for d: a Poisson process with rate requests per second. It
// does not wait for the responses to earlier requests. Each caller in turn sends one request. A latency counts from the
// time at which the request was due.
func arrive(ctx context.Context, callers []*caller, rate float64, d time.Duration) (load, error) {
	return arriveWhile(ctx, callers, rate, func(at time.Duration) bool { return at < d })
}

// overrun is the error when requests come faster than the server responds.
type overrun struct {
	rate, reached float64 // requests per second: sent, and answered
	err           error   // of the first request that was rejected
}

func (e *overrun) Error() string {
	return fmt.Sprintf("requests came at %.0f a second, of which this machine answered %.0f: %v", e.rate, e.reached, e.err)
}

func (e *overrun) Unwrap() error { return e.err }

// isOverloaded reports whether the server rejected an RPC because too many RPCs wait.
func isOverloaded(err error) bool {
	why := new(pki.Refusal)
	return errors.As(err, &why) && why.Rule == pki.RuleOverloaded
}

// arrivedAtOnce limits the requests in progress on the server, which accepts 64 from one operator. maxArrived limits
// all requests without a response.
const (
	arrivedAtOnce = 64
	maxArrived    = 1024
)

// arriveWhile sends requests as arrive does, while going returns true for the time since the first request. If the
// server rejects a request because too many wait, arriveWhile sends no more, waits for the other responses, and returns
// an overrun.
func arriveWhile(ctx context.Context, callers []*caller, rate float64, going func(at time.Duration) bool) (load, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var mu sync.Mutex
	var latencies []time.Duration
	var over atomic.Pointer[overrun]
	var all sync.WaitGroup
	var waiting atomic.Int64
	places := make(chan struct{}, arrivedAtOnce)
	begin := time.Now()
	for at, n := time.Duration(0), 0; going(at) && ctx.Err() == nil && over.Load() == nil; n++ {
		due := begin.Add(at)
		time.Sleep(time.Until(due))
		c := callers[n%len(callers)]
		if waiting.Add(1) > maxArrived {
			over.CompareAndSwap(nil, &overrun{rate: rate, err: pki.Refuse(pki.RuleOverloaded, "", "%d requests wait", int64(maxArrived))})
			break
		}
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places; waiting.Add(-1) }()
			if _, err := c.issue(ctx); err != nil {
				if isOverloaded(err) {
					over.CompareAndSwap(nil, &overrun{rate: rate, err: err})
				} else {
					fail(err)
				}
				return
			}
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, took)
		})
		at += time.Duration(rand.ExpFloat64() / rate * float64(time.Second)) //nolint:gosec // the times are not secret
	}
	all.Wait()
	if ctx.Err() != nil {
		return load{}, context.Cause(ctx)
	}
	l := loadOf(time.Since(begin), latencies)
	if e := over.Load(); e != nil {
		e.reached = l.rate
		return load{}, e
	}
	return l, nil
}
