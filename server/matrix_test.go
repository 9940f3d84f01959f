package server_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// result is the outcome of a call.
type result struct {
	code codes.Code
	rule pki.Rule
}

var (
	fine       = result{codes.OK, ""}
	malformed  = result{codes.InvalidArgument, pki.RuleRequest}
	unread     = result{codes.InvalidArgument, ""} // from the reflection service, which knows no rules
	untrusted  = result{codes.Unauthenticated, pki.RuleCertificate}
	unrecorded = result{codes.Unauthenticated, pki.RuleCertificateUnknown}
	unknown    = result{codes.Unauthenticated, pki.RuleUnauthenticated}
	denied     = result{codes.PermissionDenied, pki.RuleAccess}
	revoked    = result{codes.PermissionDenied, pki.RuleRevoked}
	expired    = result{codes.Unauthenticated, pki.RuleExpired}
)

// rpcs maps each RPC to its allowed callers and its result. An RPC with neither anybody nor identities needs an
// operator's certificate.
var rpcs = map[string]struct {
	anybody    bool   // the RPC needs no certificate
	identities bool   // the RPC needs a valid certificate of any identity
	renewing   bool   // the RPC also accepts a superseded certificate
	admitted   result // the result of an empty request from an allowed caller
}{
	"brevet.v1.EnrollmentService.Enroll":                            {anybody: true, admitted: malformed},
	"brevet.v1.EnrollmentService.Renew":                             {identities: true, renewing: true, admitted: malformed},
	"brevet.v1.EnrollmentService.CreateChallenge":                   {anybody: true, admitted: malformed},
	"brevet.v1.EnrollmentService.GetTrustBundle":                    {identities: true, admitted: fine},
	"brevet.v1.EnrollmentService.GetRenewalInfo":                    {identities: true, admitted: fine},
	"brevet.v1.CertificateService.GetCertificateChain":              {identities: true, admitted: malformed},
	"brevet.v1.CertificateService.IssueCertificates":                {admitted: fine}, // the failure is in the response message
	"brevet.v1.IdentityService.CreateIdentity":                      {admitted: malformed},
	"brevet.v1.IdentityService.GetIdentity":                         {admitted: malformed},
	"brevet.v1.IdentityService.ListIdentities":                      {admitted: fine},
	"brevet.v1.IdentityService.UpdateIdentity":                      {admitted: malformed},
	"brevet.v1.IdentityService.SuspendIdentity":                     {admitted: malformed},
	"brevet.v1.IdentityService.ResumeIdentity":                      {admitted: malformed},
	"brevet.v1.IdentityService.RetireIdentity":                      {admitted: malformed},
	"brevet.v1.TokenService.CreateToken":                            {admitted: malformed},
	"brevet.v1.TokenService.ListTokens":                             {admitted: fine},
	"brevet.v1.TokenService.RevokeToken":                            {admitted: malformed},
	"brevet.v1.ACMEService.CreateExternalKey":                       {admitted: malformed},
	"brevet.v1.ACMEService.ListExternalKeys":                        {admitted: fine},
	"brevet.v1.ACMEService.RevokeExternalKey":                       {admitted: malformed},
	"brevet.v1.ACMEService.ListAccounts":                            {admitted: fine},
	"brevet.v1.ACMEService.RevokeAccount":                           {admitted: malformed},
	"brevet.v1.CertificateService.GetCertificate":                   {admitted: malformed},
	"brevet.v1.CertificateService.ListCertificates":                 {admitted: fine},
	"brevet.v1.RevocationService.RevokeCertificate":                 {admitted: malformed},
	"brevet.v1.RevocationService.HoldCertificate":                   {admitted: malformed},
	"brevet.v1.RevocationService.UnholdCertificate":                 {admitted: malformed},
	"brevet.v1.RevocationService.CreateBulkRevocation":              {admitted: malformed},
	"brevet.v1.RevocationService.GetBulkRevocation":                 {admitted: malformed},
	"brevet.v1.RevocationService.ListBulkRevocations":               {admitted: fine},
	"brevet.v1.RevocationService.RevokeCompromisedKey":              {anybody: true, admitted: malformed},
	"brevet.v1.RotationService.StartRotation":                       {admitted: malformed},
	"brevet.v1.RotationService.GetRotation":                         {admitted: malformed},
	"brevet.v1.RotationService.ListRotations":                       {admitted: fine},
	"brevet.v1.RotationService.StopRotation":                        {admitted: malformed},
	"brevet.v1.CRLService.ListCRLs":                                 {admitted: fine},
	"brevet.v1.PolicyService.ApplyPolicy":                           {admitted: result{codes.InvalidArgument, pki.RulePolicyInvalid}},
	"brevet.v1.PolicyService.GetPolicy":                             {admitted: fine},
	"brevet.v1.PolicyService.ListPolicies":                          {admitted: fine},
	"brevet.v1.PolicyService.ExplainPolicy":                         {admitted: malformed},
	"brevet.v1.CRLService.ImportCRL":                                {admitted: result{codes.InvalidArgument, pki.RuleCRL}},
	"brevet.v1.LogService.ListEntries":                              {admitted: fine},
	"brevet.v1.LogService.GetHead":                                  {admitted: fine},
	"brevet.v1.StoreService.GetStats":                               {admitted: fine},
	"grpc.health.v1.Health.Check":                                   {anybody: true, admitted: fine},
	"grpc.health.v1.Health.List":                                    {anybody: true, admitted: fine},
	"grpc.health.v1.Health.Watch":                                   {anybody: true, admitted: fine},
	"grpc.reflection.v1.ServerReflection.ServerReflectionInfo":      {admitted: unread},
	"grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": {admitted: unread},
}

