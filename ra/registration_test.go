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

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

func TestCreateIdentityRefuses(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: commonNames})
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
		{&brevetv1.CreateIdentityRequest{Id: "x", Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind("server")}}, codes.PermissionDenied, pki.RuleReserved},
		{&brevetv1.CreateIdentityRequest{Id: "x", Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind("va")}}, codes.PermissionDenied, pki.RuleReserved},
		{&brevetv1.CreateIdentityRequest{Id: "x", Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind("robot")}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "eve/../../server", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "..", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "nothing"}}, codes.InvalidArgument, pki.RuleProfile},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "operator"}}, codes.PermissionDenied, pki.RuleAccess},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "ocsp"}}, codes.PermissionDenied, pki.RuleAccess},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR, Profile: "device"}}, codes.PermissionDenied, pki.RuleAccess},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR, Roles: []brevetv1.OperatorRole{0}}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR, Roles: []brevetv1.OperatorRole{99}}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Roles: []brevetv1.OperatorRole{brevetv1.OperatorRole_OPERATOR_ROLE_ADMIN}}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "device/taken", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD}}, codes.FailedPrecondition, pki.RuleIdentityExists},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: labels}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: map[string]string{"a": "\n"}}}, codes.InvalidArgument, pki.RuleRequest},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Names: servertest.Names(slices.Repeat([]string{"h.example"}, 10_000), nil)}}, codes.InvalidArgument, pki.RuleNames},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Names: servertest.Names(nil, slices.Repeat([]string{"192.0.2.1"}, 10_000))}}, codes.InvalidArgument, pki.RuleNames},
		{named("*.fleet.example"), codes.InvalidArgument, pki.RuleNames},
		{named("a..b"), codes.InvalidArgument, pki.RuleNames},
		{named("a_b.example"), codes.InvalidArgument, pki.RuleNames},
		{named("192.0.2.1 "), codes.InvalidArgument, pki.RuleNames},
		{named("m\u00fcller.example"), codes.InvalidArgument, pki.RuleNames},
		{addressed("0.0.0.0"), codes.InvalidArgument, pki.RuleNames},
		{addressed("fe80::1%eth0"), codes.InvalidArgument, pki.RuleNames},
		{addressed("224.0.0.1"), codes.InvalidArgument, pki.RuleNames},
		{addressed("192.0.2.256"), codes.InvalidArgument, pki.RuleNames},
		{named("10.0.0.1"), codes.InvalidArgument, pki.RuleNames}, // inet_aton(3) parses this and the next as an address
		{named("127.1"), codes.InvalidArgument, pki.RuleNames},
		{named("2130706433"), codes.InvalidArgument, pki.RuleNames},
		{named("0177.0.0.1"), codes.InvalidArgument, pki.RuleNames},
		{named("0x7f.1"), codes.InvalidArgument, pki.RuleNames},
		{named("127.0.0.0x1"), codes.InvalidArgument, pki.RuleNames},
		{named("0X7F000001"), codes.InvalidArgument, pki.RuleNames},
		{named("pump.0x"), codes.InvalidArgument, pki.RuleNames},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "client", Names: servertest.Names([]string{"d.example"}, nil)}}, codes.InvalidArgument, pki.RuleNames},
		{&brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "client", Names: servertest.Names(nil, []string{"192.0.2.1"})}}, codes.InvalidArgument, pki.RuleNames},
		{workload("bank.example"), codes.InvalidArgument, pki.RuleNames},
		{workload("bank.example", "www.bank.example"), codes.InvalidArgument, pki.RuleNames},
		{workload("bank.example.", "bank.example"), codes.InvalidArgument, pki.RuleNames},
		{workload("10.0.0.1"), codes.InvalidArgument, pki.RuleNames},
		{workload("127.1"), codes.InvalidArgument, pki.RuleNames},
		{workload("localhost"), codes.InvalidArgument, pki.RuleNames},
		{workload("a_b.example"), codes.InvalidArgument, pki.RuleNames}, // not a host name, but clients would compare it
		{workload("web/" + strings.Repeat("x", 61)), codes.InvalidArgument, pki.RuleNames},
	} {
		_, err := w.Operator.CreateIdentity(t.Context(), c.req)
		if servertest.Refused(t, err, c.code, c.rule); t.Failed() {
			t.Fatalf("the request was %v", c.req)
		}
	}
	if n := rows(t, w, "identities"); n != before {
		t.Errorf("%d identities were added", n-before)
	}
}

// commonNames configures the profile of workloads to put the path in the common name.
func commonNames(name string, c *ca.ProfileConfig) {
	if name == "workload" {
		c.Subject = "common_name"
	}
}

func workload(id string, dns ...string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: id, Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD, Names: servertest.Names(dns, nil)}}
}

