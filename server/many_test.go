package server_test

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// An operator retires an identity with many certificates. The retirement is in effect for all certificates before all
// their records are changed, and also after a restart. RetireIdentity returns only when all records are changed.
func TestRetireIdentityWithManyCertificates(t *testing.T) {
	t.Parallel()
	const many = 150
	proceed := make(chan struct{})
	options := withSlowBulk(proceed)
	options.Profile = func(_ string, c *ca.ProfileConfig) { c.MaxUnexpired = 20 }
	w := servertest.New(t, ground, options)
	device := w.Enrolled(t, "device", "device/1")
	key := servertest.Key(t)
	var reqs []*brevetv1.IssueCertificatesRequest
	for range many {
		reqs = append(reqs, servertest.Order(t, "device/1", key))
	}
	answers := w.Operator.Orders(t, reqs...)
	holders := []*servertest.Holder{device}
	for _, i := range []int{0, many / 2, many - 1} {
		holders = append(holders, w.Holder(t, servertest.Must(answers.Of(reqs[i]))(t), key))
	}

	ctx, giveUp := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := w.Operator.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: device.ID})
		answered <- err
	}()
	for len(servertest.Must(w.Stores.Revocation.OpenBulk(t.Context()))(t)) == 0 || w.OCSP(t, holders[3].Certificate).Status == 0 {
		select {
		case err := <-answered:
			t.Fatalf("RetireIdentity returned before all records were changed: %v", err)
		default:
		}
	}
	giveUp()
	servertest.Refused(t, <-answered, codes.Canceled, "")
	w.StopServer(t)
	options.Wrap = nil
	w.Serve(t, options)
	for _, h := range holders {
		w.Status(t, h.Certificate, "cessationOfOperation")
		_, err := w.Holder(t, h.Certificate.Raw, h.Key).Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	}
	if bulk := awaitApplied(t, w, "1"); bulk.GetTotal() != many+1 || bulk.GetExpired() != 0 || bulk.GetAction() != brevetv1.BulkRevocationAction_BULK_REVOCATION_ACTION_REVOKE {
		t.Errorf("the bulk revocation is %v", bulk)
	}
	again := servertest.Must(w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: device.ID}))(t)
	if again.GetIdentity().GetState() != brevetv1.IdentityState_IDENTITY_STATE_RETIRED || again.GetAffected().GetValid() != 0 {
		t.Errorf("the same request again returns %v", again)
	}
}

// SuspendIdentity and ResumeIdentity of an identity with many certificates return when all records are changed.
func TestSuspendIdentityWithManyCertificates(t *testing.T) {
	t.Parallel()
	const many = 150
	w := servertest.New(t, ground, servertest.Options{Profile: func(_ string, c *ca.ProfileConfig) { c.MaxUnexpired = 20 }})
	device := w.Enrolled(t, "device", "device/1")
	key := servertest.Key(t)
	var reqs []*brevetv1.IssueCertificatesRequest
	for range many {
		reqs = append(reqs, servertest.Order(t, "device/1", key))
	}
	w.Operator.Orders(t, reqs...)
	suspended := servertest.Must(w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: device.ID}))(t)
	if n := countHeld(t, w); suspended.GetAffected().GetValid() != many+1 || n != many+1 {
		t.Errorf("SuspendIdentity returns %v, and %d records are on hold", suspended, n)
	}
	resumed := servertest.Must(w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: device.ID}))(t)
	if n := countHeld(t, w); resumed.GetAffected().GetValid() != many+1 || n != 0 {
		t.Errorf("ResumeIdentity returns %v, and %d records are on hold", resumed, n)
	}
	w.Status(t, device.Certificate, "good")
}

// countHeld counts the certificates that are on hold. It checks that there is no open bulk revocation, so that their
// own records say so.
func countHeld(t *testing.T, w *servertest.World) int {
	t.Helper()
	held := 0
	for _, c := range w.Inventory(t) {
		if c.Status.State == pki.Hold {
			held++
		}
	}
	if open := servertest.Must(w.Stores.Revocation.OpenBulk(t.Context()))(t); len(open) != 0 {
		t.Errorf("the bulk revocations %v are not done", open)
	}
	return held
}
