package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// The tests in this file are not parallel, because they check that a stopped server has left no goroutines.

func TestStoppingCompletesRequests(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	w.StopServer(t)
	before := goleak.IgnoreCurrent()
	store := &servertest.Faulty{}
	w.Serve(t, servertest.Options{Wrap: store.Wrap})
	arrived, release := store.Hold()
	type result struct {
		page *brevetv1.ListIdentitiesResponse
		err  error
	}
	called, stopped := make(chan result, 1), make(chan struct{})
	go func() {
		page, err := w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
		called <- result{page, err}
	}()
	<-arrived
	go func() {
		w.StopServer(t)
		close(stopped)
	}()
	for _, address := range []string{w.GRPC, w.HTTPS} {
		for { // until the listener is closed
			conn, err := net.Dial("tcp", address)
			if err != nil {
				break
			}
			_ = conn.Close()
		}
	}
	select {
	case <-stopped:
		t.Error("the server stopped before a call in flight was completed")
	default:
	}
	release()
	if r := <-called; r.err != nil || len(r.page.GetIdentities()) == 0 {
		t.Errorf("the call in flight ended with %v, %v", r.page, r.err)
	}
	<-stopped
	goleak.VerifyNone(t, before)
	w.Serve(t, servertest.Options{})
}

// If a server is stopped in the function of OnReady, its listeners may not have started. Run must still return nil.
func TestStoppedBeforeItsListenersStart(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	w.StopServer(t)
	// With one processor, the goroutine that stops the server tends to run before those of the listeners.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for range 5 {
		s := servertest.Must(server.New(t.Context(), w.Config(t, servertest.Options{})))(t)
		ctx, stop := context.WithCancel(t.Context())
		s.OnReady(stop)
		if err := s.Run(ctx); err != nil {
			t.Fatalf("Run returns %v", err)
		}
	}
	w.Serve(t, servertest.Options{})
}

// Orderly returns the failure of a part even if it is joined with errors of parts that only report the stop.
func TestOrderly(t *testing.T) {
	failure := errors.New("the archive is full")
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"nothing", nil, nil},
		{"a canceled context", fmt.Errorf("follow the feed: %w", context.Canceled), nil},
		{"two stopped listeners", errors.Join(http.ErrServerClosed, grpc.ErrServerStopped), nil},
		{"a failure", failure, failure},
		{"a failure beside a stop", errors.Join(context.Canceled, failure), failure},
		{"a failure beside stops, nested", errors.Join(errors.Join(http.ErrServerClosed, fmt.Errorf("close: %w", failure)), context.Canceled), failure},
	} {
		if got := server.Orderly(c.err); !errors.Is(got, c.want) || errors.Is(got, context.Canceled) {
			t.Errorf("%s: Orderly returned %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRestartKeepsCredentials(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	revoked := w.Enrolled(t, "device", "device/2")
	w.Revoke(t, revoked.Certificate, "superseded")
	own, delegate := serverCertificate(t, w), w.OwnPair(t, w.DelegateDir()).Serial()
	certificates := len(w.Inventory(t))

	w.Restart(t, servertest.Options{})
	if got := serverCertificate(t, w); got.SerialNumber.Cmp(own.SerialNumber) != 0 || w.OwnPair(t, w.DelegateDir()).Serial() != delegate || len(w.Inventory(t)) != certificates {
		t.Error("after a restart the server has new credentials")
	}
	w.Status(t, device.Certificate, "good")
	w.Status(t, revoked.Certificate, "superseded")
	_, err := w.Holder(t, revoked.Certificate.Raw, revoked.Key).Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	w.Renewed(t, w.Holder(t, device.Certificate.Raw, device.Key), servertest.Key(t))

	w.Restart(t, servertest.Options{Names: []string{"ca.fleet.example", "127.0.0.1", "::1"}})
	got := serverCertificate(t, w)
	if !slices.Equal(got.DNSNames, []string{"ca.fleet.example", "localhost"}) || fmt.Sprint(got.IPAddresses) != "[127.0.0.1 ::1]" {
		t.Errorf("after a change of its names the server's certificate has %v, %v", got.DNSNames, got.IPAddresses)
	}
	w.Status(t, own, "superseded")
	w.Status(t, got, "good")
}

// serverCertificate returns the certificate that the server presents. Its chain must end with the root.
func serverCertificate(t *testing.T, w *servertest.World) *x509.Certificate {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	conn := servertest.Must(d.DialContext(t.Context(), "tcp", w.GRPC))(t).(*tls.Conn)
	defer conn.Close()
	chain := conn.ConnectionState().PeerCertificates
	if len(chain) != 3 || !chain[2].Equal(w.Root) {
		t.Errorf("the server presents %d certificates, or the last is not the root", len(chain))
	}
	return chain[0]
}

// brokenFeed is a feed whose snapshots always fail.
type brokenFeed struct{ responder.Feed }

func (brokenFeed) Snapshot(context.Context, time.Time, func(pki.StatusChange) error) (uint64, error) {
	return 0, errors.New("the feed is away")
}

// A server that cannot read its feed does not start to serve, and can be stopped.
func TestStoppingBeforeServing(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	w.StopServer(t)
	before := goleak.IgnoreCurrent()
	c := w.Config(t, servertest.Options{Wrap: func(s server.Stores) server.Stores {
		s.Feed = brokenFeed{s.Feed}
		return s
	}})
	s := servertest.Must(server.New(t.Context(), c))(t)
	s.OnReady(func() { t.Error("the server serves without knowing any status") })
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	for _, l := range []net.Listener{c.GRPC, c.HTTP} {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a listener is still open: %v", err)
		}
	}
	goleak.VerifyNone(t, before)
	w.Serve(t, servertest.Options{})
}

// If Run is never called, as in brevet serve --check, Close releases everything that New has started.
func TestCloseWithoutRun(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	w.StopServer(t)
	before := goleak.IgnoreCurrent()
	c := w.Config(t, servertest.Options{})
	s := servertest.Must(server.New(t.Context(), c))(t)
	if err := errors.Join(s.Close(t.Context()), c.GRPC.Close(), c.HTTP.Close()); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
	w.Serve(t, servertest.Options{})
	w.Enrolled(t, "device", "device/1")
}

// However a stream of issue requests ends, it leaves no goroutine or slot behind, except goroutines that wait for another request.
// TestWorkersAreReused limits how many these are.
func TestStreamsLeaveNothingBehind(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	w.Operator.Orders(t, issueRequests(t, "device", 1)...) // opens the connection, whose goroutines stay
	before := goleak.IgnoreCurrent()
	for i := range 16 {
		ctx, cancel := context.WithCancel(t.Context())
		stream := servertest.Must(w.Operator.IssueCertificates(ctx))(t)
		if err := stream.Send(&brevetv1.IssueCertificatesRequest{}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			servertest.Must(stream.Recv())(t)
		}
		cancel()
	}
	goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("github.com/brevet-pki/brevet/server/grpcapi.(*workers).serve"))
}
