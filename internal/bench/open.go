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

// issueAnew gets one certificate over a connection of its own, as a device that wakes up does, and says how long that
// took, handshake included.
func (c *caller) issueAnew(ctx context.Context) (time.Duration, error) {
	return c.anew(ctx, func(c *caller) error {
		_, err := c.issue(ctx)
		return err
	})
}

// greetAnew makes an empty call over a connection of its own: what a handshake and a call cost without a certificate.
func (c *caller) greetAnew(ctx context.Context) (time.Duration, error) {
	return c.anew(ctx, func(c *caller) error {
		_, err := healthv1.NewHealthClient(c.conn).Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	})
}

func (c *caller) anew(ctx context.Context, do func(*caller) error) (time.Duration, error) {
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

// arrive has requests for certificates come at random times, so many a second on average (a Poisson process), whether
// those before are answered or not, and says how long each waited from when it came. Callers take turns.
func arrive(ctx context.Context, callers []*caller, rate float64, d time.Duration) (load, error) {
	return arriveWhile(ctx, callers, rate, func(at time.Duration) bool { return at < d })
}

// overrun says that requests came faster than a server answers them.
type overrun struct {
	rate, reached float64 // a second
	err           error   // of the first that was turned away
}

func (e *overrun) Error() string {
	return fmt.Sprintf("requests came at %.0f a second, of which this machine answered %.0f: %v", e.rate, e.reached, e.err)
}

func (e *overrun) Unwrap() error { return e.err }

// turnedAway reports whether a call was refused because too many wait.
func turnedAway(err error) bool {
	why := new(pki.Refusal)
	return errors.As(err, &why) && why.Rule == pki.RuleOverloaded
}

// Bounds on requests that have come and are not answered: those that the server has, of which it takes 64 of one operator, and
// all.
const (
	arrivedAtOnce = 64
	maxArrived    = 1024
)

// arriveWhile has requests come as arrive does, while going says so of the time since the first. When one is turned away
// because too many wait, it sends no more, has those answered that were sent, and returns an overrun.
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
				if turnedAway(err) {
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
		at += time.Duration(rand.ExpFloat64() / rate * float64(time.Second)) //nolint:gosec // of no use to anybody who guesses it
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
