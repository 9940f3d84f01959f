package outcome

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
)

func TestEveryClassHasItsStatus(t *testing.T) {
	for _, rule := range pki.Rules() {
		if _, ok := classes[rule.Class()]; !ok {
			t.Errorf("the class of %s is not in the table", rule)
		}
		if s := Of(rule); s.GRPC == codes.OK || s.HTTP < 400 || s.HTTP > 599 || s.ACME == "" {
			t.Errorf("%s is reported as %+v", rule, s)
		}
	}
	if s := Of("made.up"); s != classes[pki.InvalidArgument] {
		t.Errorf("an unknown rule is reported as %+v", s)
	}
}

func TestProblemsAreOfRules(t *testing.T) {
	known := map[pki.Rule]bool{}
	for _, rule := range pki.Rules() {
		known[rule] = true
	}
	for rule, problem := range problems {
		if !known[rule] || Of(rule).ACME != problem {
			t.Errorf("%s, reported as %s, is not a rule", rule, problem)
		}
	}
}
