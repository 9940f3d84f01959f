package server_test

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// windowOf returns the renewal window of a holder's certificate.
func windowOf(t *testing.T, h *servertest.Holder) pki.RenewalWindow {
	t.Helper()
	w := servertest.Must(h.GetRenewalInfo(t.Context(), &brevetv1.GetRenewalInfoRequest{}))(t).GetRenewalWindow()
	return pki.RenewalWindow{Start: w.GetStartTime().AsTime(), End: w.GetEndTime().AsTime()}
}

func usualWindow(t *testing.T, h *servertest.Holder) pki.RenewalWindow {
	t.Helper()
	return pki.RenewalWindowOf(servertest.Must(pki.SerialFromInt(h.Certificate.SerialNumber))(t), h.Certificate.NotAfter)
}

func TestRenewalInfo(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	info := servertest.Must(device.GetRenewalInfo(t.Context(), &brevetv1.GetRenewalInfoRequest{}))(t)
	bundle := servertest.Must(device.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{}))(t).GetTrustBundle()
	if !bytes.Equal(info.GetTrustBundleRevision(), bundle.GetRevision()) || info.GetRetryAfter().AsDuration().Round(time.Hour) != 2*time.Hour {
		t.Errorf("got %v, and the bundle has the revision %x", info, bundle.GetRevision())
	}
	if have, want := windowOf(t, device), usualWindow(t, device); have != want {
		t.Errorf("the window is %v, want %v", have, want)
	}
	w.Revoke(t, device.Certificate, "superseded")
	_, err := device.GetRenewalInfo(t.Context(), &brevetv1.GetRenewalInfoRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
}

// An enrollment and a renewal return the same window as GetRenewalInfo.
func TestCredentialHasWindow(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	key := servertest.Key(t)
	resp := servertest.Must(w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), key)))(t)
	device := w.Holder(t, resp.GetCredential().GetCertificate(), key)
	sent := resp.GetCredential().GetRenewalWindow()
	if have := windowOf(t, device); !have.Start.Equal(sent.GetStartTime().AsTime()) || !have.End.Equal(sent.GetEndTime().AsTime()) {
		t.Errorf("the window is %v, and the credential has %v", have, sent)
	}
}

func TestRotationMovesWindow(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device, other := w.Enrolled(t, "device", "device/1", labelled("site", "north")), w.Enrolled(t, "device", "device/2")
	req := &brevetv1.StartRotationRequest{
		Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: "north"}},
		Over:      durationpb.New(time.Hour), Confirm: 1, RequestId: servertest.RequestID(),
	}
	started := servertest.Must(w.Operator.StartRotation(t.Context(), req))(t).GetRotation()
	again := servertest.Must(w.Operator.StartRotation(t.Context(), req))(t).GetRotation()
	if started.GetId() != again.GetId() || started.GetAffected() != 1 {
		t.Fatalf("the request returned %v, and its repeat %v", started, again)
	}
	from := started.GetStartTime().AsTime()
	for deadline := time.Now().Add(10 * time.Second); windowOf(t, device) == usualWindow(t, device) && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
	if have := windowOf(t, device); have.Start.Before(from) || have.End.After(from.Add(time.Hour)) {
		t.Errorf("the window is %v, in a rotation from %s", have, from)
	}
	if have, want := windowOf(t, other), usualWindow(t, other); have != want {
		t.Errorf("the window of another device is %v, want %v", have, want)
	}
	renewed := w.Renewed(t, device, servertest.Key(t))
	if have, want := windowOf(t, renewed), usualWindow(t, renewed); have != want {
		t.Errorf("the window of the new certificate is %v, want %v", have, want)
	}
	r := servertest.Must(w.Operator.GetRotation(t.Context(), &brevetv1.GetRotationRequest{Id: started.GetId()}))(t).GetRotation()
	if p := r.GetProgress(); p.GetRenewed() != 1 || p.GetDue() != 0 || p.GetGone() != 0 {
		t.Errorf("the rotation is %v", r)
	}
}
