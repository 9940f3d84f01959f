package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// renewAnew gets one certificate over a connection of its own, as a device that wakes up does, and says how long that
// took, handshake included.
func (c *caller) renewAnew(ctx context.Context) (time.Duration, error) {
	return c.anew(ctx, func(c *caller) error {
		_, err := c.renew(ctx)
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
	again := &caller{pair: c.pair, csr: c.csr}
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

// arriveWhile has requests come as arrive does, while going says so of the time since the first.
func arriveWhile(ctx context.Context, callers []*caller, rate float64, going func(at time.Duration) bool) (load, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var mu sync.Mutex
	var latencies []time.Duration
	var all sync.WaitGroup
	begin := time.Now()
	for at, n := time.Duration(0), 0; going(at) && ctx.Err() == nil; n++ {
		due := begin.Add(at)
		time.Sleep(time.Until(due))
		c := callers[n%len(callers)]
		all.Go(func() {
			if _, err := c.renew(ctx); err != nil {
				fail(err)
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
	return loadOf(time.Since(begin), latencies), nil
}
