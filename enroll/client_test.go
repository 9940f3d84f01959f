package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// testService serves a testCA over gRPC.
type testService struct {
	brevetv1.UnimplementedEnrollmentServiceServer
	ca       *testCA
	roots    [][]byte // sent instead of the CA's root, unless nil
	revision []byte   // of the trust bundle that GetTrustBundle returns
	fail     error    // returned by every RPC, unless nil
	hang     bool     // whether RPCs hang until they are canceled
}

func (s *testService) Enroll(ctx context.Context, r *brevetv1.EnrollRequest) (*brevetv1.EnrollResponse, error) {
	id, err := pki.RequestIDFromBytes(r.GetRequestId())
	if err != nil {
		return nil, err
	}
	var evidence []Evidence
	for _, e := range r.GetEvidence() {
		evidence = append(evidence, presented{pki.Evidence{Kind: pki.EvidenceToken, Value: e.GetToken().GetSecret()}})
	}
	c, err := s.handle(ctx, func() (Credential, error) {
		return s.ca.Enroll(ctx, EnrollRequest{RequestID: id, Evidence: evidence, CSR: r.GetCsr(), Lifetime: r.GetLifetime().AsDuration()})
	})
	return &brevetv1.EnrollResponse{Credential: c}, err
}

func (s *testService) Renew(ctx context.Context, r *brevetv1.RenewRequest) (*brevetv1.RenewResponse, error) {
	id, err := pki.RequestIDFromBytes(r.GetRequestId())
	if err != nil {
		return nil, err
	}
	p, _ := peer.FromContext(ctx)
	state := p.AuthInfo.(credentials.TLSInfo).State
	if len(state.PeerCertificates) == 0 || state.DidResume || state.Version != tls.VersionTLS13 {
		return nil, status.Error(codes.Unauthenticated, "no client certificate, or a resumed session")
	}
	c, err := s.handle(ctx, func() (Credential, error) {
		return s.ca.renew(ctx, state.PeerCertificates[0], RenewRequest{RequestID: id, CSR: r.GetCsr(), Lifetime: r.GetLifetime().AsDuration()})
	})
	return &brevetv1.RenewResponse{Credential: c}, err
}

func (s *testService) GetTrustBundle(ctx context.Context, _ *brevetv1.GetTrustBundleRequest) (*brevetv1.GetTrustBundleResponse, error) {
	p, _ := peer.FromContext(ctx)
	if len(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates) == 0 {
		return nil, status.Error(codes.Unauthenticated, "no client certificate")
	}
	out := &brevetv1.TrustBundle{Roots: s.roots, Revision: s.revision}
	if s.roots == nil {
		for _, root := range s.ca.bundle().Roots {
			out.Roots = append(out.Roots, root.Raw)
		}
	}
	return &brevetv1.GetTrustBundleResponse{TrustBundle: out}, nil
}

func (s *testService) handle(ctx context.Context, do func() (Credential, error)) (*brevetv1.Credential, error) {
	if s.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.fail != nil {
		return nil, s.fail
	}
	c, err := do()
	if refusal, ok := pki.AsRefusal(err); ok {
		return nil, withDetails(codes.PermissionDenied, &brevetv1.Refusal{Rule: string(refusal.Rule), Detail: refusal.Detail, Hint: refusal.Hint})
	}
	if err != nil {
		return nil, err
	}
	out := &brevetv1.Credential{
		Certificate: c.Certificate.Raw, Chain: &brevetv1.CertificateChain{Certificates: [][]byte{c.Chain[0].Raw}},
		TrustBundle:   &brevetv1.TrustBundle{Roots: [][]byte{c.Roots[0].Raw}, Revision: []byte{1}},
		RenewalWindow: &brevetv1.RenewalWindow{StartTime: timestamppb.New(c.Renewal.Start), EndTime: timestamppb.New(c.Renewal.End)},
	}
	if s.roots != nil {
		out.TrustBundle.Roots = s.roots
	}
	return out, nil
}

func withDetails(code codes.Code, details ...protoadapt.MessageV1) error {
	s, err := status.New(code, "refused").WithDetails(details...)
	if err != nil {
		return err
	}
	return s.Err()
}

