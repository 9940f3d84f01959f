package server_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// When an RPC that changes certificates returns, OCSP responses have the new statuses.
func TestChangesAreVisibleAtOnce(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	renewed := w.Renewed(t, device, servertest.Key(t))
	both := func(want string) {
		t.Helper()
		w.Status(t, device.Certificate, want)
		w.Status(t, renewed.Certificate, want)
	}
	both("good")
	w.Suspend(t, device.ID)
	both("certificateHold")
	w.Suspend(t, device.ID) // again, without a change
	both("certificateHold")
	w.Resume(t, device.ID)
	both("good")
	_, err := w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: device.ID})
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleIdentityState)
	w.Revoke(t, device.Certificate, "keyCompromise")
	w.Status(t, device.Certificate, "keyCompromise")
	w.Status(t, renewed.Certificate, "good")
	w.Suspend(t, device.ID)
	w.Retire(t, device.ID)
	w.Status(t, device.Certificate, "keyCompromise") // the certificate keeps the reason of its own revocation
	w.Status(t, renewed.Certificate, "cessationOfOperation")
	w.Retire(t, device.ID)
	for _, call := range []func() error{
		func() error {
			_, err := w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: device.ID})
			return err
		},
		func() error {
			_, err := w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: device.ID})
			return err
		},
		func() error {
			_, err := w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: device.ID, Replace: true})
			return err
		},
	} {
		servertest.Refused(t, call(), codes.FailedPrecondition, pki.RuleIdentityState)
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	revoke := func(c *x509.Certificate, reason string) error {
		_, err := w.Operator.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{Serial: servertest.SerialBytes(c), Reason: servertest.Reason(reason)})
		return err
	}
	for i, reason := range append(pki.ReasonNames(), "", "KEYCOMPROMISE", "removeFromCRL", "7", "because") {
		c := w.Enrolled(t, "device", fmt.Sprintf("device/%d", i)).Certificate
		switch want, err := pki.ParseReason(reason); {
		case reason == "certificateHold", err != nil && reason != "":
			servertest.Refused(t, revoke(c, reason), codes.InvalidArgument, pki.RuleReason)
			w.Status(t, c, "good")
		default:
			servertest.Refused(t, revoke(c, reason), codes.OK, "")
			w.Status(t, c, want.String())
			servertest.Refused(t, revoke(c, reason), codes.OK, "") // again, without a change
		}
	}
	c := w.Enrolled(t, "device", "device/final").Certificate
	for _, step := range []struct {
		reason string
		code   codes.Code
		rule   pki.Rule
		status string // the OCSP status after the step
	}{
		{"superseded", codes.OK, "", "superseded"},
		{"cessationOfOperation", codes.FailedPrecondition, pki.RuleAlreadyRevoked, "superseded"},
		{"unspecified", codes.FailedPrecondition, pki.RuleAlreadyRevoked, "superseded"},
		{"keyCompromise", codes.OK, "", "keyCompromise"},
		{"superseded", codes.FailedPrecondition, pki.RuleAlreadyRevoked, "keyCompromise"},
	} {
		servertest.Refused(t, revoke(c, step.reason), step.code, step.rule)
		w.Status(t, c, step.status)
	}
	for serial, rule := range map[string]pki.Rule{"": pki.RuleRequest, "xyz": pki.RuleRequest, string(make([]byte, 19)) + "\x01": pki.RuleNotFound} {
		_, err := w.Operator.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{Serial: []byte(serial)})
		if servertest.RuleOf(err) != rule {
			t.Errorf("serial %q: %v, want %s", serial, err, rule)
		}
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	var ids, serials []string
	device := w.Enrolled(t, "device", "device/0")
	for i := range 6 {
		if i > 0 {
			w.Register(t, "device", fmt.Sprintf("device/%d", i))
			device = w.Renewed(t, device, servertest.Key(t))
		}
		ids = append(ids, fmt.Sprintf("spiffe://%s/device/%d", servertest.TrustDomain, i))
		serials = append(serials, servertest.Serial(device.Certificate))
	}
	slices.Reverse(serials) // newest first
	for _, size := range []int32{1, 2, 3, 5, 6, 7, 1000, 0} {
		var gotIDs, gotSerials []string
		list := &brevetv1.ListIdentitiesRequest{PageSize: size}
		for {
			page := servertest.Must(w.Operator.ListIdentities(t.Context(), list))(t)
			if len(page.GetIdentities()) == 0 {
				t.Errorf("pages of %d: an empty page", size)
			}
			for _, id := range page.GetIdentities() {
				if id.GetKind() == brevetv1.IdentityKind_IDENTITY_KIND_DEVICE {
					gotIDs = append(gotIDs, id.GetId())
				}
			}
			if list.PageToken = page.GetNextPageToken(); list.PageToken == "" {
				break
			}
		}
		certs := &brevetv1.ListCertificatesRequest{PageSize: size, Selection: &brevetv1.CertificateSelection{Identity: device.ID}}
		for {
			page := servertest.Must(w.Operator.ListCertificates(t.Context(), certs))(t)
			if len(page.GetCertificates()) == 0 {
				t.Errorf("pages of %d: an empty page", size)
			}
			for _, c := range page.GetCertificates() {
				gotSerials = append(gotSerials, servertest.Serial(servertest.Must(x509.ParseCertificate(c.GetDer()))(t)))
			}
			if certs.PageToken = page.GetNextPageToken(); certs.PageToken == "" {
				break
			}
		}
		if !slices.Equal(gotIDs, ids) || !slices.Equal(gotSerials, serials) {
			t.Errorf("pages of %d: %v and %v, want %v and %v", size, gotIDs, gotSerials, ids, serials)
		}
	}
	for _, size := range []int32{-1, 1001} {
		_, err := w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{PageSize: size})
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
		_, err = w.Operator.ListCertificates(t.Context(), &brevetv1.ListCertificatesRequest{PageSize: size})
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
	}
	_, err := w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{PageToken: "x"})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
	_, err = w.Operator.ListCertificates(t.Context(), &brevetv1.ListCertificatesRequest{PageToken: "-1"})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
	_, err = w.Operator.ListCertificates(t.Context(), &brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Identity: "device/unknown"}})
	servertest.Refused(t, err, codes.NotFound, pki.RuleIdentity)
}

func TestTokenLifetimes(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/1")
	for _, d := range []time.Duration{30*24*time.Hour + time.Second, time.Second - 1, 0, -time.Hour} {
		_, err := w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id, Lifetime: durationpb.New(d)})
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleLifetime)
	}
	for _, d := range []time.Duration{time.Second, 30 * 24 * time.Hour} {
		resp := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id, Lifetime: durationpb.New(d)}))(t)
		w.Secret(t, resp.GetToken())
	}
	_, err := w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: "device/unknown"})
	servertest.Refused(t, err, codes.NotFound, pki.RuleIdentity)
}

// Operators cannot change the CA's own identities.
func TestReservedIdentitiesCannotBeChanged(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for _, role := range []string{"server", w.DelegateDir()} {
		id := w.OwnPair(t, role).ID().String()
		_, suspend := w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: id})
		_, resume := w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: id})
		_, retire := w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: id})
		_, token := w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id, Replace: true})
		for _, err := range []error{suspend, resume, retire, token} {
			servertest.Refused(t, err, codes.PermissionDenied, pki.RuleReserved)
		}
		w.Status(t, w.OwnPair(t, role).Certificate, "good")
	}
}
