package rules

import (
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// NewIdentity returns an identity as it is recorded: registered, in revision 1.
func NewIdentity(id ra.Identity) ra.Identity {
	id.State, id.Revision, id.CreatedAt = pki.Registered, 1, id.CreatedAt.Truncate(time.Millisecond).UTC()
	return id
}

// CheckSameIdentity refuses to register an identity that is on record with another kind, profile, labels or names.
func CheckSameIdentity(have, want ra.Identity) error {
	if want.Kind == have.Kind && want.SameAttributes(have) {
		return nil
	}
	return pki.Refuse(pki.RuleIdentityExists, "choose another name, or register it with the particulars it has",
		"%s is registered with another kind, profile, labels or names", want.ID)
}

// UpdateIdentity returns an identity with another profile, labels and names, in the next revision, and reports whether
// they differ from those on record. If want has a revision, it must be the one on record.
func UpdateIdentity(have, want ra.Identity) (ra.Identity, bool, error) {
	if have.State == pki.Retired {
		return have, false, retired(have.ID)
	}
	if want.Revision != 0 {
		if err := have.CheckRevision(want.Revision); err != nil {
			return have, false, err
		}
	}
	if want.SameAttributes(have) {
		return have, false, nil
	}
	have.Profile, have.Labels = want.Profile, want.Labels
	have.DNSNames, have.IPAddresses = want.DNSNames, want.IPAddresses
	have.Revision++
	return have, true, nil
}

// LabelsFrozen returns the refusal to change an identity's labels while a bulk revocation selects by a label: the
// labels say which certificates it covers.
func LabelsFrozen() *pki.Refusal {
	return pki.Refuse(pki.RuleOverloaded, "ask again in a minute",
		"certificates are being revoked by a label, and labels do not change meanwhile")
}

// IdentityMove is what an order does to an identity.
type IdentityMove struct {
	State pki.IdentityState
	// Resumes is the state after a suspension; zero unless State is Suspended.
	Resumes pki.IdentityState
	// Changed reports whether the state differs from before. Then a new revision begins.
	Changed bool
	// Action is the order in the log.
	Action translog.Action
}

// MoveIdentity returns what an order does to an identity. Resumes is the state on record that a release resumes. A
// retired identity stays retired; a revocation leaves the state as it is unless it retires.
func MoveIdentity(o revocation.Change, from, resumes pki.IdentityState) (IdentityMove, error) {
	m := IdentityMove{State: from}
	switch {
	case o.Action == revocation.Revoke && o.State == pki.Retired:
		m.State, m.Action = pki.Retired, translog.IdentityRetired
	case o.Action == revocation.Revoke && o.Reason == pki.Superseded:
		m.Action = translog.IdentityReplaced
	case o.Action == revocation.Revoke:
		m.Action = translog.CertificateRevoked
	case from == pki.Retired:
		return m, retired(o.Identity)
	case o.Action == revocation.Hold:
		m.State, m.Action = pki.Suspended, translog.IdentitySuspended
	case o.Action == revocation.Unhold && from == pki.Suspended:
		m.State, m.Action = resumes, translog.IdentityResumed
	case o.Action == revocation.Unhold:
		return m, pki.Refuse(pki.RuleIdentityState, "leave it as it is", "%s is %s, not suspended", o.Identity, from)
	default:
		return m, fmt.Errorf("an order has no action %d", o.Action)
	}
	if m.Changed = m.State != from; m.Changed && m.State == pki.Suspended {
		m.Resumes = from
	}
	return m, nil
}

func retired(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleIdentityState, "register another identity", "%s is retired", id)
}
