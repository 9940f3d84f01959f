package server_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// The roles in protobuf.
const (
	admin     = brevetv1.OperatorRole_OPERATOR_ROLE_ADMIN
	registrar = brevetv1.OperatorRole_OPERATOR_ROLE_REGISTRAR
	revoker   = brevetv1.OperatorRole_OPERATOR_ROLE_REVOKER
	auditor   = brevetv1.OperatorRole_OPERATOR_ROLE_AUDITOR
)

// outOfScope is the refusal of a registrar whose label an identity lacks.
var outOfScope = result{codes.PermissionDenied, pki.RuleAccessLabel}

// rolesOfRPCs maps each RPC for operators to the roles that may call it.
var rolesOfRPCs = map[string]string{
	"brevet.v1.CertificateService.IssueCertificates":                "admin registrar",
	"brevet.v1.IdentityService.CreateIdentity":                      "admin registrar",
	"brevet.v1.IdentityService.GetIdentity":                         "admin registrar revoker auditor",
	"brevet.v1.IdentityService.ListIdentities":                      "admin registrar revoker auditor",
	"brevet.v1.IdentityService.UpdateIdentity":                      "admin registrar",
	"brevet.v1.IdentityService.SuspendIdentity":                     "admin revoker",
	"brevet.v1.IdentityService.ResumeIdentity":                      "admin revoker",
	"brevet.v1.IdentityService.RetireIdentity":                      "admin revoker",
	"brevet.v1.TokenService.CreateToken":                            "admin registrar",
	"brevet.v1.TokenService.ListTokens":                             "admin registrar revoker auditor",
	"brevet.v1.TokenService.RevokeToken":                            "admin revoker",
	"brevet.v1.ACMEService.CreateExternalKey":                       "admin registrar",
	"brevet.v1.ACMEService.ListExternalKeys":                        "admin registrar revoker auditor",
	"brevet.v1.ACMEService.RevokeExternalKey":                       "admin revoker",
	"brevet.v1.ACMEService.ListAccounts":                            "admin registrar revoker auditor",
	"brevet.v1.ACMEService.RevokeAccount":                           "admin revoker",
	"brevet.v1.CertificateService.GetCertificate":                   "admin registrar revoker auditor",
	"brevet.v1.CertificateService.ListCertificates":                 "admin registrar revoker auditor",
	"brevet.v1.RevocationService.RevokeCertificate":                 "admin revoker",
	"brevet.v1.RevocationService.HoldCertificate":                   "admin revoker",
	"brevet.v1.RevocationService.UnholdCertificate":                 "admin revoker",
	"brevet.v1.RevocationService.CreateBulkRevocation":              "admin revoker",
	"brevet.v1.RevocationService.GetBulkRevocation":                 "admin registrar revoker auditor",
	"brevet.v1.RevocationService.ListBulkRevocations":               "admin registrar revoker auditor",
	"brevet.v1.RotationService.StartRotation":                       "admin revoker",
	"brevet.v1.RotationService.GetRotation":                         "admin registrar revoker auditor",
	"brevet.v1.RotationService.ListRotations":                       "admin registrar revoker auditor",
	"brevet.v1.RotationService.StopRotation":                        "admin revoker",
	"brevet.v1.CRLService.ListCRLs":                                 "admin registrar revoker auditor",
	"brevet.v1.CRLService.ImportCRL":                                "admin",
	"brevet.v1.PolicyService.ApplyPolicy":                           "admin",
	"brevet.v1.PolicyService.GetPolicy":                             "admin auditor",
	"brevet.v1.PolicyService.ListPolicies":                          "admin auditor",
	"brevet.v1.PolicyService.ExplainPolicy":                         "admin auditor",
	"brevet.v1.LogService.ListEntries":                              "admin auditor",
	"brevet.v1.LogService.GetHead":                                  "admin auditor",
	"brevet.v1.StoreService.GetStats":                               "admin auditor",
	"grpc.reflection.v1.ServerReflection.ServerReflectionInfo":      "admin registrar revoker auditor",
	"grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": "admin registrar revoker auditor",
}

