package server_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// issueRequests returns n issue requests, each for a new device. path is the start of the devices' names.
func issueRequests(t *testing.T, path string, n int) []*brevetv1.IssueCertificatesRequest {
	t.Helper()
	reqs := make([]*brevetv1.IssueCertificatesRequest, n)
	for i := range reqs {
		reqs[i] = servertest.Order(t, fmt.Sprintf("%s/%d", path, i), servertest.Key(t))
	}
	return reqs
}

// onRecord counts the certificates on record. It returns the numbers of delivered certificates, keyed by request ID,
// and the number of certificates that were never delivered.
func onRecord(t *testing.T, w *servertest.World) (delivered map[string]int, undelivered int) {
	t.Helper()
	delivered = map[string]int{}
	for _, c := range w.Inventory(t) {
		if c.Delivered {
			delivered[string(c.RequestID.Bytes())]++
		} else {
			undelivered++
		}
	}
	return delivered, undelivered
}

// checkOneCertificateEach checks that every request got a certificate, and that the request has no other certificate on
// record.
func checkOneCertificateEach(t *testing.T, w *servertest.World, reqs []*brevetv1.IssueCertificatesRequest, answers servertest.Answers) {
	t.Helper()
	delivered, undelivered := onRecord(t, w)
	for _, req := range reqs {
		der, err := answers.Of(req)
		if n := delivered[string(req.GetRequestId())]; err != nil || len(der) == 0 || n != 1 {
			t.Errorf("%s got %d bytes and %v, and has %d certificates on record", req.GetIdentity(), len(der), err, n)
		}
	}
	if undelivered > 0 {
		t.Errorf("%d certificates on record were never delivered", undelivered)
	}
}

// variation is a change to a valid issue request, after which the request may be valid or not.
type variation struct {
	name string
	edit func(*brevetv1.IssueCertificatesRequest)
}

// variations returns the variations of issue requests that the tests send.
func variations(t *testing.T, w *servertest.World) []variation {
	t.Helper()
	type request = *brevetv1.IssueCertificatesRequest
	csr := func(edit func(*x509.CertificateRequest)) func(request) {
		return func(r request) { r.Csr = servertest.CSR(t, servertest.Key(t), edit) }
	}
	keyed := func(key crypto.Signer) func(request) {
		return func(r request) { r.Csr = servertest.CSR(t, key) }
	}
	other := w.Enrolled(t, "device", "device/other")
	compromised := w.Enrolled(t, "device", "device/compromised")
	w.Revoke(t, compromised.Certificate, "keyCompromise")
	p224 := servertest.Must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)
	return []variation{
		{"nothing", func(request) {}},
		{"names", func(r request) {
			r.Registration.Names, r.Registration.Profile = servertest.Names([]string{"a.fleet.example"}, []string{"192.0.2.7"}), "server"
		}},
		{"labels", func(r request) { r.Registration.Labels = map[string]string{"line": "3"} }},
		{"lifetime", func(r request) { r.Lifetime = durationpb.New(time.Hour) }},
		{"workload", func(r request) { r.Registration.Kind = brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD }},
		{"no request ID", func(r request) { r.RequestId = nil }},
		{"a short request ID", func(r request) { r.RequestId = r.RequestId[:15] }},
		{"no CSR", func(r request) { r.Csr = nil }},
		{"a huge CSR", func(r request) { r.Csr = make([]byte, 17<<10) }},
		{"half a CSR", func(r request) { r.Csr = r.Csr[:len(r.Csr)/2] }},
		{"more than a CSR", func(r request) { r.Csr = append(r.Csr, 0) }},
		{"no proof of possession", func(r request) { r.Csr[len(r.Csr)-1] ^= 1 }},
		{"a foreign name", csr(func(c *x509.CertificateRequest) { c.DNSNames = []string{"b.fleet.example"} })},
		{"a foreign subject", csr(func(c *x509.CertificateRequest) { c.Subject.CommonName = "root" })},
		{"a curve that is too small", keyed(p224)},
		{"the key of a CA", keyed(ground.Issuing)},
		{"the key of another", keyed(other.Key)},
		{"a compromised key", keyed(compromised.Key)},
		{"too long a lifetime", func(r request) { r.Lifetime = durationpb.New(20 * 365 * 24 * time.Hour) }},
		{"a negative lifetime", func(r request) { r.Lifetime = durationpb.New(-1) }},
		{"no kind", func(r request) { r.Registration.Kind = 0 }},
		{"no such profile", func(r request) { r.Registration.Profile = "imperial" }},
		{"a profile for others", func(r request) { r.Registration.Profile = "ocsp" }},
		{"a label without a key", func(r request) { r.Registration.Labels = map[string]string{"": "x"} }},
		{"no host name", func(r request) { r.Registration.Names = servertest.Names([]string{"-"}, nil) }},
		{"no address", func(r request) { r.Registration.Names = servertest.Names(nil, []string{"fe80::1%eth0"}) }},
		{"no identity", func(r request) { r.Identity = "" }},
		{"no path", func(r request) { r.Identity = "device//1" }},
		{"another trust domain", func(r request) { r.Identity = "spiffe://elsewhere.example/device/1" }},
		{"a reserved path", func(r request) { r.Identity = "brevet/server" }},
		{"not registered", func(r request) { r.Registration = nil }},
		{"registered otherwise", func(r request) { r.Identity = other.ID; r.Registration.Labels = map[string]string{"line": "4"} }},
	}
}

