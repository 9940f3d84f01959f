package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// cluster is the PostgreSQL server of all tests. The first of them that needs it starts it.
var cluster lazyCluster

type lazyCluster struct {
	mu      sync.Mutex
	started *postgrestest.Cluster
}

func (c *lazyCluster) schema(t testing.TB) string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started == nil {
		c.started = servertest.Must(postgrestest.Start())(t)
	}
	return c.started.Schema(t)
}

func (c *lazyCluster) stop() error {
	if c.started == nil {
		return nil
	}
	return c.started.Stop()
}

// shared returns a function that opens a new store on PostgreSQL, for servertest.Options.Shared. The connections of the
// server "second" go through the cable.
func shared(t testing.TB, second *cable) func(context.Context, string) (servertest.Store, error) {
	t.Helper()
	connection := cluster.schema(t)
	return func(ctx context.Context, server string) (servertest.Store, error) {
		config, err := pgx.ParseConfig(connection)
		if err != nil {
			return nil, err
		}
		if server == "second" {
			config.DialFunc = second.dial
		}
		db, err := postgres.OpenWith(ctx, config, server)
		if err != nil {
			return nil, err
		}
		return store{db, db.Nonces(), db.Delegates()}, nil
	}
}

// A cable carries connections to a database. While it is unplugged, it carries nothing, and no connection ends.
type cable struct{ plug sync.RWMutex }

func (c *cable) unplug()    { c.plug.Lock() }
func (c *cable) plugAgain() { c.plug.Unlock() }

func (c *cable) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	far, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	near, end := net.Pipe()
	carry := func(from, to net.Conn) {
		defer from.Close()
		defer to.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := from.Read(buffer)
			c.plug.RLock()
			_, werr := to.Write(buffer[:n])
			c.plug.RUnlock()
			if err != nil || werr != nil {
				return
			}
		}
	}
	go carry(end, far)
	go carry(far, end)
	return near, nil
}

// A certificate that one server issued may call another one at once. When its revocation is acknowledged, no server renews
// it, and the others soon report it as revoked, and refuse its calls.
func TestRevocationsReachOtherServers(t *testing.T) {
	t.Parallel()
	o := servertest.Options{Shared: shared(t, &cable{})}
	w := servertest.New(t, ground, o)
	second := w.Another(t, "second", o)
	device := w.Enrolled(t, "device", "device/1")
	there := second.Holder(t, device.Certificate.Raw, device.Key)
	servertest.Must(there.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{}))(t)
	renewed := w.Enrolled(t, "device", "device/2")
	second.Renewed(t, second.Holder(t, renewed.Certificate.Raw, renewed.Key), servertest.Key(t))

	w.Revoke(t, device.Certificate, "keyCompromise")
	_, err := there.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t))) // the transaction checks it
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	for second.OCSP(t, device.Certificate).Status != ocsp.Revoked {
		time.Sleep(time.Millisecond)
	}
	_, err = there.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
}

// Devices renew with different keys at two servers at the same time, as often as the servers allow. Each certificate gets one
// successor. The signature for a request that loses is recorded as revoked, and there is at most one of them for each
// certificate that is delivered. max_unexpired of the profile limits both: beyond it, no server signs.
func TestRacesOfServersAreBounded(t *testing.T) {
	t.Parallel()
	o := servertest.Options{Shared: shared(t, &cable{})}
	w := servertest.New(t, ground, o)
	servers := []*servertest.World{w, w.Another(t, "second", o)}
	lost := func() (n int) {
		for _, c := range w.Inventory(t) {
			if !c.Delivered {
				n++
			}
		}
		return n
	}
	delivered, again := 0, atomic.Int64{}
	for n := range 4 {
		held := w.Enrolled(t, "device", fmt.Sprintf("device/%d", n))
		for next := held; next != nil; {
			held, delivered = next, delivered+1
			next = race(t, servers, held, &again)
		}
		if all := lost(); all >= delivered+int(again.Load()) {
			t.Errorf("%d certificates were delivered, and %d signed for nothing", delivered, all)
		}
		before := lost()
		for range 5 {
			if race(t, servers, held, &again) != nil {
				t.Error("a server renews after it has refused to")
			}
		}
		if all := lost(); all != before {
			t.Errorf("%d certificates were signed beyond the limit of the profile", all-before)
		}
	}
	t.Logf("%d certificates were delivered, and %d signed for nothing", delivered, lost())
}