// TestEveryRPCForEveryRole calls each RPC as an operator with each role, and as one with two roles.
func TestEveryRPCForEveryRole(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	methods := listServed(t, w)
	for name := range methods {
		if r := rpcs[name]; (rolesOfRPCs[name] == "") != (r.anybody || r.identities) {
			t.Errorf("%s is missing in this test's table, or needs no role", name)
		}
	}
	for name, roles := range map[string][]brevetv1.OperatorRole{
		"admin": {admin}, "registrar": {registrar}, "revoker": {revoker}, "auditor": {auditor}, "registrar.revoker": {registrar, revoker},
	} {
		caller := w.NewOperatorAs(t, name, nil, roles...)
		for rpc, m := range methods {
			r := rpcs[rpc]
			want := r.admitted
			permits := func(role string) bool { return slices.Contains(strings.Fields(rolesOfRPCs[rpc]), role) }
			if !r.anybody && !r.identities && !slices.ContainsFunc(strings.Split(name, "."), permits) {
				want = denied
			}
			if r.renewing {
				continue // the caller's certificate may renew, whatever its roles
			}
			t.Run(name+"/"+rpc, func(t *testing.T) { servertest.Refused(t, invoke(t, caller.Conn, m), want.code, want.rule) })
		}
	}
}

// TestOperatorsAreChangedByAdmins has operators of each role register, update, suspend and enroll operators. They must
// not, although the RPCs are permitted for devices.
func TestOperatorsAreChangedByAdmins(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	target := w.NewOperatorAs(t, "target", nil, auditor)
	for name, role := range map[string]brevetv1.OperatorRole{"registrar": registrar, "revoker": revoker, "auditor": auditor} {
		caller := w.NewOperatorAs(t, name, nil, role)
		_, create := caller.CreateIdentity(t.Context(), &brevetv1.CreateIdentityRequest{Id: "mallory", Spec: &brevetv1.IdentitySpec{
			Kind: servertest.Kind("operator"), Roles: []brevetv1.OperatorRole{admin},
		}})
		_, promote := caller.UpdateIdentity(t.Context(), &brevetv1.UpdateIdentityRequest{
			Id: caller.ID, Revision: 2, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"roles"}},
			Spec: &brevetv1.IdentitySpec{Roles: []brevetv1.OperatorRole{admin}},
		})
		_, token := caller.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: w.Operator.ID, Replace: true})
		_, suspend := caller.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: target.ID})
		_, retire := caller.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: target.ID})
		_, resume := caller.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: target.ID})
		for what, err := range map[string]error{
			"create": create, "promote": promote, "token": token, "suspend": suspend, "retire": retire, "resume": resume,
		} {
			t.Log(name, what)
			servertest.Refused(t, err, denied.code, denied.rule)
		}
	}
	servertest.Must(target.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
}

// TestRegistrarsActWithinTheirLabels has a registrar with a label act on identities with and without it. An issue
// request without the label must not cost a signature.
func TestRegistrarsActWithinTheirLabels(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	line, other := map[string]string{"line": "3"}, map[string]string{"line": "4"}
	station := w.NewOperatorAs(t, "line-3", line, registrar)
	labeled := func(labels map[string]string) func(*brevetv1.CreateIdentityRequest) {
		return func(r *brevetv1.CreateIdentityRequest) { r.Spec.Labels = labels }
	}
	for name, c := range map[string]struct {
		labels map[string]string
		want   result
	}{"own": {line, fine}, "other": {other, outOfScope}, "none": {nil, outOfScope}} {
		_, create := station.CreateIdentity(t.Context(), &brevetv1.CreateIdentityRequest{
			Id: "device/new-" + name, Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind("device"), Labels: c.labels},
		})
		id := w.Register(t, "device", "device/"+name, labeled(c.labels))
		_, update := station.UpdateIdentity(t.Context(), &brevetv1.UpdateIdentityRequest{
			Id: id, Revision: 1, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}, Spec: &brevetv1.IdentitySpec{Labels: map[string]string{"line": "3", "batch": "7"}},
		})
		_, token := station.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: w.Register(t, "device", "device/token-"+name, labeled(c.labels))})
		registered := servertest.Order(t, w.Register(t, "device", "device/issue-"+name, labeled(c.labels)), servertest.Key(t))
		registered.Registration = nil
		unregistered := servertest.Order(t, "device/order-"+name, servertest.Key(t))
		unregistered.Registration.Labels = c.labels
		answers := station.Orders(t, registered, unregistered)
		_, issue := answers.Of(registered)
		_, register := answers.Of(unregistered)
		for what, err := range map[string]error{"create": create, "update": update, "token": token, "issue": issue, "register and issue": register} {
			t.Log(name, what)
			servertest.Refused(t, err, c.want.code, c.want.rule)
		}
		servertest.Must(station.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t) // may read all identities
	}
	if _, undelivered := onRecord(t, w); undelivered != 0 {
		t.Errorf("%d certificates were signed and refused", undelivered)
	}
}

