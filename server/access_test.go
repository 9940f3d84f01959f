package server

import (
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// served is every RPC that the server registers.
func served() map[string]bool {
	methods := map[string]bool{}
	g := new(Server).newGRPC()
	defer g.Stop()
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = true
		}
	}
	return methods
}

func TestAccessTableIsWhatIsServed(t *testing.T) {
	methods := served()
	for m := range methods {
		if access[m] == nobody {
			t.Errorf("%s is served, and nobody may call it: put it in the table", m)
		}
	}
	for m := range access {
		if !methods[m] {
			t.Errorf("%s is in the table, and not served", m)
		}
	}
}

func TestWhatIsNotInTheTableIsDenied(t *testing.T) {
	g := &gate{}
	for _, m := range []string{"", "/", "/brevet.v1.IdentityService/DeleteIdentity", "/brevet.v1.EnrollmentService/enroll", "brevet.v1.EnrollmentService/Enroll"} {
		_, err := g.enter(t.Context(), m)
		if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleAccess {
			t.Errorf("%q: %v, want %s", m, err, pki.RuleAccess)
		}
	}
}
