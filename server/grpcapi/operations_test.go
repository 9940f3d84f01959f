package grpcapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/authz"
)

// served returns the full method of every RPC that the server registers.
func served(t *testing.T) map[string]bool {
	t.Helper()
	methods := map[string]bool{}
	s := New(Config{}, Services{})
	t.Cleanup(s.Close)
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = true
		}
	}
	return methods
}

// overHTTPS are the operations that only protocols over HTTPS have.
var overHTTPS = []authz.Operation{authz.GetESTCACertificates, authz.GetESTAttributes, authz.RefuseESTOperation}

func TestAccessTableIsWhatIsServed(t *testing.T) {
	methods, used := served(t), map[authz.Operation]bool{}
	for m := range methods {
		if authz.AccessOf(operations[m]).Callers == authz.Nobody {
			t.Errorf("%s is served, and open to nobody: map it to an operation, and give that its row in the access table", m)
		}
	}
	for m, op := range operations {
		used[op] = true
		if !methods[m] {
			t.Errorf("%s has the operation %s, and is not served", m, op)
		}
		if name := m[strings.LastIndex(m, "/")+1:]; strings.HasPrefix(m, "/brevet.v1.") && string(op) != name {
			t.Errorf("%s has the operation %s", m, op)
		}
	}
	for _, op := range authz.Operations() {
		if used[op] == (slices.Contains(overHTTPS, op) || strings.HasPrefix(string(op), "ACME")) {
			t.Errorf("%s is in the access table: give it either an RPC, or a route of a door over HTTPS", op)
		}
	}
}

func TestMethodsThatAreNotServedAreDenied(t *testing.T) {
	a := authz.New(authz.Config{})
	for _, m := range []string{"", "/", "/brevet.v1.IdentityService/DeleteIdentity", "/brevet.v1.EnrollmentService/enroll", "brevet.v1.EnrollmentService/Enroll"} {
		_, err := a.Authenticate(operations[m], nil)
		if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleMethod {
			t.Errorf("%q: %v, want %s", m, err, pki.RuleMethod)
		}
	}
}

func TestTracedCallsAreOurs(t *testing.T) {
	for m, want := range map[string]bool{
		"/brevet.v1.EnrollmentService/Enroll": true, "/brevet.v1.EnrollmentService/MadeUp": false, "/grpc.health.v1.Health/Check": false,
	} {
		if Traced(m) != want {
			t.Errorf("%s is traced: %v", m, !want)
		}
	}
	if rpc := rpcOf("/a/" + strings.Repeat("b", 5000)); rpc != unknownRPC {
		t.Errorf("a method that is made up counts as %s", rpc)
	}
}