// TestCallsUnderWayEndWithTheRole takes the role of a registrar, or changes its labels, while its changes are
// authorized and not yet in the store. The changes must fail.
func TestCallsUnderWayEndWithTheRole(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spec *brevetv1.IdentitySpec
		path string
		want result
	}{
		"role":  {&brevetv1.IdentitySpec{Roles: []brevetv1.OperatorRole{auditor}}, "roles", denied},
		"label": {&brevetv1.IdentitySpec{Labels: map[string]string{"line": "3"}}, "labels", outOfScope},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := &waitingStore{arrived: make(chan struct{}), release: make(chan struct{})}
			w := servertest.New(t, ground, servertest.Options{Wrap: store.wrap})
			former := w.NewOperatorAs(t, "former", nil, registrar)
			device := w.Register(t, "device", "device/1")
			seen := len(w.Entries(t, 0))
			store.of = former.ID
			var answers []chan error
			for _, call := range []func(ctx context.Context) error{
				func(ctx context.Context) error {
					_, err := former.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: "device/2", Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind("device")}})
					return err
				},
				func(ctx context.Context) error {
					_, err := former.CreateToken(ctx, &brevetv1.CreateTokenRequest{Identity: device})
					return err
				},
			} {
				answer := make(chan error, 1)
				answers = append(answers, answer)
				go func() { answer <- call(t.Context()) }()
				<-store.arrived
			}
			w.Update(t, former.ID, c.spec, c.path)
			close(store.release)
			for _, answer := range answers {
				servertest.Refused(t, <-answer, c.want.code, c.want.rule)
			}
			for _, e := range w.Entries(t, seen) {
				if e.Actor.String() == former.ID && e.Action != translog.RequestRefused {
					t.Errorf("the former registrar has made a change: %+v", e)
				}
			}
		})
	}
}

// TestIssueRequestsEndWithTheRole takes the role of an operator after the server has decided to issue the certificates
// that it requested, and before they are recorded. No certificate may be issued.
func TestIssueRequestsEndWithTheRole(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	factory := w.NewOperatorAs(t, "factory", nil, registrar)
	reqs := issueRequests(t, "device", 10)
	stream := servertest.Must(factory.IssueCertificates(t.Context()))(t)
	arrived, release := store.HoldRecords()
	for _, req := range reqs {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	<-arrived
	store.AwaitDecided(20) // two reads for each request, because each registers its identity
	w.Update(t, factory.ID, &brevetv1.IdentitySpec{Roles: []brevetv1.OperatorRole{revoker}}, "roles")
	release()
	late := servertest.Order(t, "device/late", servertest.Key(t))
	if err := stream.Send(late); err != nil {
		t.Fatal(err)
	}
	answers := servertest.Must(servertest.Deliver(t, stream))(t)
	delivered, _ := onRecord(t, w)
	for _, req := range append(reqs, late) {
		der, err := answers.Of(req)
		if len(der) > 0 || delivered[string(req.GetRequestId())] > 0 {
			t.Errorf("%s has a certificate, although its operator had lost its role", req.GetIdentity())
		}
		servertest.Refused(t, err, denied.code, denied.rule)
	}
}

// TestLogStreamEndsWithTheRole takes the role of an operator that follows the log.
func TestLogStreamEndsWithTheRole(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	reader := w.NewOperatorAs(t, "reader", nil, auditor)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream := servertest.Must(reader.ListEntries(ctx, &brevetv1.ListEntriesRequest{Follow: true}))(t)
	servertest.Must(stream.Recv())(t)
	w.Update(t, reader.ID, &brevetv1.IdentitySpec{Roles: []brevetv1.OperatorRole{revoker}}, "roles")
	var err error
	for err == nil {
		_, err = stream.Recv()
	}
	servertest.Refused(t, err, denied.code, denied.rule)
}
