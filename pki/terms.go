package pki

import "time"

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

// IsZero reports whether t is the zero value.
func (t Terms) IsZero() bool { return !t.HardwareKey && len(t.Keys) == 0 && t.MaxLifetime == 0 }
