package ra

import (
	"context"
	"errors"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// answeredMeanwhile is a CA that refuses to issue because the request ID was used concurrently.
type answeredMeanwhile struct{ CA }

func (answeredMeanwhile) Issue(context.Context, *ca.Draft) (ca.Certificate, error) {
	return ca.Certificate{}, pki.Refuse(pki.RuleRequestIDReused, "repeat the request", "the request ID was used")
}

// unreadable is a store whose IssuanceState fails.
type unreadable struct{ Store }

var errUnreadable = errors.New("disk unavailable")

func (unreadable) IssuanceState(context.Context, IssuanceQuery) (IssuanceState, error) {
	return IssuanceState{}, errUnreadable
}

// A client that gets request_id.reused discards its request ID and key. It must not get this refusal only because the prior
// certificate could not be read.
func TestUnreadablePriorIssuanceIsNotRefusal(t *testing.T) {
	r := &Registrar{ca: answeredMeanwhile{}, store: unreadable{}}
	if _, err := r.issue(t.Context(), nil, IssuanceQuery{}); !errors.Is(err, errUnreadable) {
		t.Errorf("the error is %v, want errUnreadable", err)
	}
}