// caller is a kind of caller.
type caller struct {
	name        string
	certificate *tls.Certificate
	asIdentity  result // of RPCs that need a valid certificate of any identity
	asOperate   result // of RPCs that need an operator's certificate
	// logged is the SPIFFE ID in log entries about the caller's refusals. It is empty if the caller is unknown: the
	// certificate is not a client certificate of this CA.
	logged string
}

// admitted in a caller stands for the RPC's own result in rpcs.
var admitted = result{codes.Unknown, "admitted"}

func TestEveryRPCForEveryCaller(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: func(name string, c *ca.ProfileConfig) {
		c.RenewalRevokes = name == "device" || name == "operator"
	}})
	methods := listServed(t, w)
	for name := range rpcs {
		if methods[name] == nil {
			t.Errorf("%s is not served", name)
		}
	}
	all := callers(t, w)
	before, refused := len(w.Entries(t, 0)), map[string]map[pki.Rule]int{}
	for _, c := range all {
		conn := w.Caller(t, c.certificate).Conn
		if refused[c.logged] == nil {
			refused[c.logged] = map[pki.Rule]int{}
		}
		for name, m := range methods {
			r, ok := rpcs[name]
			if !ok {
				t.Fatalf("%s is served, and not in this test's table", name)
			}
			want := c.asOperate
			switch {
			case r.anybody:
				want = admitted
			case r.identities && !r.renewing && c.asOperate == revoked:
				want = revoked
			case r.identities:
				want = c.asIdentity
			}
			if want == admitted {
				want = r.admitted
			}
			if !r.anybody {
				refused[c.logged][want.rule]++
			}
			t.Run(c.name+"/"+name, func(t *testing.T) { servertest.Refused(t, invoke(t, conn, m), want.code, want.rule) })
		}
	}
	for rule := range refused[""] { // the refusals of unknown callers
		if !strings.Contains(w.Log.String(), fmt.Sprintf(`"msg":"refused","identity":"","by":"unknown","rule":%q`, rule)) {
			t.Errorf("standard error has no refusal by %s", rule)
		}
	}
	delete(refused, "")
	for id, rules := range refused {
		delete(rules, "")
		for rule, n := range rules {
			if got := refusalsSince(t, w, before, id, rule); got < min(n, 10) {
				t.Errorf("%s was refused %d times by %s, and the log has %d entries", id, n, rule, got)
			}
		}
	}
	for _, e := range w.Entries(t, before) {
		if rule := pki.Rule(e.Facts()["rule"]); e.Action == translog.RequestRefused && refused[e.Identity.String()][rule] == 0 {
			t.Errorf("the log has a refusal of %q by %s that no caller got", e.Identity, rule)
		}
	}
}

// listServed returns the methods that the server reports by reflection.
func listServed(t *testing.T, w *servertest.World) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	stream := servertest.Must(reflectionv1.NewServerReflectionClient(w.Operator.Conn).ServerReflectionInfo(t.Context()))(t)
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	methods := map[string]protoreflect.MethodDescriptor{}
	for _, s := range servertest.Must(stream.Recv())(t).GetListServicesResponse().GetService() {
		d := servertest.Must(protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(s.GetName())))(t)
		list := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range list.Len() {
			methods[string(list.Get(i).FullName())] = list.Get(i)
		}
	}
	return methods
}

