package server_test

import (
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// unavailable checks an error that will pass: when to come back, and nothing of what is behind it.
func unavailable(t *testing.T, err error) {
	t.Helper()
	servertest.Refused(t, err, codes.Unavailable, "")
	hints := 0
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*errdetails.RetryInfo); ok && r.GetRetryDelay().AsDuration() > 0 {
			hints++
		} else {
			t.Errorf("the details hold %v", detail)
		}
	}
	if hints != 1 {
		t.Errorf("there is no hint when to try again: %v", err)
	}
	discreet(t, err)
}

func discreet(t *testing.T, err error) {
	t.Helper()
	for _, word := range []string{servertest.Internals, "sqlite", "ca:", "ra:", "goroutine", ".go:"} {
		if strings.Contains(status.Convert(err).Proto().String(), word) {
			t.Errorf("the caller is told %q: %v", word, err)
		}
	}
}

func TestAStoreThatFailsIsUnavailable(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	req := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t))

	store.FailReads(true)
	_, err := w.Caller(t, nil).Enroll(t.Context(), req)
	unavailable(t, err)
	if info := retryDelay(err); info != servertest.RetryAfter.String() {
		t.Errorf("the hint is %s, want the store's own", info)
	}
	_, err = w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: "device/1"})
	unavailable(t, err)
	store.FailReads(false)

	store.FailWrites(1)
	_, err = w.Caller(t, nil).Enroll(t.Context(), req)
	unavailable(t, err)
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t)

	renewal := servertest.Renewal(t, servertest.Key(t))
	device := w.Enrolled(t, "device", "device/2")
	store.FailWrites(1)
	_, err = device.Renew(t.Context(), renewal)
	unavailable(t, err)
	servertest.Must(device.Renew(t.Context(), renewal))(t)
	if !strings.Contains(w.Log.String(), servertest.Internals) {
		t.Error("the operator's own log does not say what is wrong")
	}
}

func retryDelay(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration().String()
		}
	}
	return ""
}

// What was refused stays refused where that cannot be logged, and the operator hears of it.
func TestARefusalThatCannotBeLogged(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	device := w.Enrolled(t, "device", "device/1")
	store.FailRefusals(true)
	_, err := device.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	discreet(t, err)
	if !strings.Contains(w.Log.String(), servertest.Internals) {
		t.Error("the operator's own log does not say what is wrong")
	}
	store.FailRefusals(false)
}

func TestAPanicEndsOneCall(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	store.Panic(true)
	_, err := w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.Internal, "")
	discreet(t, err)
	store.Panic(false)
	servertest.Must(w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}))(t)
	if log := w.Log.String(); !strings.Contains(log, servertest.Internals) || !strings.Contains(log, "faulty.go") {
		t.Error("the operator's own log has neither the panic nor where it was")
	}
}
