package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
//
// A server ends each connection at its maximum age. Then requestWhile opens another stream, and sends the requests that
// have no response again, with the same request IDs.
func (o *bulkCaller) requestWhile(ctx context.Context, more func() bool) ([]time.Duration, error) {
	r := &bulkRun{more: more, left: len(o.devices), free: make(chan *deviceSupply, len(o.devices)), begun: map[string]*begunRequest{}}
	for _, d := range o.devices {
		r.free <- d
	}
	for {
		answered := len(r.latencies)
		err := r.stream(ctx, o.client)
		if err == nil {
			return r.latencies, nil
		}
		if status.Code(err) != codes.Unavailable || len(r.latencies) == answered {
			return nil, err // without a response, another stream would end the same way
		}
	}
}

// bulkRun is the state of one requestWhile.
type bulkRun struct {
	more      func() bool
	left      int                // devices for which requests continue
	free      chan *deviceSupply // devices without a request in progress; closed after the last request
	latencies []time.Duration

	mu    sync.Mutex
	begun map[string]*begunRequest // requests in progress, by request ID
}

// begunRequest is a request in progress.
type begunRequest struct {
	device  *deviceSupply
	at      time.Time
	message *brevetv1.IssueCertificatesRequest
}

// stream sends requests over one stream, and returns nil when all of them have a response.
func (r *bulkRun) stream(ctx context.Context, client brevetv1.CertificateServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := client.IssueCertificates(ctx)
	if err != nil {
		cancel()
		return err
	}
	var sender sync.WaitGroup
	sender.Go(func() {
		// If sending fails, Recv returns the error.
		if r.send(ctx, stream) == nil {
			_ = stream.CloseSend()
		}
	})
	defer func() { cancel(); sender.Wait() }() // so that one goroutine at a time sends
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.answered(resp); err != nil {
			return err
		}
	}
}

// send sends the requests that a previous stream left without a response, then a request for each free device.
func (r *bulkRun) send(ctx context.Context, stream brevetv1.CertificateService_IssueCertificatesClient) error {
	r.mu.Lock()
	again := slices.Collect(maps.Values(r.begun))
	r.mu.Unlock()
	for _, b := range again {
		if err := stream.Send(b.message); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case d, ok := <-r.free:
			if !ok {
				return nil
			}
			message, err := r.begin(d)
			if err != nil {
				return err
			}
			if err := stream.Send(message); err != nil {
				return err
			}
		}
	}
}

// begin makes a request for d, and records it as in progress.
func (r *bulkRun) begin(d *deviceSupply) (*brevetv1.IssueCertificatesRequest, error) {
	id, err := newRequestID()
	if err != nil {
		return nil, err
	}
	device, err := d.next()
	if err != nil {
		return nil, err
	}
	b := &begunRequest{device: d, at: time.Now(), message: requestFor(id, device)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun[string(id.Bytes())] = b
	return b.message, nil
}

// answered records a response, and frees its device.
func (r *bulkRun) answered(resp *brevetv1.IssueCertificatesResponse) error {
	if f := resp.GetError(); f != nil {
		return fmt.Errorf("a request failed: %s", f.GetMessage())
	}
	id := string(resp.GetRequestId())
	r.mu.Lock()
	was := r.begun[id]
	delete(r.begun, id)
	r.mu.Unlock()
	if was == nil || len(resp.GetCertificate()) == 0 {
		return errors.New("the server responded to a request that was not sent, or without a certificate")
	}
	r.latencies = append(r.latencies, time.Since(was.at))
	if r.more() {
		r.free <- was.device
	} else if r.left--; r.left == 0 {
		close(r.free)
	}
	return nil
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
