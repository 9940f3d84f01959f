package server

import (
	"strings"
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

func TestEveryRPCHasItsLane(t *testing.T) {
	for m := range access {
		w, waits := works[m]
		watch, reflects := strings.HasSuffix(m, "/Watch"), strings.HasSuffix(m, "/ServerReflectionInfo") // others answer at once
		if waits != (watch || reflects || strings.HasPrefix(m, "/brevet.v1.")) || watch != (w == watches) || reflects && w != logs {
			t.Errorf("%s waits in a lane: %v, %s", m, waits, w)
		}
	}
	for m, w := range works {
		if access[m] == nobody || sizes(1)[w].Slots == 0 {
			t.Errorf("%s is not served, or there is no lane for %s", m, w)
		}
		if (w == enrollments || w == compromises || w == watches) != (access[m] == anybody) || w == revocations && access[m] != operators {
			t.Errorf("%s: whoever may call it may fill the lane of %s", m, w)
		}
	}
}

// What is let in fits into the issuing pipeline, which would turn away the rest without a thought for who it is.
func TestLanesFitThePipeline(t *testing.T) {
	const pipeline, mostSessions = 1024, 256 // package ca maxInFlight, package hsm MaxSessions
	for sessions := range mostSessions {
		s := sizes(sessions + 1)
		if issuing := s[enrollments].Slots + s[renewals].Slots; issuing > pipeline || s[enrollments].Slots*2 > s[renewals].Slots {
			t.Errorf("with %d sessions, %d enrollments and %d renewals are at work", sessions+1, s[enrollments].Slots, s[renewals].Slots)
		}
	}
}

func TestWhatIsNotInTheTableIsDenied(t *testing.T) {
	g := &gate{}
	for _, m := range []string{"", "/", "/brevet.v1.IdentityService/DeleteIdentity", "/brevet.v1.EnrollmentService/enroll", "brevet.v1.EnrollmentService/Enroll"} {
		_, err := g.enter(t.Context(), m)
		if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleMethod {
			t.Errorf("%q: %v, want %s", m, err, pki.RuleMethod)
		}
	}
}
