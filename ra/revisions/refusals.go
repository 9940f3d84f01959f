package revisions

import (
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
)

// maxRefusals is the maximum number of refused requests that are remembered.
const maxRefusals = 256

// refusals remembers the claims of requests that no rule has granted, so that an operator can find out why. Their facts
// can be personal data. So they are in memory only, no response contains them, and an actor has one request at most, the
// newest. refusals is safe for concurrent use.
type refusals struct {
	mu  sync.Mutex
	all []refusal // the newest last
}

// refusal is a refused request.
type refusal struct {
	claims   ra.Claims
	label    string // of EST; empty for none
	revision uint64 // that refused it
	at       time.Time
}

func (r *refusals) add(claims ra.Claims, label string, revision uint64, at time.Time) {
	if len(claims) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(other refusal) bool { return other.claims[0].Actor == claims[0].Actor })
	if len(r.all) == maxRefusals {
		r.all = slices.Delete(r.all, 0, 1)
	}
	r.all = append(r.all, refusal{claims, label, revision, at})
}

// find returns the newest request of an actor, or with a piece of evidence whose SHA-256 has the given hexadecimal digits.
func (r *refusals) find(request string) (refusal, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, refused := range slices.Backward(r.all) {
		if slices.ContainsFunc(refused.claims, func(c ra.KindClaim) bool {
			return c.Actor.String() == request || hex.EncodeToString(c.Digest[:]) == request
		}) {
			return refused, true
		}
	}
	return refusal{}, false
}

// remembering is a policy that remembers the requests that no rule grants.
type remembering struct {
	*policy.Policy
	refusals *refusals
}

// Grant implements ra.Policy.
func (p remembering) Grant(claims ra.Claims, label string, at time.Time) (ra.Grant, error) {
	g, err := p.Policy.Grant(claims, label, at)
	if r, ok := pki.AsRefusal(err); ok && r.Rule == pki.RulePolicy {
		p.refusals.add(claims, label, p.Revision(), at)
	}
	return g, err
}
