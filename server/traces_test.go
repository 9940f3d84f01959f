package server_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/server/telemetry"
)

// collector receives traces like an OpenTelemetry collector.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	endpoint string

	mu    sync.Mutex
	spans []*tracev1.Span
	raw   []byte
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, s := &collector{endpoint: "http://" + l.Addr().String()}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return c
}

// Export implements collectorv1.TraceServiceServer.
func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	raw, err := proto.Marshal(req)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, raw...)
	for _, r := range req.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, err
}

// named returns the spans with the given name.
func (c *collector) named(name string) []*tracev1.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []*tracev1.Span
	for _, s := range c.spans {
		if s.GetName() == name {
			found = append(found, s)
		}
	}
	return found
}

// The trace context of a caller that requests sampling, in the format of W3C Trace Context.
const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	traceparent  = "00-" + callersTrace + "-b7ad6b7169203331-01"
)

func TestCallsAreTraced(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	o := servertest.Options{Traces: telemetry.Traces{Endpoint: c.endpoint, SampleRatio: 1}}
	w := servertest.New(t, ground, o)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent, "tracestate", "vendor=tracestate-of-the-caller")
	token, key := w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t)
	resp := servertest.Must(w.Caller(t, nil).Enroll(ctx, servertest.Enrollment(t, token, key)))(t)
	device := w.Holder(t, resp.GetCredential().GetCertificate(), key)
	_, err := device.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	_ = device.Conn.Invoke(t.Context(), "/brevet.v1.EnrollmentService/MadeUp", &brevetv1.EnrollRequest{}, &brevetv1.EnrollResponse{})
	servertest.Must(healthv1.NewHealthClient(device.Conn).Check(t.Context(), &healthv1.HealthCheckRequest{}))(t)
	w.StopServer(t) // sends the remaining spans

	if probes := c.named("grpc.health.v1.Health/Check"); len(probes) > 0 {
		t.Errorf("probes are traced: %v", probes)
	}
	calls := c.named("brevet.v1.EnrollmentService/Enroll")
	call := calls[len(calls)-1] // the operator's enrollment came before
	if len(call.GetParentSpanId()) != 0 || hex.EncodeToString(call.GetTraceId()) == callersTrace {
		t.Error("the span is part of the caller's trace")
	}
	if links := call.GetLinks(); len(links) != 1 || hex.EncodeToString(links[0].GetTraceId()) != callersTrace || links[0].GetTraceState() != "" {
		t.Errorf("the links are %v, want the caller's trace, without its text", call.GetLinks())
	}
	for _, step := range []string{"intent", "sign", "record"} {
		var children int
		for _, s := range c.named(step) {
			if bytes.Equal(s.GetParentSpanId(), call.GetSpanId()) && bytes.Equal(s.GetTraceId(), call.GetTraceId()) {
				children++
			}
		}
		if children != 1 {
			t.Errorf("the enrollment has %d spans %s, want one", children, step)
		}
	}
	refused := c.named("brevet.v1.IdentityService/ListIdentities")
	if len(refused) != 1 || !strings.Contains(refused[0].String(), string(pki.RuleAccess)) {
		t.Errorf("the refused call's spans are %v, want one with its rule", refused)
	}
	for _, secret := range []string{"device/1", "alice", "MadeUp", "tracestate-of-the-caller", string(token)} {
		if bytes.Contains(c.raw, []byte(secret)) {
			t.Errorf("a span contains %q", secret)
		}
	}
	w.Serve(t, o) // for the final checks
}