// unary does the same as an issue request, with the RPCs CreateIdentity, CreateToken and Enroll.
func unary(t *testing.T, w *servertest.World, nobody *servertest.Caller, r *brevetv1.IssueCertificatesRequest) ([]byte, error) {
	t.Helper()
	if g := r.GetRegistration(); g != nil {
		_, err := w.Operator.CreateIdentity(t.Context(), &brevetv1.CreateIdentityRequest{Id: r.GetIdentity(), Spec: g})
		if err != nil {
			return nil, err
		}
	}
	token, err := w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: r.GetIdentity(), Replace: true})
	if err != nil {
		return nil, err
	}
	resp, err := nobody.Enroll(t.Context(), &brevetv1.EnrollRequest{
		RequestId: r.GetRequestId(), Evidence: servertest.TokenEvidence(w.Secret(t, token.GetToken())), Csr: r.GetCsr(), Lifetime: r.GetLifetime(),
	})
	return resp.GetCredential().GetCertificate(), err
}

// A stream of valid and invalid requests in random order has the same results as single RPCs.
func TestBulkIssuanceMatchesSingleRPCs(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	list := variations(t, w)
	varied := func(path string) []*brevetv1.IssueCertificatesRequest {
		reqs := issueRequests(t, path, len(list))
		for i, f := range list {
			f.edit(reqs[i])
		}
		return reqs
	}
	called, sent, good := varied("called"), varied("sent"), issueRequests(t, "good", 20)
	stream := slices.Concat(sent, good)
	mathrand.Shuffle(len(stream), func(i, j int) { stream[i], stream[j] = stream[j], stream[i] })
	answers := w.Operator.Orders(t, stream...)
	nobody := w.Caller(t, nil)
	for i, f := range list {
		want, wantErr := unary(t, w, nobody, called[i])
		got, err := answers.Of(sent[i])
		if status.Code(err) != status.Code(wantErr) || servertest.RuleOf(err) != servertest.RuleOf(wantErr) || (got == nil) != (want == nil) {
			t.Errorf("%s: the stream returns %v, and single RPCs %v", f.name, err, wantErr)
		} else if got != nil && properties(t, got) != properties(t, want) {
			t.Errorf("%s: the stream issues %s, and single RPCs %s", f.name, properties(t, got), properties(t, want))
		}
		checkNoInternals(t, err)
	}
	for _, req := range good {
		_, err := answers.Of(req)
		servertest.Refused(t, err, codes.OK, "")
	}
}