// A path that looks like a host name can be a common name if it was granted as a DNS name. A host name can contain digits.
func TestCreateIdentityAcceptsNames(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: commonNames})
	for _, req := range []*brevetv1.CreateIdentityRequest{
		workload("bank.example", "bank.example"), workload("Shop.example", "shop.example", "www.shop.example"),
		{Id: "10.0.0.1", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD, Names: servertest.Names(nil, []string{"10.0.0.1"})}}, workload("web/" + strings.Repeat("x", 60)),
		device("bank.example.and.no.common.name"), device(strings.Repeat("x", 2000)),
		named("1.fleet.example"), named("0x7f.fleet.example"), named("7.x7"), named("0xyz"), named("3com.example"), named("x0"),
	} {
		if _, err := w.Operator.CreateIdentity(t.Context(), req); err != nil && servertest.RuleOf(err) != pki.RuleIdentityExists {
			t.Errorf("%v: %v", req, err)
		}
	}
}

// If a profile changes to common_name, identities registered earlier may have paths that it does not allow. Their requests are
// refused, and the hint names the fix.
func TestProfileChangesToCommonName(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	bank, other := w.Enrolled(t, "workload", "bank.example"), w.Enrolled(t, "workload", "web/1")
	w.Restart(t, servertest.Options{Profile: commonNames})
	bank, other = w.Holder(t, bank.Certificate.Raw, bank.Key), w.Holder(t, other.Certificate.Raw, other.Key)
	_, err := bank.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleNames)
	if renewed := w.Renewed(t, other, servertest.Key(t)); subjectOf(t, renewed.Certificate) != "CN = web/1" {
		t.Errorf("the subject is %s", renewed.Certificate.Subject)
	}
}

func device(id string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: id, Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}}
}

// spellings maps names under /brevet/, and names that look like them, to the rule that refuses them.
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

// Every operation on a reserved identity is refused, in every spelling, and changes no record.
func TestReservedNamesAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	op, ctx := w.Operator, t.Context()
	before := fmt.Sprint(rows(t, w, "identities"), rows(t, w, "tokens"), rows(t, w, "certificates"))
	states := rows(t, w, "certificates WHERE state <> 1")
	for name, rule := range spellings {
		create := func(kind string) error {
			_, err := op.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: name, Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind(kind)}})
			return err
		}
		order := func(r *brevetv1.IdentitySpec) error {
			req := servertest.Order(t, name, servertest.Key(t))
			req.Registration = r
			_, err := op.Orders(t, req).Of(req)
			return err
		}
		_, suspend := op.SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: name})
		_, resume := op.ResumeIdentity(ctx, &brevetv1.ResumeIdentityRequest{Id: name})
		_, retire := op.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: name})
		_, token := op.CreateToken(ctx, &brevetv1.CreateTokenRequest{Identity: name, Replace: true})
		for way, err := range map[string]error{
			"device": create("device"), "workload": create("workload"), "order": order(nil), "order of a device": order(&brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}),
			"suspend": suspend, "resume": resume, "retire": retire, "token": token,
			"server": create("server"), "va": create("va"), "order of a server": order(&brevetv1.IdentitySpec{Kind: servertest.Kind("server")}),
		} {
			switch got := servertest.RuleOf(err); {
			case got == rule:
			case got == pki.RuleReserved && (way == "server" || way == "va"): // only the server registers these
			case got == pki.RuleIdentity && rule == pki.RuleReserved && slices.Contains([]string{"suspend", "resume", "retire", "token"}, way): // not registered
			default:
				t.Errorf("%s %q: %v, want %s", way, name, err, rule)
			}
		}
	}
	if after := fmt.Sprint(rows(t, w, "identities"), rows(t, w, "tokens"), rows(t, w, "certificates")); after != before {
		t.Errorf("numbers of identities, tokens and certificates: %s, want %s", after, before)
	}
	if n := rows(t, w, "certificates WHERE state <> 1"); n != states {
		t.Errorf("%d certificates were revoked, want 0", n-states)
	}
}

func named(dns string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Names: servertest.Names([]string{dns}, nil)}}
}

func addressed(ip string) *brevetv1.CreateIdentityRequest {
	return &brevetv1.CreateIdentityRequest{Id: "d", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Names: servertest.Names(nil, []string{ip})}}
}

// A refusal is written to the log even if the caller cancels the request first.
func TestRefusalIsLoggedAfterCancellation(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	id := servertest.Must(pki.ParseSPIFFEID(device.ID))(t)
	r := audit.New(w.Stores.Audit, time.Now, slog.New(slog.DiscardHandler))
	defer r.Close(t.Context())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	refusal := pki.Refuse(pki.RuleRenewalKeyConflict, "", "two parties hold it")
	if err := r.Record(gone, pki.ActorIdentity(id), id, refusal); !isRefusal(err, refusal) {
		t.Errorf("Record returned %v", err)
	}
	entries := servertest.Find(w.Entries(t, 0), translog.RequestRefused, device.ID)
	if len(entries) != 1 || entries[0].Facts()["rule"] != string(pki.RuleRenewalKeyConflict) {
		t.Errorf("the log has %+v", entries)
	}
}

func isRefusal(err error, want *pki.Refusal) bool {
	got, ok := pki.AsRefusal(err)
	return ok && got == want
}
