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

// checkUnavailable checks that an error is temporary, has a retry delay, and reveals no internal details.
func checkUnavailable(t *testing.T, err error) {
	t.Helper()
	servertest.Refused(t, err, codes.Unavailable, "")
	hints := 0
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*errdetails.RetryInfo); ok && r.GetRetryDelay().AsDuration() > 0 {
			hints++
		} else {
			t.Errorf("the details are %v", detail)
		}
	}
	if hints != 1 {
		t.Errorf("there is no retry delay: %v", err)
	}
	checkNoInternals(t, err)
}

// checkNoInternals checks that an error does not contain internal details.
func checkNoInternals(t *testing.T, err error) {
	t.Helper()
	for _, word := range []string{servertest.Internals, "sqlite", "ca:", "ra:", "goroutine", ".go:"} {
		if strings.Contains(status.Convert(err).Proto().String(), word) {
			t.Errorf("the error reveals %q to the caller: %v", word, err)
		}
	}
}

func TestStoreFailureIsUnavailable(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	req := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t))

	store.FailReads(true)
	_, err := w.Caller(t, nil).Enroll(t.Context(), req)
	checkUnavailable(t, err)
	if info := retryDelay(err); info != servertest.RetryAfter.String() {
		t.Errorf("the retry delay is %s, want the store's own", info)
	}
	_, err = w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: "device/1"})
	checkUnavailable(t, err)
	store.FailReads(false)

	store.FailWrites(1)
	_, err = w.Caller(t, nil).Enroll(t.Context(), req)
	checkUnavailable(t, err)
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t)

	renewal := servertest.Renewal(t, servertest.Key(t))
	device := w.Enrolled(t, "device", "device/2")
	store.FailWrites(1)
	_, err = device.Renew(t.Context(), renewal)
	checkUnavailable(t, err)
	servertest.Must(device.Renew(t.Context(), renewal))(t)
	if !strings.Contains(w.Log.String(), servertest.Internals) {
		t.Error("the operational log does not contain the cause")
	}
}

// retryDelay returns the retry delay in an error's details, or "" if there is none.
func retryDelay(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration().String()
		}
	}
	return ""
}

// If a refusal cannot be written to the audit log, the caller still gets the refusal, and the operational log reports
// that writing failed.
func TestRefusalCannotBeLogged(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	device := w.Enrolled(t, "device", "device/1")
	store.FailRefusals(true)
	_, err := device.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	checkNoInternals(t, err)
	if !strings.Contains(w.Log.String(), servertest.Internals) {
		t.Error("the operational log does not contain the cause")
	}
	store.FailRefusals(false)
}

func TestPanicEndsOneCall(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	store.Panic(true)
	_, err := w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.Internal, "")
	checkNoInternals(t, err)
	store.Panic(false)
	servertest.Must(w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}))(t)
	if log := w.Log.String(); !strings.Contains(log, servertest.Internals) || !strings.Contains(log, "faulty.go") {
		t.Error("the operational log lacks the panic or its stack")
	}
}
