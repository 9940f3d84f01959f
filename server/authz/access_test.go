package authz

import (
	"errors"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestOperationsOutsideTheTableAreDenied(t *testing.T) {
	a := New(Config{})
	for _, op := range []Operation{"", "DeleteIdentity", "enroll", "/brevet.v1.EnrollmentService/Enroll"} {
		for _, check := range []func() (Caller, error){
			func() (Caller, error) { return a.Authenticate(op, nil) },
			func() (Caller, error) { return a.Authorize(t.Context(), op, nil) },
		} {
			c, err := check()
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleMethod || !errors.Is(err, ErrNoOperation) || c != (Caller{}) {
				t.Errorf("%q: %v by %v, want %s", op, err, c, pki.RuleMethod)
			}
		}
	}
}
