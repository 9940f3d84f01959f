package ra_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

func TestIdentitiesThatAreNotRegistered(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	w.Register(t, "device", "device/taken")
	labels := map[string]string{}
	for i := range 65 {
		labels[strings.Repeat("k", i+1)] = "v"
	}
	before := rows(t, w, "identities")
	for _, c := range []struct {
		req  *brevetv1.CreateIdentityRequest
		code codes.Code
		rule pki.Rule
	}{
		{reserved("brevet/server"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("brevet"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("/brevet/va/1"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("Brevet/server"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("BREVET/operator/eve"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("spiffe://fleet.example/brevet/operator/eve"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("spiffe://fleet.example/bReVeT/x"), codes.PermissionDenied, pki.RuleReserved},
		{reserved("//brevet/server"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("./brevet/server"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("device/../brevet/server"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("%62revet/server"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("brevet%2fserver"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("SPIFFE://fleet.example/brevet/server"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("spiffe:///brevet/server"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("br\u00e9vet/\u0455erver"), codes.InvalidArgument, pki.RuleRequest},
		{reserved("device/"), codes.InvalidArgument, pki.RuleRequest},
		{reserved(strings.Repeat("a", 2049)), codes.InvalidArgument, pki.RuleRequest},
		{reserved("spiffe://other.example/device/1"), codes.InvalidArgument, pki.RuleTrustDomain},
		{&brevetv1.CreateIdentityRequest{Id: "x", Kind: "server"}, codes.PermissionDenied, pki.RuleReserved},
		{&brevetv1.CreateIdentityRequest{Id: "x", Kind: "va"}, codes.PermissionDenied, pki.RuleReserved},
		{&brevetv1.CreateIdentityRequest{Id: "x", Kind: "robot"}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "eve/../../server", Kind: "operator"}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "..", Kind: "operator"}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "", Kind: "operator"}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", Profile: "nothing"}, codes.InvalidArgument, pki.RuleProfile},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", Profile: "operator"}, codes.PermissionDenied, pki.RuleAccess},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", Profile: "ocsp"}, codes.PermissionDenied, pki.RuleAccess},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "operator", Profile: "device"}, codes.PermissionDenied, pki.RuleAccess},
		{&brevetv1.CreateIdentityRequest{Id: "device/taken", Kind: "workload"}, codes.FailedPrecondition, pki.RuleIdentityExists},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", Labels: labels}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", Labels: map[string]string{"a": "\n"}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", DnsNames: slices.Repeat([]string{"h.example"}, 10_000)}, codes.InvalidArgument, pki.RuleNames},
		{&brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", IpAddresses: slices.Repeat([]string{"192.0.2.1"}, 10_000)}, codes.InvalidArgument, pki.RuleNames},
		{named("*.fleet.example"), codes.InvalidArgument, pki.RuleNames},
		{named("a..b"), codes.InvalidArgument, pki.RuleNames},
		{named("a_b.example"), codes.InvalidArgument, pki.RuleNames},
		{named("192.0.2.1 "), codes.InvalidArgument, pki.RuleNames},
		{named("m\u00fcller.example"), codes.InvalidArgument, pki.RuleNames},
		{addressed("0.0.0.0"), codes.InvalidArgument, pki.RuleNames},
		{addressed("fe80::1%eth0"), codes.InvalidArgument, pki.RuleNames},
		{addressed("224.0.0.1"), codes.InvalidArgument, pki.RuleNames},
		{addressed("192.0.2.256"), codes.InvalidArgument, pki.RuleNames},
	} {
		_, err := w.Operator.CreateIdentity(t.Context(), c.req)
		if servertest.Refused(t, err, c.code, c.rule); t.Failed() {
			t.Fatalf("after %v", c.req)
		}
	}
	if n := rows(t, w, "identities"); n != before {
		t.Errorf("%d identities more are registered", n-before)
	}
}

func reserved(id string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: id, Kind: "device"}
}

func named(dns string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", DnsNames: []string{dns}}
}

func addressed(ip string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: "d", Kind: "device", IpAddresses: []string{ip}}
}

// A caller who hangs up before the refusal is written is in the log all the same.
func TestGivingUpKeepsNobodyOutOfTheLog(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	id := servertest.Must(pki.ParseSPIFFEID(device.ID))(t)
	r := ra.New(ra.Config{TrustDomain: servertest.TrustDomain, Records: w.Stores.RA, Clock: time.Now, Log: slog.New(slog.DiscardHandler)})
	defer r.Close(t.Context())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	refusal := pki.Refuse(pki.RuleClone, "", "two parties hold it")
	if err := r.Note(gone, pki.ActorIdentity(id), id, refusal); !isRefusal(err, refusal) {
		t.Errorf("Note returns %v", err)
	}
	entries := servertest.Find(w.Entries(t, 0), translog.RequestRefused, device.ID)
	if len(entries) != 1 || entries[0].Facts["rule"] != string(pki.RuleClone) {
		t.Errorf("the log has %+v", entries)
	}
}

func isRefusal(err error, want *pki.Refusal) bool {
	got, ok := pki.AsRefusal(err)
	return ok && got == want
}
