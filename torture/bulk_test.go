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
	// factoryDevices is how many devices a factory certifies, again and again.
	factoryDevices = 2 * batches
	// jobSize is how many requests a job has.
	jobSize = 4
)

// factory orders certificates in bulk. Its devices are registered with their orders, and nobody suspends them.
type factory struct {
	w      *world
	random *rand.Rand
	last   []*order // of the last job, all answered
}

// order is a request in bulk, and what is sent for it.
type order struct {
	*request
	sent *brevetv1.IssueCertificatesRequest
}

func (f *factory) newOrder() *order {
	n := f.random.IntN(factoryDevices)
	r := newRenewal(nil, newKey())
	labels := labelled(n)
	f.w.book.registered(fmt.Sprintf("spiffe://%s/factory/%d", trustDomain, n), labels[batchLabel])
	return &order{r, &brevetv1.IssueCertificatesRequest{
		RequestId: r.id, Identity: fmt.Sprintf("factory/%d", n), Csr: r.csr, Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: labels},
	}}
}

// job sends orders until each is answered, sometimes with those of the job before.
func (f *factory) job(ctx context.Context) {
	var job []*order
	for range jobSize {
		job = append(job, f.newOrder())
	}
	open := job
	if f.random.IntN(3) == 0 {
		open = append(open, f.last...)
	}
	err := f.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		open, err = f.deliver(ctx, conn, open)
		return err
	})
	if err != nil {
		f.w.blame("order in bulk", err)
		return
	}
	f.last = job
}

// deliver sends orders on one stream, and returns those that have to be sent again: where it ends early, or now and then
// as if it had, all of them.
func (f *factory) deliver(ctx context.Context, conn *grpc.ClientConn, open []*order) (again []*order, err error) {
	stream, err := brevetv1.NewCertificateServiceClient(conn).IssueCertificates(ctx)
	if err != nil {
		return open, err
	}
	for _, o := range open {
		if err := stream.Send(o.sent); err != nil && !errors.Is(err, io.EOF) { // Recv says why
			return open, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return open, err
	}
	byID := map[string]*order{}
	for _, o := range open {
		byID[string(o.id)] = o
	}
	for {
		a, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && len(byID) == 0:
			return nil, nil
		case errors.Is(err, io.EOF):
			f.w.book.faultf("a stream of orders has ended well, and %d have no answer", len(byID))
			return nil, nil
		case err != nil:
			return open, err
		}
		o := byID[string(a.GetRequestId())]
		if o == nil {
			f.w.book.faultf("an answer is to no order, or the second one: %X", a.GetRequestId())
			return nil, nil
		}
		if failure := servertest.FailureOf(a); passing(failure) {
			return open, failure
		} else if failure != nil {
			f.w.book.faultf("%s is refused in bulk: %v", o.sent.GetIdentity(), failure)
		} else if err := f.got(o, a.GetCertificate()); err != nil {
			f.w.book.faultf("%s got no certificate: %v", o.sent.GetIdentity(), err)
		}
		delete(byID, string(o.id))
		if len(byID) > 0 && f.random.IntN(20) == 0 {
			return open, status.Error(codes.Canceled, "the factory loses what it was answered")
		}
	}
}

func (f *factory) got(o *order, der []byte) error {
	c, err := parseCertificate(der)
	if err == nil {
		f.w.book.answered(o.request, c)
	}
	return err
}
