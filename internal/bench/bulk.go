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

// requestsInFlight is the number of requests that a stream has in progress. Each is for another device, because the
// server handles requests for one device one after the other.
const requestsInFlight = 64

// bulkCaller is a caller that sends many requests for certificates over one stream.
type bulkCaller struct {
	*caller
	devices []*deviceSupply // one for each request in progress
}

// requestedDevice is the device that a request names, and the device's CSR.
type requestedDevice struct {
	id  string
	csr []byte
}

// openStreams connects as the operator, once for each stream, and requests a first certificate for each device.
func openStreams(ctx context.Context, operator *enroll.Pair, n int) (all []*bulkCaller, err error) {
	for i := range n {
		o := &bulkCaller{caller: &caller{pair: operator}}
		for j := range requestsInFlight {
			o.devices = append(o.devices, &deviceSupply{prefix: fmt.Sprintf("device/%d-%d", i+1, j+1)})
		}
		if err := o.open(ctx); err != nil {
			return all, err
		}
		all = append(all, o)
		if _, err := o.requestWhile(ctx, func() bool { return false }); err != nil {
			return all, err
		}
	}
	return all, nil
}

// requestWhile keeps one request for each device in progress while more returns true. It returns the latency of each
// request. If a request fails, it stops and returns an error.
func (o *bulkCaller) requestWhile(ctx context.Context, more func() bool) ([]time.Duration, error) {
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
				return // Recv returns the error
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
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return latencies, nil
		}
		if err != nil {
			return nil, err
		}
		if f := resp.GetError(); f != nil {
			return nil, fmt.Errorf("a request failed: %s", f.GetMessage())
		}
		mu.Lock()
		was, ok := begun[string(resp.GetRequestId())]
		delete(begun, string(resp.GetRequestId()))
		mu.Unlock()
		if !ok || len(resp.GetCertificate()) == 0 {
			return nil, errors.New("the server responded to a request that was not sent, or without a certificate")
		}
		latencies = append(latencies, time.Since(was.at))
		if more() {
			free <- was.device
		} else if left--; left == 0 {
			close(free)
		}
	}
}

// sent is a request in progress.
type sent struct {
	device *deviceSupply
	at     time.Time
}

// putBulkLoad requests certificates on all streams, for d. If count is not 0, it requests count certificates in total
// instead.
func putBulkLoad(ctx context.Context, streams []*bulkCaller, count int, d time.Duration) (load, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	latencies := make([][]time.Duration, len(streams))
	var all sync.WaitGroup
	var requested atomic.Int64
	requested.Store(int64(len(streams) * requestsInFlight)) // the first requests of each stream
	begin := time.Now()
	more := func() bool { return time.Since(begin) < d }
	if count > 0 {
		more = func() bool { return requested.Add(1) <= int64(count) }
	}
	for i, o := range streams {
		all.Go(func() {
			var err error
			if latencies[i], err = o.requestWhile(ctx, more); err != nil {
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
