package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

const (
	// factoryDevices is the number of devices for which a factory requests certificates again and again.
	factoryDevices = 2 * batches
	// jobSize is the number of items in a job.
	jobSize = 4
)

// factory issues certificates in bulk. Its devices are registered with their requests, and no operator suspends them.
type factory struct {
	w      *instance
	random *rand.Rand
	last   []*bulkItem // the items of the last job; each got a response
}

// A bulkItem is one request of a bulk issuance, with the message sent for it.
type bulkItem struct {
	*request
	sent *brevetv1.IssueCertificatesRequest
}

func (f *factory) newItem() *bulkItem {
	n := f.random.IntN(factoryDevices)
	r := newRenewal(nil, newKey())
	labels := labelled(n)
	f.w.observed.recordBatch(fmt.Sprintf("spiffe://%s/factory/%d", trustDomain, n), labels[batchLabel])
	return &bulkItem{r, &brevetv1.IssueCertificatesRequest{
		RequestId: r.id, Identity: fmt.Sprintf("factory/%d", n), Csr: r.csr, Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: labels},
	}}
}

// job sends items until each gets a response. In a third of the cases it also repeats those of the previous job.
func (f *factory) job(ctx context.Context) {
	var job []*bulkItem
	for range jobSize {
		job = append(job, f.newItem())
	}
	open := job
	if f.random.IntN(3) == 0 {
		open = append(open, f.last...)
	}
	err := f.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		open, err = f.send(ctx, conn, open)
		return err
	})
	if err != nil {
		f.w.recordUnexpected("issue in bulk", err)
		return
	}
	f.last = job
}

// send sends items on one stream and returns those that must be sent again. If the stream ends early, these are all. At
// random, send pretends that the stream ended early.
func (f *factory) send(ctx context.Context, conn *grpc.ClientConn, open []*bulkItem) (again []*bulkItem, err error) {
	stream, err := brevetv1.NewCertificateServiceClient(conn).IssueCertificates(ctx)
	if err != nil {
		return open, err
	}
	for _, o := range open {
		if err := stream.Send(o.sent); err != nil && !errors.Is(err, io.EOF) { // Recv returns the cause
			return open, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return open, err
	}
	byID := map[string]*bulkItem{}
	for _, o := range open {
		byID[string(o.id)] = o
	}
	for {
		a, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && len(byID) == 0:
			return nil, nil
		case errors.Is(err, io.EOF):
			f.w.observed.faultf("a bulk stream ended without error, but %d requests have no response", len(byID))
			return nil, nil
		case err != nil:
			return open, err
		}
		o := byID[string(a.GetRequestId())]
		if o == nil {
			f.w.observed.faultf("a bulk response is for no open request, or the second one: %X", a.GetRequestId())
			return nil, nil
		}
		if failure := servertest.FailureOf(a); isTransient(failure) {
			return open, failure
		} else if failure != nil {
			f.w.observed.faultf("%s was refused in bulk: %v", o.sent.GetIdentity(), failure)
		} else if err := f.recordItem(o, a.GetCertificate()); err != nil {
			f.w.observed.faultf("%s got no valid certificate: %v", o.sent.GetIdentity(), err)
		}
		delete(byID, string(o.id))
		if len(byID) > 0 && f.random.IntN(20) == 0 {
			return open, status.Error(codes.Canceled, "the factory loses the responses so far")
		}
	}
}

func (f *factory) recordItem(o *bulkItem, der []byte) error {
	c, err := parseCertificate(der)
	if err == nil {
		f.w.observed.recordIssued(o.request, c)
	}
	return err
}