// properties returns a text with those properties of a certificate that do not differ between two identities with the
// same attributes.
func properties(t *testing.T, der []byte) string {
	t.Helper()
	c := servertest.Must(x509.ParseCertificate(der))(t)
	return fmt.Sprint(c.NotAfter.Sub(c.NotBefore), c.DNSNames, c.IPAddresses, c.KeyUsage, c.ExtKeyUsage, c.Issuer, len(c.Extensions))
}

// Each response with a certificate names the issuing CA, whose chain GetCertificateChain returns.
func TestResponsesNameTheIssuingCA(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for range 2 {
		stream := servertest.Must(w.Operator.IssueCertificates(t.Context()))(t)
		reqs := issueRequests(t, "device", 5)
		reqs[0].Csr = nil
		for i, req := range reqs {
			if err := stream.Send(req); err != nil {
				t.Fatal(err)
			}
			a := servertest.Must(stream.Recv())(t)
			if (i == 0) != (a.GetError() != nil) {
				t.Errorf("response %d is %v", i, a)
			}
			if i == 0 {
				continue
			}
			chain := servertest.Must(w.Operator.GetCertificateChain(t.Context(), &brevetv1.GetCertificateChainRequest{IssuerId: a.GetIssuerId()}))(t).GetChain()
			if string(chain.GetCertificates()[0]) != string(w.Issuing.Raw) || string(chain.GetIssuerId()) != string(a.GetIssuerId()) {
				t.Errorf("response %d names another issuing CA", i)
			}
		}
	}
}

