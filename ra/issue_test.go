package ra_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// issueNew issues a certificate with an issue request, and returns its holder.
func issueNew(t *testing.T, w *servertest.World, id string) *servertest.Holder {
	t.Helper()
	key := servertest.Key(t)
	req := servertest.Order(t, id, key)
	der, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
	return w.Holder(t, der, key)
}

// refusedIssue sends an issue request. It checks that the request is refused, and adds neither a certificate nor an identity.
func refusedIssue(t *testing.T, w *servertest.World, req *brevetv1.IssueCertificatesRequest, code codes.Code, rule pki.Rule) {
	t.Helper()
	before, identities := rows(t, w, "certificates"), rows(t, w, "identities")
	_, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, code, rule)
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("%d certificates were added", n-before)
	}
	if n := rows(t, w, "identities"); n != identities {
		t.Errorf("%d identities were added", n-identities)
	}
}

func TestIssueEnrolls(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/1")
	token := w.Token(t, id, false)
	device := issueNew(t, w, id)
	w.Status(t, device.Certificate, "good")
	// The token was created before the identity was enrolled, so it cannot be used any more.
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, token, servertest.Key(t)))
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	w.Renewed(t, device, servertest.Key(t))
	issued := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, id)
	if len(issued) != 2 || issued[0].Actor.String() != w.Operator.ID || issued[1].Actor.String() != id {
		t.Errorf("the log has %+v", issued)
	}
}

func TestIssueRegisters(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := servertest.Order(t, "workload/1", servertest.Key(t))
	req.Registration = &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD, Profile: "server", Labels: map[string]string{"line": "3"}, Names: servertest.Names([]string{"One.fleet.example"}, []string{"192.0.2.1"})}
	der, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
	c := servertest.Must(x509.ParseCertificate(der))(t)
	if fmt.Sprint(c.DNSNames, c.IPAddresses) != "[one.fleet.example] [192.0.2.1]" {
		t.Errorf("the certificate has the DNS names %v and IP addresses %v", c.DNSNames, c.IPAddresses)
	}
	have := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: "workload/1"}))(t).GetIdentity()
	if have.GetState() != brevetv1.IdentityState_IDENTITY_STATE_ENROLLED || have.GetKind() != brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD || have.GetProfile() != "server" || have.GetLabels()["line"] != "3" {
		t.Errorf("the identity is %v", have)
	}
	entries := servertest.Find(w.Entries(t, 0), translog.IdentityRegistered, have.GetId())
	if len(entries) != 1 || entries[0].Actor.String() != w.Operator.ID {
		t.Errorf("the log has %+v", entries)
	}

	// Another request with the same registration succeeds, because the registered identity is equal.
	again := servertest.Order(t, "workload/1", servertest.Key(t))
	again.Registration = req.GetRegistration()
	_, err = w.Operator.Orders(t, again).Of(again)
	servertest.Refused(t, err, codes.OK, "")
	other := servertest.Order(t, "workload/1", servertest.Key(t))
	other.Registration = &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD, Profile: "server"}
	refusedIssue(t, w, other, codes.FailedPrecondition, pki.RuleIdentityExists)
	other.Registration = nil // whatever is registered
	_, err = w.Operator.Orders(t, other).Of(other)
	servertest.Refused(t, err, codes.OK, "")
}

// A fleet can migrate to new keys while the old certificates remain in use.
func TestIssueForEnrolledIdentity(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	old := w.Enrolled(t, "device", "device/1")
	further := issueNew(t, w, old.ID)
	w.Status(t, old.Certificate, "good")
	w.Status(t, further.Certificate, "good")
	w.Renewed(t, old, servertest.Key(t))
	w.Renewed(t, further, servertest.Key(t))
}

func TestRepeatedIssueRequest(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := servertest.Order(t, "device/1", servertest.Key(t))
	der, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
	again, err := w.NewOperator(t, "bob").Orders(t, req).Of(req) // another operator
	servertest.Refused(t, err, codes.OK, "")
	if !bytes.Equal(der, again) {
		t.Error("a repeated request returned another certificate")
	}
	req.Csr = servertest.CSR(t, servertest.Key(t))
	refusedIssue(t, w, req, codes.FailedPrecondition, pki.RuleRequestIDReused)
}

func TestIssueRefusesIdentities(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	suspended, retired := w.Enrolled(t, "device", "device/1"), w.Enrolled(t, "device", "device/2")
	w.Suspend(t, suspended.ID)
	w.Retire(t, retired.ID)
	for _, id := range []string{suspended.ID, retired.ID} {
		refusedIssue(t, w, servertest.Order(t, id, servertest.Key(t)), codes.FailedPrecondition, pki.RuleIdentityState)
	}
	for _, id := range []string{w.Operator.ID, "brevet/server", "brevet/operator/eve", "Brevet/server", w.OwnPair(t, w.DelegateDir()).ID().String()} {
		req := servertest.Order(t, id, servertest.Key(t))
		refusedIssue(t, w, req, codes.PermissionDenied, pki.RuleReserved)
		req.Registration = nil
		refusedIssue(t, w, req, codes.PermissionDenied, pki.RuleReserved)
	}
	for _, kind := range []string{"operator", "server", "va"} {
		req := servertest.Order(t, "device/3", servertest.Key(t))
		req.Registration.Kind = servertest.Kind(kind)
		refusedIssue(t, w, req, codes.PermissionDenied, pki.RuleReserved)
	}
	unknown := servertest.Order(t, "device/3", servertest.Key(t))
	unknown.Registration = nil
	refusedIssue(t, w, unknown, codes.NotFound, pki.RuleIdentity)
}

// An issue request with a refused CSR is refused as well, and registers no identity.
func TestIssueRefusesRequests(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	w.Enrolled(t, "device", "device/pump", granted)
	for _, c := range append(append(malformedCases(t), keyCases(t)...), contentCases(t)...) {
		t.Run(c.name, func(t *testing.T) {
			for _, id := range []string{"device/pump", "device/new"} {
				req := servertest.Order(t, id, servertest.Key(t))
				req.Csr, req.Registration.Names = c.csr, servertest.Names([]string{"pump.fleet.example"}, []string{"192.0.2.7"})
				refusedIssue(t, w, req, codes.InvalidArgument, c.rule)
			}
		})
	}
	for _, d := range lifetimesOutside(30 * 24 * time.Hour) {
		req := servertest.Order(t, "device/new", servertest.Key(t))
		req.Lifetime = d
		refusedIssue(t, w, req, codes.InvalidArgument, pki.RuleLifetime)
	}
	req := servertest.Order(t, "device/new", servertest.Key(t)) // the refused requests have no effect on a valid one
	_, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
}

// Concurrent issue requests and enrollments for one identity are serialized. Each is decided on the result of the previous one.
func TestConcurrentIssueAndEnrollment(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/1")
	enrollment := servertest.Enrollment(t, w.Token(t, id, false), servertest.Key(t))
	enrolled := make(chan error, 1)
	nobody := w.Caller(t, nil)
	go func() {
		_, err := nobody.Enroll(t.Context(), enrollment)
		enrolled <- err
	}()
	reqs := make([]*brevetv1.IssueCertificatesRequest, 16)
	for i := range reqs {
		reqs[i] = servertest.Order(t, id, servertest.Key(t))
	}
	answers := w.Operator.Orders(t, reqs...)
	for _, req := range reqs {
		_, err := answers.Of(req)
		servertest.Refused(t, err, codes.OK, "")
	}
	if err := <-enrolled; err != nil { // an issue request was first
		servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	}
}
