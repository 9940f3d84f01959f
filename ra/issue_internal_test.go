package ra

import (
	"context"
	"errors"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// answeredMeanwhile is an issuer whose journal finds that the request was answered.
type answeredMeanwhile struct{ CA }

func (answeredMeanwhile) Issue(context.Context, *ca.Draft) (ca.Certificate, error) {
	return ca.Certificate{}, pki.Refuse(pki.RuleRequestIDReused, "ask again", "the request was answered")
}

// unreadable are records that cannot be read now.
type unreadable struct{ Store }

var errUnreadable = errors.New("the disk is away")

func (unreadable) IssuanceState(context.Context, IssuanceQuery) (IssuanceState, error) {
	return IssuanceState{}, errUnreadable
}

// A caller who hears that its request was used for another answer forgets the request, and its key. It must not hear
// that because the answer could not be read.
func TestAnAnswerThatCannotBeReadIsNotARefusal(t *testing.T) {
	r := &Registrar{ca: answeredMeanwhile{}, store: unreadable{}}
	if _, err := r.issue(t.Context(), nil, IssuanceQuery{}); !errors.Is(err, errUnreadable) {
		t.Errorf("the caller hears %v", err)
	}
}
