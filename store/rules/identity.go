package rules

import (
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// NewIdentity returns the record of a new identity: registered, with revision 1 and without terms.
func NewIdentity(id ra.Identity) ra.Identity {
	id.State, id.Revision, id.CreatedAt = pki.Registered, 1, id.CreatedAt.Truncate(time.Millisecond).UTC()
	id.Terms = pki.Terms{}
	return id
}

// CheckAttributes refuses texts of an identity that the registration authority does not accept. A text in an index of
// PostgreSQL has at most some 2,700 bytes.
func CheckAttributes(id ra.Identity) error {
	if err := errors.Join(pki.CheckProfileName(id.Profile), pki.CheckText("the name of the rule", id.Rule)); err != nil {
		return err
	}
	return CheckLabels(id.Labels)
}

// CheckLabels refuses labels whose texts the registration authority does not accept.
func CheckLabels(labels map[string]string) error {
	for name, value := range labels {
		if err := errors.Join(pki.CheckText("a label's name", name), pki.CheckText("a label's value", value)); err != nil {
			return err
		}
	}
	return nil
}

// CheckSameIdentity refuses to register an identity that is on record with another kind, profile, labels, names, roles
// or subject of evidence, or that is retired. If want has no subject, have may have any, such as that of the evidence with which it was
// enrolled.
func CheckSameIdentity(have, want ra.Identity) error {
	if have.State == pki.Retired {
		return pki.Refuse(pki.RuleIdentityState, "register another name", "%s is retired", have.ID)
	}
	if want.Subject.IsZero() {
		want.Subject = have.Subject
	}
	if !have.Subject.IsZero() && want.Subject != have.Subject {
		return want.ID.EvidenceConflict()
	}
	if want.Kind == have.Kind && want.SameAttributes(have) {
		return nil
	}
	return pki.Refuse(pki.RuleIdentityExists, "choose another name, or repeat the registration with the same attributes",
		"%s is registered with another kind, profile, labels, names, roles or evidence", want.ID)
}

// CheckSubjectFree refuses a subject of evidence that the identity holder is tied to. A zero holder means that no other
// identity is.
func CheckSubjectFree(holder pki.SPIFFEID) *pki.Refusal {
	if holder.IsZero() {
		return nil
	}
	return pki.Refuse(pki.RuleEvidenceConflict,
		"use that identity; if the device changed hands, an operator frees it (brevet identity update --evidence none)",
		"the evidence belongs to another identity, %s", holder)
}

// CheckTotal refuses a new identity if its rule has registered its total before. registered is the number of identities
// that the rule has registered. It need not be read if n has no rule or no total.
func CheckTotal(n ra.Registration, registered int) *pki.Refusal {
	if n.Rule == "" || n.Total == 0 || registered < n.Total {
		return nil
	}
	return pki.Refuse(pki.RulePolicyLimit, "an operator raises limits.total of the rule, if more devices are to enroll (brevet policy apply)",
		"rule %s has registered %d identities, and may register %d", n.Rule, registered, n.Total)
}

// UpdateIdentity returns the next revision of have, with the profile, labels, names, roles and subject of want. It
// returns false if these are equal already. If want.Revision is not zero, it must be the revision of have. The only
// change of a retired identity is to remove its subject.
func UpdateIdentity(have, want ra.Identity) (ra.Identity, bool, error) {
	if err := CheckAttributes(want); err != nil {
		return have, false, err
	}
	if have.State == pki.Retired {
		freed := have
		if freed.Subject = (pki.EvidenceSubject{}); !want.SameAttributes(freed) {
			return have, false, retired(have.ID)
		}
	}
	if want.Revision != 0 {
		if err := have.CheckRevision(want.Revision); err != nil {
			return have, false, err
		}
	}
	if want.SameAttributes(have) {
		return have, false, nil
	}
	have.Profile, have.Labels, have.Roles = want.Profile, want.Labels, want.Roles
	have.DNSNames, have.IPAddresses, have.Subject = want.DNSNames, want.IPAddresses, want.Subject
	have.Revision++
	return have, true, nil
}

// LabelsFrozen returns the refusal to change an identity's labels while a bulk revocation that selects by a label is open.
// A change would add members to it, or remove them.
func LabelsFrozen() *pki.Refusal {
	return pki.Refuse(pki.RuleOverloaded, "retry in a minute",
		"labels cannot change while a bulk revocation that selects by a label is in progress")
}

// IdentityMove is the effect of a change on an identity.
type IdentityMove struct {
	State pki.IdentityState
	// Resumes is the state to restore after a suspension. It is zero unless State is Suspended.
	Resumes pki.IdentityState
	// Changed is true if the state differs from the previous one. Then the revision grows.
	Changed bool
	// Action is the action of the log entry.
	Action translog.Action
}

// MoveIdentity returns the effect of the change o on an identity with the state from. The state that an unhold restores
// is resumes. A retired identity stays retired. A revocation changes the state only if it retires the identity. An
// operator cannot suspend or retire itself.
func MoveIdentity(o revocation.Change, from, resumes pki.IdentityState) (IdentityMove, error) {
	m := IdentityMove{State: from}
	caller, ends := o.Actor.Caller(), o.State == pki.Suspended || o.State == pki.Retired
	if ends && !caller.IsZero() && caller.Identity == o.Identity {
		return m, ownAdmin(o.Identity)
	}
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
		return m, pki.Refuse(pki.RuleIdentityState, "resume only suspended identities", "%s is %s, not suspended", o.Identity, from)
	default:
		return m, fmt.Errorf("unknown action %d", o.Action)
	}
	if m.Changed = m.State != from; m.Changed && m.State == pki.Suspended {
		m.Resumes = from
	}
	return m, nil
}

func retired(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleIdentityState, "register another identity", "%s is retired", id)
}
