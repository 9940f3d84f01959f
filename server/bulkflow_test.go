package server_test

import (
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// A server that stops answers what is under way, and tells the stream to come back with the rest.
func TestStoppingAnswersOrdersUnderWay(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	reqs, late := orders(t, "device", 30), orders(t, "late", 1)
	stream := servertest.Must(w.Operator.IssueCertificates(t.Context()))(t)
	arrived, release := store.HoldRecords()
	for _, req := range reqs {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	<-arrived
	store.AwaitDecided(60)
	conn := w.Operator.Conn
	stopped := make(chan struct{})
	go func() {
		w.StopServer(t)
		close(stopped)
	}()
	for { // until nobody listens any more
		conn, err := net.Dial("tcp", w.GRPC)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	if err := stream.Send(late[0]); err != nil {
		t.Fatal(err)
	}
	release()
	answers, err := servertest.Deliver(t, stream)
	servertest.Refused(t, err, codes.Unavailable, "")
	if i := slices.IndexFunc(status.Convert(err).Details(), func(d any) bool {
		r, ok := d.(*errdetails.RetryInfo)
		return ok && r.GetRetryDelay().AsDuration() > 0
	}); i < 0 {
		t.Errorf("the stream's end says not when to come back: %v", err)
	}
	<-stopped
	_ = conn.Close()
	if len(answers) != len(reqs) {
		t.Errorf("%d answers to what was under way, want %d", len(answers), len(reqs))
	}
	w.Serve(t, servertest.Options{})
	eachOnce(t, w, reqs, answers)
	again := w.Operator.Orders(t, append(reqs, late...)...)
	eachOnce(t, w, append(reqs, late...), again)
	for _, req := range reqs {
		before, _ := answers.Of(req)
		if after, _ := again.Of(req); string(before) != string(after) {
			t.Errorf("%s has two certificates", req.GetIdentity())
		}
	}
}

// A client that reads nothing is not read either, and keeps nobody else from being served.
func TestAStreamThatIsNotRead(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	const all = 4000
	req := servertest.Order(t, strings.Repeat("/", 1000), servertest.Key(t)) // a refusal repeats it
	stream := servertest.Must(w.Operator.IssueCertificates(t.Context()))(t)
	var sent atomic.Int64
	done := make(chan error, 1)
	go func() {
		for range all {
			if err := stream.Send(req); err != nil {
				done <- err
				return
			}
			sent.Add(1)
		}
		done <- stream.CloseSend()
	}()
	for before := int64(-1); before != sent.Load(); { // until it can send no more, or seems so
		before = sent.Load()
		time.Sleep(200 * time.Millisecond)
	}
	// The window, and what fits into the buffers on both ways.
	if n := sent.Load(); n < 256 || n > 1500 {
		t.Errorf("the server took %d orders of a client that reads no answers", n)
	}
	w.Enrolled(t, "device", "device/other")
	w.NewOperator(t, "bob").Orders(t, orders(t, "device", 3)...)
	for range all {
		servertest.Must(stream.Recv())(t)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// However many streams there are, they have 512 orders carried out at once. The next one waits, and does not fail.
func TestStreamsShareTheirPlaces(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	device := w.Enrolled(t, "device", "device/1")
	arrived, release := store.HoldRecords()
	ends := make(chan servertest.Answers, 3)
	deliver := func(reqs ...*brevetv1.IssueCertificatesRequest) {
		stream := servertest.Must(w.Operator.IssueCertificates(t.Context()))(t)
		go func() {
			answers, err := servertest.Deliver(t, stream, reqs...)
			servertest.Refused(t, err, codes.OK, "")
			ends <- answers
		}()
	}
	for range 2 { // one order is being recorded, and the others wait for their turn
		reqs := make([]*brevetv1.IssueCertificatesRequest, 256)
		csr := servertest.CSR(t, device.Key)
		for i := range reqs {
			reqs[i] = &brevetv1.IssueCertificatesRequest{RequestId: servertest.RequestID(), Identity: device.ID, Csr: csr}
		}
		deliver(reqs...)
	}
	<-arrived
	for w.Server.OrdersUnderWay() < 512 {
		time.Sleep(time.Millisecond)
	}
	deliver(&brevetv1.IssueCertificatesRequest{})
	streams := 3
	select {
	case <-ends:
		streams--
		t.Error("an order had no need to wait, with 512 under way")
	case <-time.After(100 * time.Millisecond):
	}
	servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
	w.Suspend(t, device.ID) // so that no more certificates come of it
	release()
	for range streams {
		for _, a := range <-ends {
			switch rule := servertest.RuleOf(servertest.FailureOf(a)); rule {
			case "", pki.RuleIdentityStale, pki.RuleIdentityState, pki.RuleRequest:
			default:
				t.Errorf("an order that waited was refused by %s", rule)
			}
		}
	}
}
