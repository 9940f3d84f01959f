package ra

import (
	"errors"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// A request is decided again only if its identity has changed, and a limited number of times.
func TestRepeatStale(t *testing.T) {
	t.Parallel()
	stale, other := pki.Refuse(pki.RuleIdentityStale, "", "changed"), pki.Refuse(pki.RuleIdentityState, "", "suspended")
	for name, c := range map[string]struct {
		errs []error // of each decision
		want error
	}{
		"at once":          {[]error{nil}, nil},
		"after a change":   {[]error{stale, nil}, nil},
		"after two":        {[]error{stale, stale, nil}, nil},
		"always changed":   {[]error{stale, stale, stale}, stale},
		"refused":          {[]error{other}, other},
		"changed, refused": {[]error{stale, other}, other},
	} {
		decisions := 0
		_, err := repeatStale(func() (ca.Certificate, error) {
			decisions++
			return ca.Certificate{}, c.errs[decisions-1]
		})
		if !errors.Is(err, c.want) || decisions != len(c.errs) {
			t.Errorf("%s: %d decisions, and the error is %v", name, decisions, err)
		}
	}
}