// repeated calls a server, and repeats the call while it is UNAVAILABLE, as clients do: a server that stood still for longer than
// its lease is fenced for a moment. It counts the repetitions in again, because each may leave a signature for nothing.
func repeated[T any](t *testing.T, again *atomic.Int64, call func() (T, error)) (T, error) {
	t.Helper()
	for {
		result, err := call()
		if status.Code(err) != codes.Unavailable {
			return result, err
		}
		t.Logf("repeating a call: %v", err)
		again.Add(1)
		time.Sleep(100 * time.Millisecond)
	}
}

// race renews with different keys at all servers at the same time. It returns nil if all refuse because it is too early.
func race(t *testing.T, servers []*servertest.World, held *servertest.Holder, again *atomic.Int64) (next *servertest.Holder) {
	t.Helper()
	got, errs := make([]*servertest.Holder, len(servers)), make([]error, len(servers))
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i, s := range servers {
		there, key := s.Holder(t, held.Certificate.Raw, held.Key), servertest.Key(t)
		request := servertest.Renewal(t, key)
		_, err := there.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{}) // connects
		servertest.Must(0, err)(t)
		all.Go(func() {
			<-begin
			resp, err := repeated(t, again, func() (*brevetv1.RenewResponse, error) { return there.Renew(t.Context(), request) })
			if errs[i] = err; err == nil {
				got[i] = s.Holder(t, resp.GetCredential().GetCertificate(), key)
			}
		})
	}
	close(begin)
	all.Wait()
	for i, h := range got {
		switch {
		case h != nil && next != nil:
			t.Fatal("one certificate was renewed twice, with different keys")
		case h != nil:
			next = h
		case slices.ContainsFunc(got, func(h *servertest.Holder) bool { return h != nil }):
			servertest.Refused(t, errs[i], codes.PermissionDenied, pki.RuleRenewalKeyConflict)
		default:
			servertest.Refused(t, errs[i], codes.ResourceExhausted, pki.RuleRenewalTooEarly)
		}
	}
	return next
}

// One token is presented to two servers at the same time: with two keys, and with one request, as after a lost response. There
// is one certificate. Both servers may have signed the one request, and the other signature is recorded as revoked.
func TestOneTokenAtTwoServers(t *testing.T) {
	t.Parallel()
	o := servertest.Options{Shared: shared(t, &cable{})}
	w := servertest.New(t, ground, o)
	callers := []*servertest.Caller{w.Caller(t, nil), w.Another(t, "second", o).Caller(t, nil)}
	var again atomic.Int64
	atOnce := func(requests ...*brevetv1.EnrollRequest) (certificates [][]byte, errs []error) {
		certificates, errs = make([][]byte, len(callers)), make([]error, len(callers))
		var all sync.WaitGroup
		for i, c := range callers {
			all.Go(func() {
				resp, err := repeated(t, &again, func() (*brevetv1.EnrollResponse, error) { return c.Enroll(t.Context(), requests[i]) })
				certificates[i], errs[i] = resp.GetCredential().GetCertificate(), err
			})
		}
		all.Wait()
		return certificates, errs
	}
	const rounds = 8
	for n := range rounds {
		token := w.Token(t, w.Register(t, "device", fmt.Sprintf("device/%d", n)), false)
		requests := []*brevetv1.EnrollRequest{servertest.Enrollment(t, token, servertest.Key(t)), servertest.Enrollment(t, token, servertest.Key(t))}
		certificates, errs := atOnce(requests...)
		won := slices.Index(errs, nil)
		if won < 0 {
			t.Fatalf("no server accepts the token: %v", errs)
		}
		switch rule := servertest.RuleOf(errs[1-won]); rule {
		case pki.RuleTokenBound, pki.RuleAlreadyEnrolled: // as the first request is in progress, or has ended
		default:
			t.Errorf("the request with the other key is refused by %q: %v", rule, errs[1-won])
		}
		again, errs := atOnce(requests[won], requests[won])
		for i, err := range errs {
			if err != nil || !bytes.Equal(again[i], certificates[won]) {
				t.Errorf("server %d does not repeat the response: %v", i+1, err)
			}
		}
		same := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", fmt.Sprintf("device/same/%d", n)), false), servertest.Key(t))
		if certificates, errs = atOnce(same, same); errs[0] != nil || errs[1] != nil || !bytes.Equal(certificates[0], certificates[1]) {
			t.Errorf("one request at two servers has different certificates, or none: %v", errs)
		}
	}
	lost := slices.DeleteFunc(w.Inventory(t), func(c ra.Certificate) bool { return c.Delivered })
	if most := rounds + int(again.Load()); len(lost) > most {
		t.Errorf("%d certificates were signed for nothing, by %d requests at two servers", len(lost), most)
	}
	for _, c := range lost {
		if c.Status.State != pki.Revoked {
			t.Errorf("certificate %s was not delivered, and is %v", c.Ref.Serial, c.Status.State)
		}
	}
}

