package server

import (
	"testing"

	"github.com/brevet-pki/brevet/server/authz"
)

func TestEveryOperationHasItsLane(t *testing.T) {
	for _, op := range authz.Operations() {
		w, waits := works[op]
		answersAtOnce := op == authz.CheckHealth || op == authz.ListHealth
		if waits == answersAtOnce || (op == authz.WatchHealth) != (w == watches) || op == authz.ReflectServices && w != logs {
			t.Errorf("%s waits in a queue: %v, %s", op, waits, w)
		}
	}
	for op, w := range works {
		access := authz.AccessOf(op)
		if access == authz.Nobody || sizes(1)[w].Slots == 0 {
			t.Errorf("%s is not served, or there is no queue for %s", op, w)
		}
		if (w == enrollments || w == compromises || w == watches) != (access == authz.Anybody) || w == revocations && access != authz.Operators {
			t.Errorf("%s: whoever may call it may fill the queue of %s", op, w)
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
