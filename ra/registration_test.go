package ra_test

import (
	"context"
	"fmt"
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
		{device("device/"), codes.InvalidArgument, pki.RuleRequest},
		{device(strings.Repeat("a", 2049)), codes.InvalidArgument, pki.RuleRequest},
		{device("spiffe://other.example/device/1"), codes.InvalidArgument, pki.RuleTrustDomain},
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

func device(id string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: id, Kind: "device"}
}

// spellings of names under /brevet/, and what refuses them where they would be given to somebody: those that are read as such, and
// those that a reader could take for them.
var spellings = map[string]pki.Rule{
	"brevet/server": pki.RuleReserved, "/brevet/va/1": pki.RuleReserved, "brevet": pki.RuleReserved, "brevet/operator/eve": pki.RuleReserved,
	"Brevet/server": pki.RuleReserved, "BREVET/operator/eve": pki.RuleReserved, "brevet/operator/alice/x": pki.RuleReserved,
	"spiffe://fleet.example/brevet/server": pki.RuleReserved, "spiffe://fleet.example/bReVeT/x": pki.RuleReserved,
	"//brevet/server": pki.RuleRequest, "brevet//server": pki.RuleRequest, "brevet/server/": pki.RuleRequest, "brevet/": pki.RuleRequest,
	"./brevet/server": pki.RuleRequest, "device/../brevet/server": pki.RuleRequest, "brevet/./server": pki.RuleRequest,
	"%62revet/server": pki.RuleRequest, "brevet%2fserver": pki.RuleRequest, "%2Fbrevet/server": pki.RuleRequest, "brevet\\server": pki.RuleRequest,
	"brevet/server?x": pki.RuleRequest, "brevet/server#x": pki.RuleRequest, "brevet;/server": pki.RuleRequest, "brevet/server\x00": pki.RuleRequest,
	"SPIFFE://fleet.example/brevet/server": pki.RuleRequest, "spiffe://FLEET.example/brevet/server": pki.RuleRequest, "spiffe:///brevet/server": pki.RuleRequest,
	"spiffe:/brevet/server": pki.RuleRequest, "spiffe:brevet/server": pki.RuleRequest, "spiffe://x@fleet.example/brevet/server": pki.RuleRequest,
	"spiffe://fleet.example:1/brevet/server": pki.RuleRequest, "spiffe://fleet.example//brevet/server": pki.RuleRequest,
	"br\u00e9vet/\u0455erver": pki.RuleRequest, "br\u0435vet/server": pki.RuleRequest, "\uff42revet/server": pki.RuleRequest, "\u200bbrevet/server": pki.RuleRequest,
	"spiffe://other.example/brevet/server": pki.RuleTrustDomain,
}

// Whatever is done with an identity of Brevet's own, in whatever spelling, is refused, and nothing is left behind.
func TestNobodyIsCalledLikeBrevet(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	op, ctx := w.Operator, t.Context()
	before := fmt.Sprint(rows(t, w, "identities"), rows(t, w, "tokens"), rows(t, w, "certificates"))
	states := rows(t, w, "certificates WHERE state <> 1")
	for name, rule := range spellings {
		create := func(kind string) error {
			_, err := op.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: name, Kind: kind})
			return err
		}
		order := func(r *brevetv1.Registration) error {
			req := servertest.Order(t, name, servertest.Key(t))
			req.Registration = r
			_, err := op.Orders(t, req).Of(req)
			return err
		}
		_, suspend := op.SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: name})
		_, resume := op.ResumeIdentity(ctx, &brevetv1.ResumeIdentityRequest{Id: name})
		_, retire := op.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: name})
		_, token := op.CreateToken(ctx, &brevetv1.CreateTokenRequest{Id: name, Replace: true})
		for way, err := range map[string]error{
			"device": create("device"), "workload": create("workload"), "order": order(nil), "order of a device": order(&brevetv1.Registration{Kind: "device"}),
			"suspend": suspend, "resume": resume, "retire": retire, "token": token,
			"server": create("server"), "va": create("va"), "order of a server": order(&brevetv1.Registration{Kind: "server"}),
		} {
			switch got := servertest.RuleOf(err); {
			case got == rule:
			case got == pki.RuleReserved && (way == "server" || way == "va"): // which make themselves
			case got == pki.RuleIdentity && rule == pki.RuleReserved && slices.Contains([]string{"suspend", "resume", "retire", "token"}, way): // nobody has it
			default:
				t.Errorf("%s %q: %v, want %s", way, name, err, rule)
			}
		}
	}
	if after := fmt.Sprint(rows(t, w, "identities"), rows(t, w, "tokens"), rows(t, w, "certificates")); after != before {
		t.Errorf("identities, tokens and certificates: %s are on record, want %s", after, before)
	}
	if n := rows(t, w, "certificates WHERE state <> 1"); n != states {
		t.Errorf("%d certificates are revoked", n-states)
	}
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