// invoke calls an RPC with an empty request. If the RPC is a stream, it reads the first response.
func invoke(t *testing.T, conn *grpc.ClientConn, m protoreflect.MethodDescriptor) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	req, resp := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		return conn.Invoke(ctx, path, req, resp)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(resp)
}

// callers returns one caller of each kind.
func callers(t *testing.T, w *servertest.World) []caller {
	t.Helper()
	pair := func(h *servertest.Holder) *tls.Certificate {
		return certificate(h.Key, h.Certificate.Raw, w.Issuing.Raw)
	}
	serverOnly := func(r *brevetv1.CreateIdentityRequest) { r.Spec.Profile = "server" }
	withdrawn := w.Enrolled(t, "device", "device/revoked")
	w.Revoke(t, withdrawn.Certificate, "privilegeWithdrawn")
	held := w.Enrolled(t, "device", "device/held")
	w.Suspend(t, held.ID)
	replaced := w.Enrolled(t, "device", "device/replaced")
	w.Enroll(t, w.Token(t, replaced.ID, true), servertest.Key(t))
	before := w.NewOperator(t, "bob")
	w.NewOperator(t, "bob") // enrolls bob again, which supersedes the certificate of before
	heldOperator := w.NewOperator(t, "mallory")
	w.Suspend(t, heldOperator.ID)
	device, workload := w.Enrolled(t, "device", "device/1"), w.Enrolled(t, "workload", "workload/1")
	renewed, former := w.Enrolled(t, "device", "device/renewed"), w.NewOperator(t, "carol")
	w.Renewed(t, renewed, servertest.Key(t))
	w.Renewed(t, former, servertest.Key(t))
	op, dave, erin, frank := w.Operator, w.NewOperator(t, "dave"), w.NewOperator(t, "erin"), w.NewOperator(t, "frank")
	return []caller{
		{"nobody", nil, unknown, unknown, ""},
		{"agent", pair(device), admitted, denied, device.ID},
		{"workload", pair(workload), admitted, denied, workload.ID},
		{"operator", pair(op), admitted, admitted, op.ID},
		{"the server itself", w.OwnPair(t, "server").TLS(), untrusted, untrusted, ""},
		{"the OCSP delegate", w.OwnPair(t, w.DelegateDir()).TLS(), untrusted, untrusted, ""},
		{"revoked", pair(withdrawn), revoked, revoked, withdrawn.ID},
		{"superseded", pair(replaced), admitted, revoked, replaced.ID}, // Renew accepts a superseded certificate
		{"superseded operator", pair(before), admitted, revoked, before.ID},
		{"superseded by its renewal", pair(renewed), admitted, revoked, renewed.ID},
		{"operator superseded by a renewal", pair(former), admitted, revoked, former.ID},
		{"on hold", pair(held), revoked, revoked, held.ID},
		{"operator on hold", pair(heldOperator), revoked, revoked, heldOperator.ID},
		{"for servers alone", pair(w.Enrolled(t, "device", "device/server", serverOnly)), untrusted, untrusted, ""},
		{"expired", certificate(dave.Key, forge(t, w, dave, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-30*time.Minute), time.Now().Add(-time.Minute)
		}), w.Issuing.Raw), expired, expired, dave.ID},
		{"not yet valid", certificate(erin.Key, forge(t, w, erin, func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(time.Hour)
		}), w.Issuing.Raw), expired, expired, erin.ID},
		{"signed behind the store's back", certificate(frank.Key, forge(t, w, frank, nil), w.Issuing.Raw), unrecorded, unrecorded, frank.ID},
		{"of a foreign CA", foreign(t, w, nil, nil), untrusted, untrusted, ""},
		{"of another CA under the root", foreign(t, w, w.Root, ground.Root), untrusted, untrusted, ""},
		{"signed by a device", signed(t, w, device.Certificate, device.Key), untrusted, untrusted, ""},
		{"self-made", selfMade(t, w), untrusted, untrusted, ""},
		{"self-made, and expired", selfMade(t, w, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), expired, expired, ""},
		{"the issuing CA", certificate(ground.Issuing, w.Issuing.Raw), untrusted, untrusted, ""},
		{"the root", certificate(ground.Root, w.Root.Raw), untrusted, untrusted, ""},
	}
}