// BenchmarkRevokeToOther measures how long after a revocation was acknowledged by one server another one reports it.
func BenchmarkRevokeToOther(b *testing.B) {
	o := servertest.Options{Shared: shared(b, &cable{})}
	w := servertest.New(b, ground, o)
	second := w.Another(b, "second", o)
	var took []time.Duration
	for b.Loop() {
		device := w.Enrolled(b, "device", fmt.Sprintf("device/%d", len(took)))
		time.Sleep(time.Duration(mathrand.IntN(200)) * time.Millisecond) // not in step with the polling
		w.Revoke(b, device.Certificate, "keyCompromise")
		acknowledged := time.Now()
		for second.OCSP(b, device.Certificate).Status != ocsp.Revoked {
			time.Sleep(time.Millisecond)
		}
		took = append(took, time.Since(acknowledged))
	}
	slices.Sort(took)
	for percent, name := range map[int]string{50: "p50-ms", 99: "p99-ms", 100: "max-ms"} {
		b.ReportMetric(float64(took[(len(took)-1)*percent/100].Microseconds())/1000, name)
	}
}

// A server that cannot read what the others have changed sends tryLater, also in place of cached responses, refuses calls,
// and is not ready. When it can read again, it never reports an older status.
func TestServersWithoutDatabaseBecomeStale(t *testing.T) {
	t.Parallel()
	line := &cable{}
	o := servertest.Options{Shared: shared(t, line), MaxStaleness: 2 * time.Second}
	w := servertest.New(t, ground, o)
	second := w.Another(t, "second", o)
	device := w.Enrolled(t, "device", "device/1")
	there := second.Holder(t, device.Certificate.Raw, device.Key)
	for second.OCSP(t, device.Certificate).Status != ocsp.Good { // is cached then
		time.Sleep(time.Millisecond)
	}
	servertest.Must(there.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{}))(t)

	line.unplug()
	for !bytes.Equal(second.AskOCSP(t, device.Certificate), ocsp.TryLaterErrorResponse) {
		time.Sleep(10 * time.Millisecond)
	}
	_, err := there.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{})
	servertest.Refused(t, err, codes.Unavailable, pki.RuleStale)
	_, err = there.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.Unavailable, pki.RuleStale)
	_, err = second.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.Unavailable, pki.RuleStale)
	if code, body := getOperations(t, second, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "what the others have changed") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if code, body := getOperations(t, second, "/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %s", code, body)
	}
	if _, text := getOperations(t, second, "/metrics"); metric(t, text, "brevet_stale") != 1 {
		t.Error("brevet_stale is not 1")
	}
	w.Revoke(t, device.Certificate, "keyCompromise") // the first server serves
	line.plugAgain()
	second.Status(t, device.Certificate, "keyCompromise") // repeats the request after tryLater only
	_, err = there.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	for code := 0; code != http.StatusOK; {
		time.Sleep(10 * time.Millisecond)
		code, _ = getOperations(t, second, "/readyz")
	}
	if n := strings.Count(second.Log.String(), "the statuses are older than the limit"); n != 1 {
		t.Errorf("the log reports it %d times", n)
	}
	if strings.Contains(w.Log.String(), "the statuses are older than the limit") {
		t.Error("the first server is stale, too")
	}
}

