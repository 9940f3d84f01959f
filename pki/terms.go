package pki

import (
	"slices"
	"time"
)

// Terms are what an enrollment requires of all certificates of the identity, until it enrolls again. They are those of
// the rule of the policy that granted the enrollment. The zero value requires nothing beyond the profile.
type Terms struct {
	// HardwareKey requires that the private keys are in hardware, and cannot leave it.
	HardwareKey bool
	// Keys are the types of keys that are allowed. If it is empty, only the profile limits them.
	Keys []KeyType
	// MaxLifetime is the maximum lifetime of a certificate. Zero means that only the profile limits it.
	MaxLifetime time.Duration
}

// And returns the terms that require what t and o require. It refuses terms that allow no type of keys in common.
func (t Terms) And(o Terms) (Terms, error) {
	both := Terms{HardwareKey: t.HardwareKey || o.HardwareKey, Keys: t.Keys, MaxLifetime: t.MaxLifetime}
	if o.MaxLifetime > 0 && (both.MaxLifetime == 0 || o.MaxLifetime < both.MaxLifetime) {
		both.MaxLifetime = o.MaxLifetime
	}
	switch {
	case len(o.Keys) == 0:
	case len(t.Keys) == 0:
		both.Keys = o.Keys
	default:
		both.Keys = slices.DeleteFunc(slices.Clone(t.Keys), func(k KeyType) bool { return !slices.Contains(o.Keys, k) })
		if len(both.Keys) == 0 {
			return both, Refuse(RuleKeyType, "ask an operator for a rule that allows one of "+JoinKeyTypes(t.Keys),
				"the rule allows only %s, and the enrollment only %s", JoinKeyTypes(o.Keys), JoinKeyTypes(t.Keys))
		}
	}
	return both, nil
}

// IsZero reports whether t is the zero value.
func (t Terms) IsZero() bool { return !t.HardwareKey && len(t.Keys) == 0 && t.MaxLifetime == 0 }