// serve runs the service on a loopback port and returns its address.
func serve(t *testing.T, s brevetv1.EnrollmentServiceServer, config *tls.Config) string {
	t.Helper()
	config.ClientAuth = tls.RequestClientCert
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	brevetv1.RegisterEnrollmentServiceServer(server, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func serverTemplate() *x509.Certificate {
	return leafTemplate("spiffe://fleet.example/brevet/server", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func (ca *testCA) config(t *testing.T, change func(*x509.Certificate)) *tls.Config {
	template := serverTemplate()
	if change != nil {
		change(template)
	}
	return &tls.Config{Certificates: []tls.Certificate{ca.serverCertificate(t, template)}, MinVersion: tls.VersionTLS13}
}

func newTestClient(t *testing.T, server string) *Client {
	t.Helper()
	c, err := NewClient(server)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func enrollRequest(t *testing.T, token Token) EnrollRequest {
	t.Helper()
	id, err := newRequestID()
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return EnrollRequest{RequestID: id, Bootstrap: token.Bootstrap, Evidence: []Evidence{token}, CSR: csr, Key: key}
}

// An agent enrolls and renews over real connections to the address in its token. After a restart it renews without the
// token.
func TestAgentEnrollsAndRenewsOverGRPC(t *testing.T) {
	ca := newTestCA(t)
	token := ca.token(t, "device/1")
	token.Server = serve(t, &testService{ca: ca}, ca.config(t, nil))
	dir := openTestDirectory(t, t.TempDir(), new(testLog).logger())
	config := Config{Directory: dir, Authority: newTestClient(t, ""), Lifetime: 30 * time.Minute, Log: dir.log}
	agent, err := NewAgent(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Enroll(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if agent, err = NewAgent(config); err != nil {
			t.Fatal(err)
		}
		had := agent.Pair()
		if err := step(agent); err != nil || agent.Pair().Serial() == had.Serial() || agent.Pair().ID() != had.ID() {
			t.Fatalf("renewal: %v", err)
		}
	}
	if left := time.Until(agent.Pair().Certificate.NotAfter); left > 30*time.Minute {
		t.Errorf("requested 30m, got %s", left)
	}
	ca.revoke(agent.Pair().Certificate)
	err = step(agent)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleRevoked || refusal.Hint == "" || !final(err) {
		t.Errorf("renewal of a revoked certificate: %v", err)
	}
}

// An agent is configured with the new address of a server. It renews there, and stores the address as the origin.
func TestRenewalAtMovedServerUpdatesOrigin(t *testing.T) {
	ca := newTestCA(t)
	token := ca.token(t, "device/1")
	token.Server = serve(t, &testService{ca: ca}, ca.config(t, nil))
	moved := serve(t, &testService{ca: ca}, ca.config(t, nil))
	dir := openTestDirectory(t, t.TempDir(), new(testLog).logger())
	for _, c := range []struct{ given, remembered string }{{"", token.Server}, {moved, moved}, {"", moved}} {
		agent, err := NewAgent(Config{Directory: dir, Authority: newTestClient(t, c.given), Log: dir.log})
		if err != nil {
			t.Fatal(err)
		}
		if agent.Pair() == nil {
			err = agent.Enroll(t.Context(), token)
		} else {
			err = step(agent)
		}
		if got := agent.Pair().Origin.Server; err != nil || got != c.remembered {
			t.Errorf("configured server %q: origin %q, want %q: %v", c.given, got, c.remembered, err)
		}
	}
	agent, err := NewAgent(Config{Directory: dir, Authority: newTestClient(t, ""), Log: dir.log})
	if err != nil || agent.Pair().Origin.Server != moved {
		t.Errorf("after a restart: %v", err)
	}
}

func TestClientRejectsUntrustedServers(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	token, pair := ca.token(t, "device/1"), ca.pairFor(t, "device/1")
	old := ca.config(t, nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	rootless := ca.config(t, nil)
	rootless.Certificates[0].Certificate = rootless.Certificates[0].Certificate[:2]
	crowd := ca.config(t, nil)
	for range maxPeerCertificates {
		crowd.Certificates[0].Certificate = append(crowd.Certificates[0].Certificate, ca.root.Raw)
	}
	pinned := ca.config(t, nil) // sends the right root, but its chain leads to another root
	pinned.Certificates[0] = other.serverCertificate(t, serverTemplate())
	pinned.Certificates[0].Certificate = append(pinned.Certificates[0].Certificate, ca.root.Raw)
	uri := func(text string) func(*x509.Certificate) {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return func(c *x509.Certificate) { c.URIs = []*url.URL{u} }
	}
	cases := map[string]struct {
		config    *tls.Config
		enroll    string // expected text of the error; empty for success
		renew     string
		temporary bool
	}{
		"the server":           {config: ca.config(t, nil)},
		"no root shown":        {config: rootless, enroll: "does not show the root"},
		"another CA":           {config: other.config(t, nil), enroll: "does not show the root", renew: "trusted root"},
		"root without chain":   {config: pinned, enroll: "trusted root", renew: "trusted root"},
		"a device":             {config: ca.config(t, uri("spiffe://fleet.example/device/2")), enroll: "must name", renew: "must name"},
		"another trust domain": {config: ca.config(t, uri("spiffe://other.example/brevet/server")), enroll: "must name", renew: "must name"},
		"look-alike":           {config: ca.config(t, uri("spiffe://fleet.example/brevet/server/")), enroll: "must name", renew: "must name"},
		"case":                 {config: ca.config(t, uri("spiffe://fleet.example/Brevet/server")), enroll: "must name", renew: "must name"},
		"two identities":       {config: ca.config(t, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), enroll: "must name", renew: "must name"},
		"no identity":          {config: ca.config(t, func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"localhost"} }), enroll: "must name", renew: "must name"},
		"no serverAuth":        {config: ca.config(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), enroll: "trusted root", renew: "trusted root"},
		"expired":              {config: ca.config(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), enroll: "check the clock", renew: "check the clock"},
		"not yet valid":        {config: ca.config(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), enroll: "check the clock", renew: "check the clock"},
		"a CA":                 {config: ca.config(t, func(c *x509.Certificate) { c.IsCA = true }), enroll: "must name", renew: "must name"},
		"too many":             {config: crowd, enroll: "11 certificates", renew: "11 certificates"},
		"TLS 1.2":              {config: old, enroll: "protocol version", renew: "protocol version", temporary: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := newTestClient(t, serve(t, &testService{ca: ca.clone()}, c.config))
			r := enrollRequest(t, token)
			_, enrolled := client.Enroll(t.Context(), r)
			_, renewed := client.Renew(t.Context(), RenewRequest{RequestID: r.RequestID, Current: pair, CSR: r.CSR})
			for what, got := range map[string]struct {
				err  error
				want string
			}{"enroll": {enrolled, c.enroll}, "renew": {renewed, c.renew}} {
				if what == "renew" && c.renew == "" {
					continue // not checked: the request ID is that of the enrollment
				}
				if (got.err == nil) != (got.want == "") || got.err != nil && !strings.Contains(got.err.Error(), got.want) {
					t.Errorf("%s: %v, want %q", what, got.err, got.want)
				}
				if got.err != nil && (final(got.err) || pki.IsTemporary(got.err) != c.temporary) {
					t.Errorf("%s: final %v, temporary %v: %v", what, final(got.err), pki.IsTemporary(got.err), got.err)
				}
			}
		})
	}
}

func TestClientParsesRefusals(t *testing.T) {
	ca := newTestCA(t)
	refusal := &brevetv1.Refusal{Rule: "token.bound", Detail: "the token is bound", Hint: "make a new one"}
	busy := &brevetv1.Refusal{Rule: "server.overloaded", Detail: "too much to do", Hint: "wait"}
	early := &brevetv1.Refusal{Rule: "renewal.too_early", Detail: "half of its life is to come", Hint: "wait"}
	retry := &errdetails.RetryInfo{RetryDelay: durationpb.New(90 * time.Second)}
	long := &errdetails.RetryInfo{RetryDelay: durationpb.New(15 * 24 * time.Hour)}
	for name, c := range map[string]struct {
		fail      error
		rule      pki.Rule
		temporary bool
		final     bool
		after     time.Duration
	}{
		"refusal":           {withDetails(codes.PermissionDenied, refusal), pki.RuleTokenBound, false, true, 0},
		"no details":        {status.Error(codes.Internal, "oops"), "", false, false, 0},
		"unimplemented":     {status.Error(codes.Unimplemented, "no"), "", false, false, 0},
		"unavailable":       {withDetails(codes.Unavailable, retry), "", true, false, 90 * time.Second},
		"busy":              {withDetails(codes.ResourceExhausted, busy, retry), pki.RuleOverloaded, true, false, 90 * time.Second},
		"busy for long":     {withDetails(codes.ResourceExhausted, busy, long), pki.RuleOverloaded, true, false, time.Hour},
		"too early":         {withDetails(codes.ResourceExhausted, long, early), pki.RuleRenewalTooEarly, true, false, 15 * 24 * time.Hour},
		"always busy":       {withDetails(codes.ResourceExhausted, busy), pki.RuleOverloaded, false, true, 0},
		"message too large": {status.Error(codes.ResourceExhausted, "grpc: received message larger than max"), "", false, false, 0},
		"deadline":          {status.Error(codes.DeadlineExceeded, "slow"), "", true, false, 0},
		"negative delay":    {withDetails(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(-time.Hour)}), "", true, false, 0},
		"not a status":      {errors.New("plain"), "", false, false, 0},
		"refused elsewhere": {withDetails(codes.Aborted, &errdetails.ErrorInfo{Reason: "x"}, refusal), pki.RuleTokenBound, false, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			client := newTestClient(t, serve(t, &testService{ca: ca, fail: c.fail}, ca.config(t, nil)))
			_, err := client.Enroll(t.Context(), enrollRequest(t, ca.token(t, "device/1")))
			got, ok := pki.AsRefusal(err)
			if err == nil || ok != (c.rule != "") || ok && (got.Rule != c.rule || got.Detail == "" || got.Hint == "") {
				t.Fatalf("error %v, refusal %+v", err, got)
			}
			if pki.IsTemporary(err) != c.temporary || final(err) != c.final || pki.RetryAfter(err) != c.after {
				t.Errorf("temporary %v, final %v, after %s: %v",
					pki.IsTemporary(err), final(err), pki.RetryAfter(err), err)
			}
		})
	}
}

func TestClientLimitsResponseSize(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	for name, c := range map[string]struct {
		service *testService
		why     string
	}{
		"too large":         {&testService{ca: ca, roots: [][]byte{make([]byte, maxMessage)}}, "larger than max"},
		"a torn root":       {&testService{ca: ca, roots: [][]byte{ca.root.Raw[:99]}}, "does not parse"},
		"no root":           {&testService{ca: ca, roots: [][]byte{}}, "no root"},
		"another CA's root": {&testService{ca: ca, roots: [][]byte{other.root.Raw}}, "not among the roots"},
	} {
		t.Run(name, func(t *testing.T) {
			client := newTestClient(t, serve(t, c.service, ca.config(t, nil)))
			_, err := client.Enroll(t.Context(), enrollRequest(t, ca.token(t, "device/1")))
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v, want %q", err, c.why)
			}
		})
	}
}

func TestClientTimesOut(t *testing.T) {
	ca := newTestCA(t)
	client := newTestClient(t, serve(t, &testService{ca: ca, hang: true}, ca.config(t, nil)))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.Enroll(ctx, enrollRequest(t, ca.token(t, "device/1"))); !pki.IsTemporary(err) || final(err) {
		t.Errorf("an RPC without response: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := newTestClient(t, address).Enroll(t.Context(), enrollRequest(t, ca.token(t, "device/1"))); !pki.IsTemporary(err) {
		t.Errorf("no listener: %v", err)
	}
	pair := ca.pairFor(t, "device/1")
	if _, err := newTestClient(t, "").Renew(t.Context(), RenewRequest{Current: pair}); err == nil || !strings.Contains(err.Error(), "set server") {
		t.Errorf("empty address: %v", err)
	}
	if _, err := NewClient("ca.example"); err == nil {
		t.Error("an address without port was accepted")
	}
}

// ClientTLS fails handshakes while there is no credential.
func TestClientTLSWithoutCredential(t *testing.T) {
	config := ClientTLS(func() *Pair { return nil })
	if _, err := config.GetClientCertificate(nil); !errors.Is(err, ErrNoCredential) {
		t.Errorf("GetClientCertificate: %v", err)
	}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{newTestCA(t).root}}
	if err := config.VerifyConnection(state); !errors.Is(err, ErrNoCredential) {
		t.Errorf("VerifyConnection: %v", err)
	}
}

// If a peer does not support TLS 1.3, the error says that it is not a Brevet server. An example is the login page of a
// network.
func TestResponseOfCaptivePortalIsExplained(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail as expected
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	old.StartTLS()
	defer old.Close()
	ca := newTestCA(t)
	for _, portal := range []*httptest.Server{plain, old} {
		token := ca.token(t, "device/1")
		token.Server = portal.Listener.Addr().String()
		_, err := newTestClient(t, "").Enroll(t.Context(), enrollRequest(t, token))
		if err == nil || !strings.Contains(err.Error(), "something other than a Brevet server answers at "+token.Server) || !pki.IsTemporary(err) {
			t.Errorf("Enroll at a web server: %v", err)
		}
	}
}
