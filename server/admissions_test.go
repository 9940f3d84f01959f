package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
)

// stuck is a store in which requests for certificates of one identity block until release is closed.
type stuck struct {
	ra.Store
	id          string        // the SPIFFE ID
	predecessor pki.Serial    // if not zero, only renewals of the certificate with this serial number block
	release     chan struct{} // closed by the test
}

func (s *stuck) wrap(stores server.Stores) server.Stores {
	s.Store = stores.RA
	stores.RA = s
	return stores
}

// IssuanceState implements ra.Store.
func (s *stuck) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	if q.Identity.String() == s.id && (s.predecessor.IsZero() || q.Predecessor.Serial == s.predecessor) {
		<-s.release
	}
	return s.Store.IssuanceState(ctx, q)
}

// from returns an option for connections from a loopback address, so that the server sees another source.
func from(address string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		return d.DialContext(ctx, "tcp", to)
	})
}

// insist repeats a call while the server refuses it with RESOURCE_EXHAUSTED. On a slow machine, the server may refuse a
// call because it has waited too long in its queue.
func insist(ctx context.Context, call func() error) {
	for ctx.Err() == nil {
		if status.Code(call()) != codes.ResourceExhausted {
			return
		}
	}
}

// awaitQueue waits until the metrics show these numbers of running and waiting calls of a queue.
func awaitQueue(t *testing.T, w *servertest.World, queue string, working, waiting float64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		_, text := getOperations(t, w, "/metrics")
		in, line := metric(t, text, `brevet_queue_active{queue="`+queue+`"}`), metric(t, text, `brevet_queue_waiting{queue="`+queue+`"}`)
		if in == working && line == waiting {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the queue %s has %g active and %g waiting RPCs, want %g and %g", queue, in, line, working, waiting)
		}
	}
}

// A flood of enrollments from one address fills its share of the queue, and the rest is rejected with a retry delay.
// Enrollments from other addresses, renewals and revocations work as usual.
func TestFloodOfEnrollmentsIsLimited(t *testing.T) {
	t.Parallel()
	s := &stuck{id: "spiffe://" + servertest.TrustDomain + "/device/flood", release: make(chan struct{})}
	w := servertest.New(t, ground, servertest.Options{Wrap: s.wrap})
	device, stolen := w.Enrolled(t, "device", "device/1"), w.Enrolled(t, "device", "device/2")
	late := w.Token(t, w.Register(t, "device", "device/3"), false)
	flood := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/flood"), false), servertest.Key(t))
	_, sessions := ground.Token.Calls()
	share := (sessions + 1) / 2
	const queued = 512

	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	var group sync.WaitGroup
	var conn *servertest.Caller
	for n := range share + queued {
		if n%100 == 0 { // a new connection, because the server allows 128 concurrent RPCs on each
			conn = w.Caller(t, nil)
		}
		caller := conn
		group.Go(func() {
			insist(ctx, func() error { _, err := caller.Enroll(ctx, flood); return err })
		})
	}
	awaitQueue(t, w, "enrollments", float64(share), queued)
	_, err := w.Caller(t, nil).Enroll(t.Context(), flood)
	servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleOverloaded)
	if retryDelay(err) == "" {
		t.Error("a rejected call has no retry delay")
	}
	servertest.Must(w.Caller(t, nil, from("127.0.0.2")).Enroll(t.Context(), servertest.Enrollment(t, late, servertest.Key(t))))(t)
	w.Renewed(t, device, servertest.Key(t))
	w.Revoke(t, stolen.Certificate, "keyCompromise")
	servertest.Must(w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}))(t)
	giveUp()
	awaitQueue(t, w, "enrollments", 1, 0) // only one call blocks in the store; the canceled calls have ended
	close(s.release)
	group.Wait()
	awaitQueue(t, w, "enrollments", 0, 0)
	_, text := getOperations(t, w, "/metrics")
	if metric(t, text, `brevet_queue_rejected_total{queue="enrollments"}`) < 1 || metric(t, text, `brevet_queue_rejected_total{queue="renewals"}`) != 0 {
		t.Error("the metrics do not count the rejected calls")
	}
}

