package server_test

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// TestRequestIDs calls each RPC with which operators change something twice with the same request ID. Between the two
// calls, some cases make another change. The second call must change nothing and return the same. A third call with the
// same request ID and other content must be refused.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	a, b := w.Enrolled(t, "device", "device/a"), w.Enrolled(t, "device", "device/b")
	read := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: a.ID}))(t).GetIdentity()
	serial := servertest.SerialBytes(b.Certificate)
	id := func(n byte) []byte { return bytes.Repeat([]byte{n}, 16) }
	updated := update(read, &brevetv1.IdentitySpec{Labels: map[string]string{"site": "north"}}, "labels")
	updated.RequestId = id(2)
	for _, c := range []struct {
		name    string
		call    func(comment string) (proto.Message, error)
		between func()
	}{
		{"update", func(comment string) (proto.Message, error) {
			req := proto.CloneOf(updated)
			req.Spec.Labels["site"] += comment
			resp, err := w.Operator.UpdateIdentity(t.Context(), req)
			return resp, err
		}, func() {}},
		{"suspend", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: a.ID, Comment: comment, RequestId: id(3)})
			return resp.GetAffected(), err
		}, func() { w.Resume(t, a.ID) }},
		{"hold", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.HoldCertificate(t.Context(), &brevetv1.HoldCertificateRequest{Serial: serial, Comment: comment, RequestId: id(4)})
			return resp.GetAffected(), err
		}, func() {
			servertest.Must(w.Operator.UnholdCertificate(t.Context(), &brevetv1.UnholdCertificateRequest{Serial: serial, RequestId: id(5)}))(t)
		}},
		{"revoke", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{Serial: serial, Comment: comment, RequestId: id(6)})
			return resp.GetAffected(), err
		}, func() {}},
		{"bulk revocation", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{
				Selection: &brevetv1.CertificateSelection{Identity: b.ID}, Reason: servertest.Reason("superseded"), Comment: comment, RequestId: id(7),
			})
			return resp, err
		}, func() {}},
		{"retire", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: a.ID, Comment: comment, RequestId: id(8)})
			return resp.GetAffected(), err
		}, func() {}},
		{"create", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.CreateIdentity(t.Context(), &brevetv1.CreateIdentityRequest{Id: "device/new" + comment, Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}, RequestId: id(9)})
			return resp, err
		}, func() {}},
		{"revoke tokens", func(comment string) (proto.Message, error) {
			resp, err := w.Operator.RevokeToken(t.Context(), &brevetv1.RevokeTokenRequest{Tokens: &brevetv1.RevokeTokenRequest_CreatedBy{CreatedBy: w.Operator.ID}, Comment: comment, RequestId: id(10)})
			return resp, err
		}, func() { w.Token(t, "device/new", false) }},
	} {
		first := servertest.Must(c.call(""))(t)
		c.between()
		logged := len(w.Entries(t, 0))
		if again := servertest.Must(c.call(""))(t); !proto.Equal(again, first) {
			t.Errorf("%s: the first call returned %v, and its repeat %v", c.name, first, again)
		}
		_, err := c.call("-other")
		servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleRequestIDReused)
		for _, e := range w.Entries(t, logged) {
			if e.Action != translog.RequestRefused && e.Action != translog.CRLNumberTaken && e.Action != translog.CRLPublished { // at any time
				t.Errorf("%s: a repeat wrote the log entry %+v", c.name, e)
			}
		}
	}
	w.Status(t, b.Certificate, "unspecified")
	_, err := w.Operator.RevokeToken(t.Context(), &brevetv1.RevokeTokenRequest{RequestId: []byte{1}, Tokens: &brevetv1.RevokeTokenRequest_TokenId{TokenId: "0123456789abcdef"}})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
}

// TestLostTokenIsReplaced calls CreateToken twice with the same request ID. The second response has a new token, and
// the token of the first response is revoked.
func TestLostTokenIsReplaced(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := &brevetv1.CreateTokenRequest{Identity: w.Register(t, "device", "device/1"), RequestId: bytes.Repeat([]byte{1}, 16)}
	first := servertest.Must(w.Operator.CreateToken(t.Context(), req))(t)
	second := servertest.Must(w.Operator.CreateToken(t.Context(), req))(t)
	if first.GetToken() == second.GetToken() || first.GetTokenId() == second.GetTokenId() || !first.GetExpireTime().AsTime().Equal(second.GetExpireTime().AsTime()) {
		t.Errorf("the tokens are %v and %v", first, second)
	}
	open := servertest.Must(w.Operator.ListTokens(t.Context(), &brevetv1.ListTokensRequest{Identity: "device/1", States: []brevetv1.TokenState{brevetv1.TokenState_TOKEN_STATE_OPEN}}))(t)
	if len(open.GetTokens()) != 1 || open.GetTokens()[0].GetId() != second.GetTokenId() {
		t.Errorf("the open tokens are %v", open.GetTokens())
	}
	_, err := w.Operator.Enroll(t.Context(), servertest.Enrollment(t, w.Secret(t, first.GetToken()), servertest.Key(t)))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleTokenRevoked)
	w.Enroll(t, w.Secret(t, second.GetToken()), servertest.Key(t))
	req.Replace = true
	_, err = w.Operator.CreateToken(t.Context(), req)
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleRequestIDReused)
}
