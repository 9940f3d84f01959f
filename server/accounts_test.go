package server_test

import (
	"encoding/base64"
	"strings"
	"testing"

	acmez "github.com/mholt/acmez/v3/acme"
	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/servertest"
)

// TestAccountsOverGRPC lists accounts with and without an external key, and revokes one with its certificates.
func TestAccountsOverGRPC(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, func(o *servertest.Options) {
		o.Policy = []byte(strings.Replace(acmePolicy, "binding: required", "binding: optional", 1))
	})
	w.zone.Address(t, "a.web.fleet.example", "127.0.0.1")
	bound := w.bind(t, &brevetv1.CreateExternalKeyRequest{Rule: "web"})
	c := w.unbound(t)
	first := servertest.Must(c.obtain(t.Context(), servertest.Key(t), nil, "a.web.fleet.example"))(t)
	kept := servertest.Must(bound.obtain(t.Context(), servertest.Key(t), nil, "a.web.fleet.example"))(t)
	client := brevetv1.NewACMEServiceClient(w.Operator.Conn)
	page := servertest.Must(client.ListAccounts(t.Context(), &brevetv1.ListAccountsRequest{PageSize: 1}))(t)
	rest := servertest.Must(client.ListAccounts(t.Context(), &brevetv1.ListAccountsRequest{PageSize: 1, PageToken: page.GetNextPageToken()}))(t)
	if len(page.GetAccounts()) != 1 || len(rest.GetAccounts()) != 1 || rest.GetNextPageToken() != "" || rest.GetAccounts()[0].GetExternalKeyId() == "" {
		t.Fatalf("listed %v and %v", page, rest)
	}
	a := page.GetAccounts()[0]
	if a.GetStatus() != "valid" || a.GetExternalKeyId() != "" || a.GetUnexpiredCertificates() != 1 || len(a.GetContacts()) != 1 {
		t.Errorf("listed %v", a)
	}
	revoke := &brevetv1.RevokeAccountRequest{Id: a.GetId(), RevokeCertificates: true, Comment: "stolen"}
	resp := servertest.Must(client.RevokeAccount(t.Context(), revoke))(t)
	if resp.GetAccount().GetStatus() != "revoked" || resp.GetRevoked() != 1 {
		t.Errorf("revoked %v", resp)
	}
	w.Status(t, first, "privilegeWithdrawn")
	w.Status(t, kept, "good")
	if _, err := c.obtain(t.Context(), servertest.Key(t), nil, "a.web.fleet.example"); err == nil {
		t.Error("a revoked account gets a certificate")
	}
	if again := servertest.Must(client.RevokeAccount(t.Context(), revoke))(t); again.GetAccount().GetStatus() != "revoked" {
		t.Errorf("a repeat revoked %v", again)
	}
	_, err := client.RevokeAccount(t.Context(), &brevetv1.RevokeAccountRequest{Id: acme.NewID().String()})
	servertest.Refused(t, err, codes.NotFound, pki.RuleNotFound)
	_, err = client.RevokeAccount(t.Context(), &brevetv1.RevokeAccountRequest{Id: "abc"})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
}

// TestAccountsOfSuspendedIdentities checks that the external key of a suspended identity creates no account, and that its
// account gets no certificates.
func TestAccountsOfSuspendedIdentities(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, nil)
	id := w.Register(t, "workload", "shop")
	c := w.bind(t, &brevetv1.CreateExternalKeyRequest{Identity: "shop"})
	servertest.Must(c.obtain(t.Context(), servertest.Key(t), nil, "www.shop.fleet.example"))(t)
	client := brevetv1.NewACMEServiceClient(w.Operator.Conn)
	key := servertest.Must(client.CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Identity: "shop"}))(t)
	next := w.newClient(t)
	eab := acmez.EAB{KeyID: key.GetKey().GetId(), MACKey: base64.RawURLEncoding.EncodeToString(key.GetHmacKey())}
	if err := next.account.SetExternalAccountBinding(t.Context(), next.c.Client, eab); err != nil {
		t.Fatal(err)
	}
	servertest.Must(w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: id}))(t)
	if _, err := next.c.NewAccount(t.Context(), next.account); err == nil || !strings.Contains(err.Error(), "suspended") {
		t.Errorf("the key of a suspended identity creates an account: %v", err)
	}
	if _, err := c.obtain(t.Context(), servertest.Key(t), nil, "www.shop.fleet.example"); err == nil || !strings.Contains(err.Error(), "suspended") {
		t.Errorf("the account of a suspended identity orders: %v", err)
	}
	keys := servertest.Must(client.ListExternalKeys(t.Context(), &brevetv1.ListExternalKeysRequest{}))(t).GetKeys()
	if len(keys) != 2 || keys[0].GetIdentityState() != "suspended" || keys[1].GetIdentityState() != "suspended" {
		t.Errorf("listed %v", keys)
	}
	servertest.Must(w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: id}))(t)
	if _, err := next.c.NewAccount(t.Context(), next.account); err != nil {
		t.Errorf("the key of a resumed identity creates no account: %v", err)
	}
}
