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

// A server that stops completes the issue requests in flight, and ends the stream with an error after which the client
// can send the other requests again.
func TestStoppingCompletesIssueRequests(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	reqs, late := issueRequests(t, "device", 30), issueRequests(t, "late", 1)
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
	for { // until the listener is closed
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
		t.Errorf("the stream's error does not say when to retry: %v", err)
	}
	<-stopped
	_ = conn.Close()
	if len(answers) != len(reqs) {
		t.Errorf("%d responses to requests in flight, want %d", len(answers), len(reqs))
	}
	w.Serve(t, servertest.Options{})
	checkOneCertificateEach(t, w, reqs, answers)
	again := w.Operator.Orders(t, append(reqs, late...)...)
	checkOneCertificateEach(t, w, append(reqs, late...), again)
	for _, req := range reqs {
		before, _ := answers.Of(req)
		if after, _ := again.Of(req); string(before) != string(after) {
			t.Errorf("%s has two certificates", req.GetIdentity())
		}
	}
}

// If a client does not read responses, the server stops reading its requests, and serves other clients as usual.
func TestStreamIsNotRead(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	const all = 4000
	req := servertest.Order(t, strings.Repeat("/", 1000), servertest.Key(t)) // the response contains this long name
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
	for before := int64(-1); before != sent.Load(); { // until no request was sent for 200 ms
		before = sent.Load()
		time.Sleep(200 * time.Millisecond)
	}
	// The server reads at least the 256 requests of the window. The others are in the buffers of both directions.
	if n := sent.Load(); n < 256 || n > 1500 {
		t.Errorf("the server read %d requests of a client that reads no responses", n)
	}
	w.Enrolled(t, "device", "device/other")
	w.NewOperator(t, "bob").Orders(t, issueRequests(t, "device", 3)...)
	for range all {
		servertest.Must(stream.Recv())(t)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// All streams together process at most 512 issue requests at a time. The next one waits and does not fail.
func TestStreamsShareTheirSlots(t *testing.T) {
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
	for range 2 { // two full windows; one certificate waits to be recorded, and all other requests wait for it
		reqs := make([]*brevetv1.IssueCertificatesRequest, 256)
		csr := servertest.CSR(t, device.Key)
		for i := range reqs {
			reqs[i] = &brevetv1.IssueCertificatesRequest{RequestId: servertest.RequestID(), Identity: device.ID, Csr: csr}
		}
		deliver(reqs...)
	}
	<-arrived
	for w.Server.IssueRequestsInProgress() < 512 {
		time.Sleep(time.Millisecond)
	}
	deliver(&brevetv1.IssueCertificatesRequest{})
	streams := 3
	select {
	case <-ends:
		streams--
		t.Error("a request did not wait, although 512 are in progress")
	case <-time.After(100 * time.Millisecond):
	}
	servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
	w.Suspend(t, device.ID) // so that the requests get no more certificates
	release()
	for range streams {
		for _, a := range <-ends {
			switch rule := servertest.RuleOf(servertest.FailureOf(a)); rule {
			case "", pki.RuleIdentityStale, pki.RuleIdentityState, pki.RuleRequest:
			default:
				t.Errorf("a request that waited was refused by %s", rule)
			}
		}
	}
}