// Of many concurrent renewals of one identity, one occupies a slot, and 512 wait. Renewals beyond that are rejected,
// and the rejections are not in the log.
func TestIdentityOccupiesOneSlot(t *testing.T) {
	t.Parallel()
	s := &stuck{release: make(chan struct{})}
	w := servertest.New(t, ground, servertest.Options{Wrap: s.wrap})
	device, other := w.Enrolled(t, "device", "device/1"), w.Enrolled(t, "device", "device/2")
	before := len(w.Entries(t, 0))
	s.id = device.ID
	req := servertest.Renewal(t, servertest.Key(t))
	const queued = 512
	var group sync.WaitGroup
	var caller *servertest.Caller
	for n := range 1 + queued {
		if n%100 == 0 {
			caller = w.Holder(t, device.Certificate.Raw, device.Key).Caller
		}
		c := caller
		group.Go(func() {
			insist(t.Context(), func() error { _, err := c.Renew(t.Context(), req); return err })
		})
	}
	awaitQueue(t, w, "renewals", 1, queued)
	_, err := device.Renew(t.Context(), req)
	servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleOverloaded)
	w.Renewed(t, other, servertest.Key(t))
	close(s.release)
	group.Wait()
	entries := w.Entries(t, before)
	for _, e := range entries {
		if e.Action != "certificate.issued" {
			t.Errorf("the log has %s about an overload", e.Action)
		}
	}
	if len(entries) != 2 {
		t.Errorf("the log has %d new entries, want one for each certificate", len(entries))
	}
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	stolen := w.Enrolled(t, "device", "device/2")
	before := w.Enrolled(t, "device", "device/3")
	replaced := w.Enroll(t, w.Token(t, before.ID, true), servertest.Key(t))
	slow := admission.Rate{PerSecond: 0.01, Burst: 5}
	w.Restart(t, servertest.Options{Limits: &server.Limits{Identity: slow, Address: slow}})
	device.Caller = w.Holder(t, device.Certificate.Raw, device.Key).Caller
	refused := func(who string, call func() error) {
		t.Helper()
		for n := range slow.Burst + 2 {
			err := call()
			if n < slow.Burst {
				if err != nil {
					t.Errorf("%s: call %d: %v", who, n, err)
				}
				continue
			}
			servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRateLimited)
			if after, perr := time.ParseDuration(retryDelay(err)); perr != nil || after < 70*time.Second || after > 5*time.Minute {
				t.Errorf("%s gets the retry delay %s, with a rate of one call in 100 seconds", who, retryDelay(err))
			}
		}
	}
	refused("operator", func() error {
		_, err := w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
		return err
	})
	w.Revoke(t, stolen.Certificate, "keyCompromise") // revocations by operators have no rate limit
	servertest.Must(w.Operator.CreateToken(t.Context(), pattern()))(t)
	_, err := device.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	for range slow.Burst - 1 { // refused calls count, including refused revocations
		_, err = device.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{})
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	}
	_, err = device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRateLimited)
	for n, address := range []string{"127.0.0.3", "127.0.0.4"} {
		c := healthv1.NewHealthClient(w.Caller(t, nil, from(address)).Conn)
		refused(fmt.Sprintf("address %d", n), func() error {
			_, err := c.Check(t.Context(), &healthv1.HealthCheckRequest{})
			return err
		})
	}
	over := forge(t, w, before, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
	for address, old := range map[string][]byte{"127.0.0.5": over, "127.0.0.6": before.Certificate.Raw, "127.0.0.7": forge(t, w, before, nil)} {
		c := w.Caller(t, certificate(before.Key, old, w.Issuing.Raw), from(address))
		for n := range slow.Burst + 2 {
			_, err := c.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
			if rule := servertest.RuleOf(err); rule == "" || (rule == pki.RuleRateLimited) != (n >= slow.Burst) {
				t.Errorf("%s: call %d: %v", address, n, err)
			}
		}
	}
	servertest.Must(w.Holder(t, replaced.Certificate.Raw, replaced.Key).Renew(t.Context(), servertest.Renewal(t, servertest.Key(t))))(t)
	w.Restart(t, servertest.Options{}) // for the final checks
}

// halfway is the connection of a client that sends its ClientHello and nothing more, because Read blocks until over is
// closed.
type halfway struct {
	net.Conn
	over <-chan struct{}
}

// Read implements net.Conn.
func (h halfway) Read([]byte) (int, error) {
	<-h.over
	return 0, net.ErrClosed
}

// Clients that start a handshake and do not continue occupy no slots, even if there are more such clients than slots.
func TestStalledHandshakes(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	_, text := getOperations(t, w, "/metrics")
	clients := 2*int(metric(t, text, `brevet_queue_slots{queue="handshakes"}`)) + 1
	over := make(chan struct{})
	var group sync.WaitGroup
	for range clients {
		conn := servertest.Must((&net.Dialer{}).DialContext(t.Context(), "tcp", w.GRPC))(t)
		group.Go(func() {
			client := tls.Client(halfway{conn, over}, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
			if err := client.HandshakeContext(context.WithoutCancel(t.Context())); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the handshake ended with %v", err)
			}
			_ = client.Close()
		})
	}
	device := w.Enrolled(t, "device", "device/1")
	w.Renewed(t, device, servertest.Key(t))
	close(over)
	group.Wait()
}