func certificate(key crypto.PrivateKey, chain ...[]byte) *tls.Certificate {
	return &tls.Certificate{Certificate: chain, PrivateKey: key}
}

// forge returns a certificate that the issuing key has signed and the server has not issued. It is like the holder's
// certificate, with another serial number and the changes of edit.
func forge(t *testing.T, w *servertest.World, like *servertest.Holder, edit func(*x509.Certificate)) []byte {
	t.Helper()
	template := likeness(like)
	if edit != nil {
		edit(template)
	}
	return servertest.Must(x509.CreateCertificate(rand.Reader, template, w.Issuing, like.Key.Public(), ground.Issuing))(t)
}

// likeness returns a template for a certificate like the holder's, with another serial number.
func likeness(h *servertest.Holder) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: new(big.Int).Add(h.Certificate.SerialNumber, big.NewInt(1)), Subject: h.Certificate.Subject,
		NotBefore: h.Certificate.NotBefore, NotAfter: h.Certificate.NotAfter, URIs: []*url.URL{h.Certificate.URIs[0]},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
}

// foreign returns a certificate with the operator's SPIFFE ID from another CA with the name of the issuing CA. rootKey
// and root have signed the other CA; if root is nil, it is self-signed.
func foreign(t *testing.T, w *servertest.World, root *x509.Certificate, rootKey crypto.Signer) *tls.Certificate {
	t.Helper()
	key := servertest.Key(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: w.Issuing.RawSubject, SubjectKeyId: w.Issuing.SubjectKeyId,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if root == nil {
		root, rootKey = ca, key
	}
	der := servertest.Must(x509.CreateCertificate(rand.Reader, ca, root, key.Public(), rootKey))(t)
	return signed(t, w, servertest.Must(x509.ParseCertificate(der))(t), key)
}

// signed returns a certificate like the operator's, but for another key and signed by byKey.
func signed(t *testing.T, w *servertest.World, by *x509.Certificate, byKey crypto.Signer) *tls.Certificate {
	t.Helper()
	key, leaf := servertest.Key(t), likeness(w.Operator)
	leaf.SerialNumber = w.Operator.Certificate.SerialNumber
	return certificate(key, servertest.Must(x509.CreateCertificate(rand.Reader, leaf, by, key.Public(), byKey))(t), by.Raw)
}

// selfMade returns a self-signed certificate with the operator's SPIFFE ID.
func selfMade(t *testing.T, w *servertest.World, edits ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, template := servertest.Key(t), likeness(w.Operator)
	template.Subject = pkix.Name{CommonName: "brevet/operator/alice"}
	for _, edit := range edits {
		edit(template)
	}
	return certificate(key, servertest.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t))
}

// The server checks the client certificate at every RPC. If the certificate of an open connection is put on hold or
// expires, further RPCs on that connection fail.
func TestRevocationEndsAnOpenConnection(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	bob := w.NewOperator(t, "bob")
	list := func() error {
		_, err := bob.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
		return err
	}
	servertest.Refused(t, list(), codes.OK, "")
	w.Suspend(t, bob.ID)
	servertest.Refused(t, list(), codes.PermissionDenied, pki.RuleRevoked)
	w.Resume(t, bob.ID)
	servertest.Refused(t, list(), codes.OK, "")
	w.Clock.Advance(13 * time.Hour) // an operator's certificate is valid for twelve hours
	servertest.Refused(t, list(), codes.Unauthenticated, pki.RuleExpired)
}

func TestUnknownMethods(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for _, path := range []string{"/brevet.v1.IdentityService/DeleteIdentity", "/brevet.v1.Nothing/Nothing", "/a/" + strings.Repeat("b", 5000)} {
		err := w.Operator.Conn.Invoke(t.Context(), path, &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{})
		servertest.Refused(t, err, codes.Unimplemented, pki.RuleMethod)
	}
	_, text := getOperations(t, w, "/metrics")
	if got := metric(t, text, `brevet_refusals_total{rule="request.method"}`); got != 3 {
		t.Errorf("the metrics count %v calls of unknown methods, want 3", got)
	}
	// An identity is an operator only if its path starts with brevet/operator/.
	for _, path := range []string{"operator/eve", "device/brevet/operator/eve"} {
		eve := w.Enrolled(t, "device", path)
		_, err := eve.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
		if !strings.HasSuffix(eve.ID, path) {
			t.Errorf("enrolled as %s", eve.ID)
		}
	}
}
