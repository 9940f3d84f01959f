package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// ordersInFlight is how many orders a stream has under way. Each is for a device of its own, since orders for one take turns.
const ordersInFlight = 64

// orderer is a caller with a stream of orders.
type orderer struct {
	*caller
	devices []*deviceSupply // one for each order under way
}

type orderedDevice struct {
	id  string
	csr []byte
}

// openStreams connects as the operator, once for each stream, and orders a first certificate for each device.
func openStreams(ctx context.Context, operator *enroll.Pair, n int) (all []*orderer, err error) {
	for i := range n {
		o := &orderer{caller: &caller{pair: operator}}
		for j := range ordersInFlight {
			o.devices = append(o.devices, &deviceSupply{prefix: fmt.Sprintf("device/%d-%d", i+1, j+1)})
		}
		if err := o.open(ctx); err != nil {
			return all, err
		}
		all = append(all, o)
		if _, err := o.order(ctx, func() bool { return false }); err != nil {
			return all, err
		}
	}
	return all, nil
}

// order keeps one order for each device under way until there shall be no more, and returns how long each took. An order
// that fails is an error of all.
func (o *orderer) order(ctx context.Context, more func() bool) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := o.client.IssueCertificates(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // guards begun
	begun := map[string]sent{}
	free := make(chan *deviceSupply, len(o.devices))
	send := func(from *deviceSupply) error {
		id, err := newRequestID()
		if err != nil {
			return err
		}
		d, err := from.next()
		if err != nil {
			return err
		}
		mu.Lock()
		begun[string(id.Bytes())] = sent{from, time.Now()}
		mu.Unlock()
		return stream.Send(&brevetv1.IssueCertificatesRequest{
			RequestId: id.Bytes(), Identity: d.id, Csr: d.csr, Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
		})
	}
	go func() {
		for _, d := range o.devices {
			if send(d) != nil {
				return // Recv says why
			}
		}
		for d := range free {
			if send(d) != nil {
				return
			}
		}
		_ = stream.CloseSend() // as above
	}()
	var latencies []time.Duration
	for left := len(o.devices); ; {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return latencies, nil
		}
		if err != nil {
			return nil, err
		}
		if f := answer.GetError(); f != nil {
			return nil, fmt.Errorf("an order failed: %s", f.GetMessage())
		}
		mu.Lock()
		was, ok := begun[string(answer.GetRequestId())]
		delete(begun, string(answer.GetRequestId()))
		mu.Unlock()
		if !ok || len(answer.GetCertificate()) == 0 {
			return nil, errors.New("the server answered an order that was not made, or without a certificate")
		}
		latencies = append(latencies, time.Since(was.at))
		if more() {
			free <- was.device
		} else if left--; left == 0 {
			close(free)
		}
	}
}

// sent is an order under way.
type sent struct {
	device *deviceSupply
	at     time.Time
}

// putOrders has all streams order for d, or so many certificates in all.
func putOrders(ctx context.Context, streams []*orderer, count int, d time.Duration) (load, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	latencies := make([][]time.Duration, len(streams))
	var all sync.WaitGroup
	var ordered atomic.Int64
	ordered.Store(int64(len(streams) * ordersInFlight)) // each begins with those
	begin := time.Now()
	more := func() bool { return time.Since(begin) < d }
	if count > 0 {
		more = func() bool { return ordered.Add(1) <= int64(count) }
	}
	for i, o := range streams {
		all.Go(func() {
			var err error
			if latencies[i], err = o.order(ctx, more); err != nil {
				fail(err)
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
