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

// ordered is the holder of what an order is answered with.
func ordered(t *testing.T, w *servertest.World, id string) *servertest.Holder {
	t.Helper()
	key := servertest.Key(t)
	req := servertest.Order(t, id, key)
	der, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
	return w.Holder(t, der, key)
}

// refusedOrder is what refuses an order, which leaves neither a certificate nor an identity.
func refusedOrder(t *testing.T, w *servertest.World, req *brevetv1.IssueCertificatesRequest, code codes.Code, rule pki.Rule) {
	t.Helper()
	before, identities := rows(t, w, "certificates"), rows(t, w, "identities")
	_, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, code, rule)
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("%d certificates more are on record", n-before)
	}
	if n := rows(t, w, "identities"); n != identities {
		t.Errorf("%d identities more are registered", n-identities)
	}
}

func TestAnOrderEnrolls(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/1")
	token := w.Token(t, id, false)
	device := ordered(t, w, id)
	w.Status(t, device.Certificate, "good")
	// The token was made for an identity that nobody had enrolled.
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, token, servertest.Key(t)))
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	w.Renewed(t, device, servertest.Key(t))
	issued := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, id)
	if len(issued) != 2 || issued[0].Actor.String() != w.Operator.ID || issued[1].Actor.String() != id {
		t.Errorf("the log has %+v", issued)
	}
}

func TestAnOrderRegisters(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := servertest.Order(t, "workload/1", servertest.Key(t))
	req.Registration = &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD, Profile: "server", Labels: map[string]string{"line": "3"}, Names: servertest.Names([]string{"One.fleet.example"}, []string{"192.0.2.1"})}
	der, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
	c := servertest.Must(x509.ParseCertificate(der))(t)
	if fmt.Sprint(c.DNSNames, c.IPAddresses) != "[one.fleet.example] [192.0.2.1]" {
		t.Errorf("the certificate is for %v, %v", c.DNSNames, c.IPAddresses)
	}
	have := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: "workload/1"}))(t).GetIdentity()
	if have.GetState() != brevetv1.IdentityState_IDENTITY_STATE_ENROLLED || have.GetKind() != brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD || have.GetProfile() != "server" || have.GetLabels()["line"] != "3" {
		t.Errorf("registered was %v", have)
	}
	entries := servertest.Find(w.Entries(t, 0), translog.IdentityRegistered, have.GetId())
	if len(entries) != 1 || entries[0].Actor.String() != w.Operator.ID {
		t.Errorf("the log has %+v", entries)
	}

	// The same once more, with another request: it is registered already.
	again := servertest.Order(t, "workload/1", servertest.Key(t))
	again.Registration = req.GetRegistration()
	_, err = w.Operator.Orders(t, again).Of(again)
	servertest.Refused(t, err, codes.OK, "")
	other := servertest.Order(t, "workload/1", servertest.Key(t))
	other.Registration = &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD, Profile: "server"}
	refusedOrder(t, w, other, codes.FailedPrecondition, pki.RuleIdentityExists)
	other.Registration = nil // as it is
	_, err = w.Operator.Orders(t, other).Of(other)
	servertest.Refused(t, err, codes.OK, "")
}

// A fleet moves to new keys while its devices go on with their old ones.
func TestAnOrderForAnEnrolledIdentity(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	old := w.Enrolled(t, "device", "device/1")
	further := ordered(t, w, old.ID)
	w.Status(t, old.Certificate, "good")
	w.Status(t, further.Certificate, "good")
	w.Renewed(t, old, servertest.Key(t))
	w.Renewed(t, further, servertest.Key(t))
}

func TestARepeatedOrder(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := servertest.Order(t, "device/1", servertest.Key(t))
	der, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
	again, err := w.NewOperator(t, "bob").Orders(t, req).Of(req) // whoever asks
	servertest.Refused(t, err, codes.OK, "")
	if !bytes.Equal(der, again) {
		t.Error("the same request was given another certificate")
	}
	req.Csr = servertest.CSR(t, servertest.Key(t))
	refusedOrder(t, w, req, codes.FailedPrecondition, pki.RuleRequestIDReused)
}

func TestWhoCannotBeOrdered(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	suspended, retired := w.Enrolled(t, "device", "device/1"), w.Enrolled(t, "device", "device/2")
	w.Suspend(t, suspended.ID)
	w.Retire(t, retired.ID)
	for _, id := range []string{suspended.ID, retired.ID} {
		refusedOrder(t, w, servertest.Order(t, id, servertest.Key(t)), codes.FailedPrecondition, pki.RuleIdentityState)
	}
	for _, id := range []string{w.Operator.ID, "brevet/server", "brevet/operator/eve", "Brevet/server", w.OwnPair(t, w.DelegateDir()).ID().String()} {
		req := servertest.Order(t, id, servertest.Key(t))
		refusedOrder(t, w, req, codes.PermissionDenied, pki.RuleReserved)
		req.Registration = nil
		refusedOrder(t, w, req, codes.PermissionDenied, pki.RuleReserved)
	}
	for _, kind := range []string{"operator", "server", "va"} {
		req := servertest.Order(t, "device/3", servertest.Key(t))
		req.Registration.Kind = servertest.Kind(kind)
		refusedOrder(t, w, req, codes.PermissionDenied, pki.RuleReserved)
	}
	unknown := servertest.Order(t, "device/3", servertest.Key(t))
	unknown.Registration = nil
	refusedOrder(t, w, unknown, codes.NotFound, pki.RuleIdentity)
}

// What is refused of a request is refused of an order too, and registers nobody.
func TestOrdersThatAskForTooMuch(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	w.Enrolled(t, "device", "device/pump", granted)
	for _, c := range append(append(malformedCases(t), keyCases(t)...), contentCases(t)...) {
		t.Run(c.name, func(t *testing.T) {
			for _, id := range []string{"device/pump", "device/new"} {
				req := servertest.Order(t, id, servertest.Key(t))
				req.Csr, req.Registration.Names = c.csr, servertest.Names([]string{"pump.fleet.example"}, []string{"192.0.2.7"})
				refusedOrder(t, w, req, codes.InvalidArgument, c.rule)
			}
		})
	}
	for _, d := range lifetimesOutside(30 * 24 * time.Hour) {
		req := servertest.Order(t, "device/new", servertest.Key(t))
		req.Lifetime = d
		refusedOrder(t, w, req, codes.InvalidArgument, pki.RuleLifetime)
	}
	req := servertest.Order(t, "device/new", servertest.Key(t)) // nothing is left in the way of a right one
	_, err := w.Operator.Orders(t, req).Of(req)
	servertest.Refused(t, err, codes.OK, "")
}

// Of orders, enrollments and renewals of one identity at once, each is decided on what the one before has left.
func TestOrdersBesideAnEnrollment(t *testing.T) {
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
	if err := <-enrolled; err != nil { // it came too late
		servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	}
}