// roundRobin forwards each connection to the next one of several servers.
type roundRobin struct {
	net.Listener

	next  atomic.Int64
	to    []string
	ended sync.WaitGroup
}

// serve forwards connections until the test ends.
func (r *roundRobin) serve(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { _ = r.Close(); r.ended.Wait() })
	r.ended.Go(func() {
		for {
			near, err := r.Accept()
			if err != nil {
				return
			}
			r.ended.Go(func() {
				defer near.Close()
				far, err := net.Dial("tcp", r.to[int(r.next.Add(1))%len(r.to)])
				if err != nil {
					return
				}
				defer far.Close()
				r.ended.Go(func() { _, _ = io.Copy(far, near); _ = far.Close() })
				_, _ = io.Copy(near, far)
			})
		}
	})
}

// counting counts responses that refuse a nonce, and remembers the last request that was signed.
type counting struct {
	http.RoundTripper

	mu        sync.Mutex
	badNonces int
	url       string
	body      []byte
}

// RoundTrip implements http.RoundTripper.
func (c *counting) RoundTrip(q *http.Request) (*http.Response, error) {
	var sent []byte
	if q.Body != nil {
		var err error
		if sent, err = io.ReadAll(q.Body); err != nil {
			return nil, err
		}
		q = q.Clone(q.Context())
		q.Body = io.NopCloser(bytes.NewReader(sent))
	}
	resp, err := c.RoundTripper.RoundTrip(q)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err := resp.Body.Close(); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Contains(body, []byte("badNonce")) {
		c.badNonces++
	}
	if q.Method == http.MethodPost {
		c.url, c.body = q.URL.String(), sent
	}
	return resp, err
}

// An ACME client whose requests go to two servers in turn never gets a bad nonce. A request that one server has accepted is
// refused by both.
func TestACMENoncesAreValidAtEveryServer(t *testing.T) {
	t.Parallel()
	lb := &roundRobin{Listener: servertest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)}
	_, port, _ := net.SplitHostPort(lb.Addr().String())
	var o servertest.Options
	w := newACMEWorld(t, func(options *servertest.Options) {
		options.Shared, options.HTTPSURL = shared(t, &cable{}), "https://localhost:"+port
		o = *options
	})
	second := w.Another(t, "second", o)
	lb.to = []string{w.HTTPS, second.HTTPS}
	lb.serve(t)
	w.HTTPS = lb.Addr().String()
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	trip := &counting{RoundTripper: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
	}}
	w.http = &http.Client{Transport: trip}
	w.zone.Address(t, "a.web.fleet.example", "127.0.0.1")
	c := w.bind(t, &brevetv1.CreateExternalKeyRequest{Rule: "web"})
	for range 3 {
		servertest.Must(c.obtain(t.Context(), servertest.Key(t), nil, "a.web.fleet.example"))(t)
	}
	if trip.badNonces != 0 || lb.next.Load() < 20 {
		t.Errorf("%d nonces were refused in %d requests", trip.badNonces, lb.next.Load())
	}
	url, body := trip.url, trip.body
	for range 4 {
		resp := servertest.Must(w.http.Post(url, "application/jose+json", bytes.NewReader(body)))(t)
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("a repeated request: %s, %v", resp.Status, err)
		}
	}
	if trip.badNonces != 4 {
		t.Errorf("of 4 repeated requests, %d were refused for their nonce", trip.badNonces)
	}
}