// An enrollment by EST has one span with the name of its handler, and a refused one has its rule. Requests without a route
// have none.
func TestHTTPSRequestsAreTraced(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	o := servertest.Options{Traces: telemetry.Traces{Endpoint: c.endpoint, SampleRatio: 1}}
	o.Policy = estPolicy(newMaker(t))
	w := servertest.New(t, ground, o)
	token := tokenText(t, w, w.Register(t, "device", "device/1"), false)
	csr := servertest.CSR(t, servertest.Key(t))
	header := http.Header{"Traceparent": {traceparent}, "Tracestate": {"vendor=tracestate-of-the-caller"}}
	if a := est(t, w, estCall{path: "simpleenroll", token: token, csr: csr, header: header}); a.status != http.StatusOK {
		t.Fatalf("the enrollment has the status %d: %s", a.status, a.text)
	}
	if a := est(t, w, estCall{path: "secret-label/cacerts"}); a.status != http.StatusNotFound {
		t.Errorf("an unknown label has the status %d", a.status)
	}
	if a := est(t, w, estCall{path: "secret-label/made-up"}); a.status != http.StatusNotFound {
		t.Errorf("an unknown operation has the status %d", a.status)
	}
	w.StopServer(t) // sends the remaining spans

	requests := c.named("est/Enroll")
	if len(requests) != 1 {
		t.Fatalf("the enrollment has %d spans, want one", len(requests))
	}
	request := requests[0]
	if len(request.GetParentSpanId()) != 0 || hex.EncodeToString(request.GetTraceId()) == callersTrace {
		t.Error("the span is part of the client's trace")
	}
	if links := request.GetLinks(); len(links) != 1 || hex.EncodeToString(links[0].GetTraceId()) != callersTrace || links[0].GetTraceState() != "" {
		t.Errorf("the links are %v, want the client's trace, without its text", request.GetLinks())
	}
	if text := request.String(); !strings.Contains(text, "POST") || !strings.Contains(text, "200") || strings.Contains(text, "127.0.0.1") {
		t.Errorf("the span is %s, want one with method and status, and without addresses", text)
	}
	for _, step := range []string{"intent", "sign", "record"} {
		if !slices.ContainsFunc(c.named(step), func(s *tracev1.Span) bool { return bytes.Equal(s.GetParentSpanId(), request.GetSpanId()) }) {
			t.Errorf("the enrollment has no span %s", step)
		}
	}
	refused := c.named("est/GetESTCACertificates")
	if len(refused) != 1 || !strings.Contains(refused[0].String(), string(pki.RuleLabel)) || !strings.Contains(refused[0].String(), "404") {
		t.Errorf("the refused request's spans are %v, want one with its rule and status", refused)
	}
	for _, secret := range []string{"device/1", "secret-label", "made-up", "tracestate-of-the-caller", token} {
		if bytes.Contains(c.raw, []byte(secret)) {
			t.Errorf("a span contains %q", secret)
		}
	}
	w.Serve(t, o)
}

// A stream of issue requests has one span, and the requests on it have none.
func TestAStreamIsOneSpan(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	o := servertest.Options{Traces: telemetry.Traces{Endpoint: c.endpoint, SampleRatio: 1}}
	w := servertest.New(t, ground, o)
	bob := w.NewOperator(t, "bob")
	w.StopServer(t)
	before := len(c.named("sign"))
	w.Serve(t, o)
	w.Holder(t, bob.Certificate.Raw, bob.Key).Orders(t, issueRequests(t, "device", 5)...)
	w.StopServer(t)
	if calls, steps := len(c.named("brevet.v1.CertificateService/IssueCertificates")), len(c.named("sign"))-before; calls != 1 || steps != 0 {
		t.Errorf("five issue requests have %d spans of calls and %d of signatures, want one and none", calls, steps)
	}
	w.Serve(t, o)
}

func TestCallersDoNotInfluenceSampling(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	o := servertest.Options{Traces: telemetry.Traces{Endpoint: c.endpoint, SampleRatio: 0}}
	w := servertest.New(t, ground, o)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent)
	servertest.Must(w.Operator.ListIdentities(ctx, &brevetv1.ListIdentitiesRequest{}))(t)
	w.StopServer(t)
	if len(c.spans) > 0 {
		t.Errorf("a caller requested sampling and got it: %v", c.spans)
	}
	w.Serve(t, o)
}

func TestUnresponsiveCollectorDelaysNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never responds
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := servertest.Options{Traces: telemetry.Traces{Endpoint: "http://" + l.Addr().String(), SampleRatio: 1}}
	w := servertest.New(t, ground, o)
	w.Enrolled(t, "device", "device/1")
	checkNotReady(t, w, "")
	w.StopServer(t)
	// The export and the shutdown end at the same deadline. The one that ends first logs its error before the server
	// stops.
	if log := w.Log.String(); !strings.Contains(log, "trace collector unavailable") && !strings.Contains(log, "sending the last traces failed") {
		t.Error("the log does not report that traces are lost")
	}
	w.Serve(t, servertest.Options{})
}
