package pki

// Guard holds the conditions under which a certificate may be recorded. The policy checks them when it decides. In the
// transaction that records the certificate, the store checks them again and consumes the token. A zero field means that
// its condition is not checked. Key is always set.
type Guard struct {
	// Identity must exist, have revision Revision, and be in a state that may hold certificates. Each change of the
	// identity increments its revision, so that a decision made before the change fails after it.
	Identity SPIFFEID
	Revision uint64
	// Enrolls means that this certificate enrolls the identity: the state becomes enrolled, in a new revision.
	Enrolls bool
	// Token must be valid, unused and bound to this request. Recording the certificate marks it as used.
	Token TokenID
	// Predecessor must be recorded and not revoked, and must not have been renewed with another key.
	Predecessor CertRef
	// Renewed means that, at the decision, the predecessor had been renewed with this key. If it is false, the predecessor
	// must still have no successor.
	Renewed bool
	// MaxUnexpired is the maximum number of unexpired certificates of the identity, in any state. The new certificate
	// counts.
	MaxUnexpired int
	// Supersedes means that the same transaction revokes the predecessor with reason superseded. It has no effect without
	// a predecessor.
	Supersedes bool
	// Key must not be recorded as compromised, belong to a CA, or be certified for another identity.
	Key KeyHash
}

// CheckMayHold returns a refusal if an identity in a state may not hold certificates, or nil.
func (s SPIFFEID) CheckMayHold(state IdentityState) *Refusal {
	if state == Registered || state == Enrolled {
		return nil
	}
	return Refuse(RuleIdentityState, "ask an operator", "%s is %s", s, state)
}

// CheckRenewable returns a refusal if a certificate with this status may not be renewed, or nil if the status is good.
func (r CertRef) CheckRenewable(s Status) *Refusal {
	if s.State == Good {
		return nil
	}
	return Refuse(RuleRevoked,
		"ask an operator: a held certificate can be taken off hold, a revoked one needs a new enrollment",
		"the certificate to renew, %s, is %s (%s)", r.Serial, s.State.Predicate(), s.Reason)
}

// Cloned returns the refusal of a renewal whose key differs from the key of an earlier renewal of the same certificate.
func (r CertRef) Cloned() *Refusal {
	return Refuse(RuleRenewalKeyConflict,
		"find out who holds a copy of the credential, then enroll with a token made with --replace",
		"certificate %s was renewed before, with another key: two parties hold it", r.Serial)
}

// CheckUnexpired returns a refusal if an identity with n unexpired certificates may not get another one, or nil.
func (g Guard) CheckUnexpired(id SPIFFEID, n int) *Refusal {
	if g.MaxUnexpired == 0 || n < g.MaxUnexpired {
		return nil
	}
	return Refuse(RuleMaxUnexpired, "wait until some have expired, or raise max_unexpired of the profile",
		"%s has %d unexpired certificates, and may have %d", id, n, g.MaxUnexpired)
}