// If a client loses its connection and sends its requests again, it gets the certificates that were issued before.
func TestBulkIssuanceAfterAReconnect(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	reqs := issueRequests(t, "device", 60)
	first := w.NewOperator(t, "bob")
	stream := servertest.Must(first.IssueCertificates(t.Context()))(t)
	for _, req := range reqs {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	before := servertest.Answers{}
	for range 20 {
		before.Take(t, servertest.Must(stream.Recv())(t))
	}
	if err := first.Conn.Close(); err != nil {
		t.Fatal(err)
	}
	after := w.Operator.Orders(t, reqs...)
	checkOneCertificateEach(t, w, reqs, after)
	for id, a := range before {
		if string(a.GetCertificate()) != string(after[id].GetCertificate()) {
			t.Errorf("request %x has two certificates", id)
		}
	}
}

// A client cancels its stream at different times, and then sends its requests again. Each request gets one certificate.
func TestBulkIssuanceIsCancelled(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	// For each request, the server reads the issuance state, and registers the identity.
	for _, reads := range []int64{1, 30, 80} {
		reqs := issueRequests(t, fmt.Sprintf("cancelled-after-%d", reads), 40)
		ctx, cancel := context.WithCancel(t.Context())
		stream := servertest.Must(w.Operator.IssueCertificates(ctx))(t)
		arrived, release := store.HoldRecords()
		for _, req := range reqs {
			if err := stream.Send(req); err != nil {
				t.Fatal(err)
			}
		}
		<-arrived
		store.AwaitDecided(reads)
		cancel()
		for err := error(nil); status.Code(err) != codes.Canceled; {
			if _, err = stream.Recv(); err != nil && status.Code(err) != codes.Canceled {
				t.Fatalf("the stream ended with %v", err)
			}
		}
		release()
		checkOneCertificateEach(t, w, reqs, w.Operator.Orders(t, reqs...))
	}
}

// If an issue request, or the first of a stream, fails because of the server, the error has a retry delay, and the client
// can send the request again.
func TestIssueRequestsFailTemporarily(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	reqs := issueRequests(t, "device", 5)
	stream := servertest.Must(w.Operator.IssueCertificates(t.Context()))(t)
	if err := stream.Send(servertest.Order(t, "device/first", servertest.Key(t))); err != nil {
		t.Fatal(err)
	}
	servertest.Must(stream.Recv())(t)
	store.FailReads(true)
	answers := servertest.Must(servertest.Deliver(t, stream, reqs...))(t)
	for _, req := range reqs {
		_, err := answers.Of(req)
		checkUnavailable(t, err)
	}
	_, err := servertest.Deliver(t, servertest.Must(w.Operator.IssueCertificates(t.Context()))(t), reqs...)
	checkUnavailable(t, err)
	store.FailReads(false)
	checkOneCertificateEach(t, w, reqs, w.Operator.Orders(t, reqs...))
}

// A panic in one issue request ends neither its stream nor the server.
func TestIssueRequestPanics(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	reqs := issueRequests(t, "device", 2)
	stream := servertest.Must(w.Operator.IssueCertificates(t.Context()))(t)
	for i, want := range []codes.Code{codes.Internal, codes.OK, codes.OK} {
		store.Panic(i == 0)
		if err := stream.Send(reqs[min(i, 1)]); err != nil {
			t.Fatal(err)
		}
		err := servertest.FailureOf(servertest.Must(stream.Recv())(t))
		servertest.Refused(t, err, want, "")
		checkNoInternals(t, err)
	}
	checkOneCertificateEach(t, w, reqs, w.Operator.Orders(t, reqs...))
}

// The metrics count issue requests like RPCs, and the log entries about refused issue requests are limited like those
// about refused RPCs.
func TestIssueRequestsCountLikeRPCs(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	reqs := issueRequests(t, "device", 15)
	for _, req := range reqs[3:] {
		req.Registration.Kind = 99
	}
	reqs[3].RequestId = make([]byte, 1000)
	before := len(w.Entries(t, 0))
	answers := w.Operator.Orders(t, reqs...)
	if _, ok := answers[string(make([]byte, 64))]; !ok {
		t.Error("no response contains the start of a request ID that is too long")
	}
	if n := refusalsSince(t, w, before, w.Operator.ID, pki.RuleRequest); n != 10 {
		t.Errorf("the log has %d entries about bad issue requests, want ten and a count of the rest", n)
	}
	series := func(code codes.Code) string {
		return fmt.Sprintf(`brevet_rpc_duration_seconds_count{code=%q,rpc=%q}`, code, brevetv1.CertificateService_IssueCertificates_FullMethodName)
	}
	want := map[string]float64{series(codes.OK): 4, series(codes.InvalidArgument): 12, `brevet_refusals_total{rule="request.malformed"}`: 12}
	counted := func(name string) float64 {
		_, text := getOperations(t, w, "/metrics")
		return metric(t, text, name)
	}
	// The server counts a stream after the client has got its status.
	for deadline := time.Now().Add(30 * time.Second); counted(series(codes.OK)) < 4 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	for name, n := range want {
		if got := counted(name); got != n {
			t.Errorf("%s is %v, want %v", name, got, n)
		}
	}
}

// If a device is suspended while its issue request is processed, the request is refused. If the operator is suspended,
// the server refuses the next message on the operator's open stream.
func TestSuspendedDuringAStream(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	bob := w.NewOperator(t, "bob")
	device := w.Enrolled(t, "device", "device/suspended")
	held := servertest.Order(t, device.ID, servertest.Key(t))
	reqs := append(issueRequests(t, "device", 10), held)
	stream := servertest.Must(bob.IssueCertificates(t.Context()))(t)
	arrived, release := store.HoldRecords()
	for _, req := range reqs {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	<-arrived
	store.AwaitDecided(21) // one for held, and two for each of the ten requests that register their device
	w.Suspend(t, device.ID)
	release()
	answers := servertest.Answers{}
	for range reqs {
		answers.Take(t, servertest.Must(stream.Recv())(t))
	}
	w.Suspend(t, bob.ID)
	if err := stream.Send(servertest.Order(t, "device/late", servertest.Key(t))); err != nil {
		t.Fatal(err)
	}
	late, err := servertest.Deliver(t, stream)
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	for _, req := range reqs[:10] {
		_, err := answers.Of(req)
		servertest.Refused(t, err, codes.OK, "")
	}
	if _, err := answers.Of(held); servertest.RuleOf(err) != pki.RuleIdentityStale && servertest.RuleOf(err) != pki.RuleIdentityState {
		t.Errorf("the suspended device's request returned %v", err)
	}
	if len(late) != 0 {
		t.Errorf("%d responses to late requests", len(late))
	}
}
