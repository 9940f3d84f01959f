package server_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/servertest"
)

// ordersPolicy enables ACME for accounts whose external key names an identity, and for names in web.example.
const ordersPolicy = `
acme: {}
rules:
- {name: tokens, evidence: [token]}
- {name: shops, evidence: [acme]}
- {name: web, evidence: [acme], identity: "web/{acme.name}", register: true, when: acme.name.endsWith(".web.example")}
`

// TestExternalKeysOverGRPC creates, lists and revokes external keys. The HMAC key is in one response, and in no file.
func TestExternalKeysOverGRPC(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: []byte(ordersPolicy)})
	id := w.Register(t, "device", "shop/1")
	client := brevetv1.NewACMEServiceClient(w.Operator.Conn)
	created := servertest.Must(client.CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Identity: "shop/1"}))(t)
	if len(created.GetHmacKey()) != 64 || created.GetKey().GetIdentity() != id || created.GetKey().GetState() != brevetv1.ExternalKeyState_EXTERNAL_KEY_STATE_OPEN {
		t.Errorf("created %v, with an HMAC key of %d bytes", created.GetKey(), len(created.GetHmacKey()))
	}
	w.Hide(created.GetHmacKey())
	for _, c := range []struct {
		req  *brevetv1.CreateExternalKeyRequest
		code codes.Code
		rule pki.Rule
	}{
		{&brevetv1.CreateExternalKeyRequest{Rule: "web"}, codes.OK, ""},
		{&brevetv1.CreateExternalKeyRequest{Rule: "shops"}, codes.NotFound, pki.RuleNotFound},
		{&brevetv1.CreateExternalKeyRequest{Identity: "shop/1", Rule: "web"}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateExternalKeyRequest{Identity: "shop/2"}, codes.NotFound, pki.RuleIdentity},
		{&brevetv1.CreateExternalKeyRequest{Identity: w.Operator.ID}, codes.PermissionDenied, pki.RuleReserved},
		{&brevetv1.CreateExternalKeyRequest{Identity: "shop/1", Lifetime: durationpb.New(acme.MaxUnused + 1)}, codes.InvalidArgument, pki.RuleLifetime},
	} {
		_, err := client.CreateExternalKey(t.Context(), c.req)
		servertest.Refused(t, err, c.code, c.rule)
	}
	first := servertest.Must(client.ListExternalKeys(t.Context(), &brevetv1.ListExternalKeysRequest{PageSize: 1}))(t)
	second := servertest.Must(client.ListExternalKeys(t.Context(), &brevetv1.ListExternalKeysRequest{PageSize: 1, PageToken: first.GetNextPageToken()}))(t)
	if len(first.GetKeys()) != 1 || first.GetKeys()[0].GetRule() != "web" || len(second.GetKeys()) != 1 || second.GetKeys()[0].GetId() != created.GetKey().GetId() ||
		second.GetNextPageToken() != "" {
		t.Errorf("listed %v and %v", first, second)
	}
	revoked := servertest.Must(client.RevokeExternalKey(t.Context(), &brevetv1.RevokeExternalKeyRequest{Id: created.GetKey().GetId(), Comment: "lost"}))(t)
	if revoked.GetKey().GetState() != brevetv1.ExternalKeyState_EXTERNAL_KEY_STATE_REVOKED || revoked.GetRevoked() != 0 {
		t.Errorf("revoked %v", revoked)
	}
	_, err := client.RevokeExternalKey(t.Context(), &brevetv1.RevokeExternalKeyRequest{Id: acme.NewID().String()})
	servertest.Refused(t, err, codes.NotFound, pki.RuleNotFound)
	_, err = client.RevokeExternalKey(t.Context(), &brevetv1.RevokeExternalKeyRequest{Id: created.GetKey().GetId(), Comment: "\u202e"})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
}
