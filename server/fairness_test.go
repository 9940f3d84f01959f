package server_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/server/servertest"
)

// Parameters of BenchmarkBesideAFlood.
const (
	peers      = 9
	usualShare = 0.4 // part of the server's capacity that the usual load of all peers uses
	floodTimes = 10  // factor by which the first peer multiplies its load
	floodFor   = 4 * time.Second
)

// peer is a client. next prepares the peer's next call, so that only the duration of the call itself is measured.
type peer struct {
	next func(b *testing.B) (call func() error)
}

// callAll makes calls of each peer at the peer's rate. It returns the sorted durations of the successful calls of all
// but the first peer, and the number of failed calls of all peers.
func callAll(b *testing.B, all []peer, rates []float64) (took []time.Duration, failed int) {
	b.Helper()
	calls := make([][]func() error, len(all))
	for i, p := range all { // prepares all calls first, so that the work of the clients does not affect the durations
		for range int(rates[i] * floodFor.Seconds()) {
			calls[i] = append(calls[i], p.next(b))
		}
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range all {
		group.Go(func() {
			each := time.Duration(float64(time.Second) / rates[i])
			tick := time.NewTicker(each)
			defer tick.Stop()
			time.Sleep(each * time.Duration(i) / time.Duration(len(all)))
			for _, call := range calls[i] {
				group.Go(func() {
					begun := time.Now()
					err := call()
					if mu.Lock(); err != nil {
						failed++
					} else if i > 0 {
						took = append(took, time.Since(begun))
					}
					mu.Unlock()
				})
				<-tick.C
			}
		})
	}
	group.Wait()
	slices.Sort(took)
	return took, failed
}

// capacity returns the number of calls per second that all peers achieve together, if each makes one call at a time.
func capacity(b *testing.B, all []peer) float64 {
	b.Helper()
	const each = 100
	calls := make([][]func() error, len(all))
	for i, p := range all {
		for range each {
			calls[i] = append(calls[i], p.next(b))
		}
	}
	begun := time.Now()
	var group sync.WaitGroup
	for i := range all {
		group.Go(func() {
			for _, call := range calls[i] {
				if err := call(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
	return float64(each*len(all)) / time.Since(begun).Seconds()
}

// BenchmarkBesideAFlood measures how much longer calls take while another client makes ten times its usual calls. It is
// not a test, because durations depend on the machine. Run it with make fairness.
func BenchmarkBesideAFlood(b *testing.B) {
	for _, kind := range []struct {
		name string
		peer func(b *testing.B, w *servertest.World, n int) peer
	}{{"renewals", renewing}, {"enrollments", enrolling}} {
		b.Run(kind.name, func(b *testing.B) {
			w := servertest.New(b, ground, servertest.Options{})
			var all []peer
			for n := range peers {
				all = append(all, kind.peer(b, w, n))
			}
			each := capacity(b, all) * usualShare / peers
			rates := slices.Repeat([]float64{each}, peers)
			for b.Loop() {
				alone, failed := callAll(b, all, rates)
				beside, failedBeside := callAll(b, all, append([]float64{floodTimes * each}, rates[1:]...))
				before, after := quantile(alone, 0.99), quantile(beside, 0.99)
				b.ReportMetric(before.Seconds()*1000, "p99-before-ms")
				b.ReportMetric(after.Seconds()*1000, "p99-beside-ms")
				b.ReportMetric(after.Seconds()/before.Seconds(), "times")
				b.ReportMetric(each*peers, "calls/s-before")
				b.ReportMetric(float64(failed+failedBeside), "failed")
			}
		})
	}
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}

// renewing returns a peer whose calls renew the same certificate of a device again and again.
func renewing(b *testing.B, w *servertest.World, n int) peer {
	b.Helper()
	device, key := w.Enrolled(b, "device", fmt.Sprintf("device/%d", n)), servertest.Key(b)
	return peer{func(b *testing.B) func() error {
		req := servertest.Renewal(b, key)
		return func() error { _, err := device.Renew(b.Context(), req); return err }
	}}
}

// enrolling returns a peer whose calls each enroll another device, all from one IP address.
func enrolling(b *testing.B, w *servertest.World, n int) peer {
	b.Helper()
	caller, device := w.Caller(b, nil, from(fmt.Sprintf("127.0.1.%d", n+1))), 0
	return peer{func(b *testing.B) func() error {
		device++
		id := w.Register(b, "device", fmt.Sprintf("device/%d/%d", n, device))
		req := servertest.Enrollment(b, w.Token(b, id, false), servertest.Key(b))
		return func() error { _, err := caller.Enroll(b.Context(), req); return err }
	}}
}
