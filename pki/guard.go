package pki

// Guard is what must still hold when a certificate is recorded: the Policy found it true when it decided, and the
// store checks it again, and consumes what can be used only once, in the transaction that records the certificate.
// A zero field guards nothing, except Key, which is always set.
type Guard struct {
	// Identity must exist, in generation Generation and in a state that may hold certificates. Every enrollment,
	// suspension, resumption and retirement starts a new generation, so a decision made before one of them fails
	// after it.
	Identity SPIFFEID
	Revision uint64
	// Enrolls says that this certificate enrolls the identity: its state becomes enrolled, in a new generation.
	Enrolls bool
	// Token must be alive, unspent, and bound to this request; it is spent.
	Token TokenID
	// Predecessor must be recorded and not revoked, and must not have been renewed with another key.
	Predecessor CertRef
	// Renewed says that the predecessor was renewed with this key before the decision. Where it was not, it must
	// still not have been.
	Renewed bool
	// MaxUnexpired is how many certificates of the identity may not have ended, the new one included, whatever their
	// state.
	MaxUnexpired int
	// Supersedes says that the predecessor is revoked, as superseded, in the same transaction. Without one it says
	// nothing.
	Supersedes bool
	// Key must not be known as compromised, belong to a CA, or have been certified for another identity.
	Key KeyHash
}

// CheckMayHold returns the refusal of a certificate for the identity while it is in a state, or nil.
func (s SPIFFEID) CheckMayHold(state IdentityState) *Refusal {
	if state == Registered || state == Enrolled {
		return nil
	}
	return Refuse(RuleIdentityState, "ask an operator", "%s is %s", s, state)
}

// CheckRenewable returns the refusal of a renewal of the certificate while it has a status, or nil if it is good.
func (r CertRef) CheckRenewable(s Status) *Refusal {
	if s.State == Good {
		return nil
	}
	return Refuse(RuleRevoked,
		"ask an operator: a held certificate can be taken off hold, a revoked one needs a new enrollment",
		"the certificate to renew, %s, is %s (%s)", r.Serial, s.State.Predicate(), s.Reason)
}

// Cloned returns the refusal of a renewal of the certificate with another key than that of an earlier renewal.
func (r CertRef) Cloned() *Refusal {
	return Refuse(RuleRenewalKeyConflict,
		"find out who holds a copy of the credential, then enroll with a token made with --replace",
		"certificate %s was renewed before, with another key: two parties hold it", r.Serial)
}

// CheckUnexpired returns the refusal of one more certificate for an identity that has n unexpired ones, or nil.
func (g Guard) CheckUnexpired(id SPIFFEID, n int) *Refusal {
	if g.MaxUnexpired == 0 || n < g.MaxUnexpired {
		return nil
	}
	return Refuse(RuleMaxUnexpired, "wait until some have expired, or raise max_unexpired of the profile",
		"%s has %d unexpired certificates, and may have %d", id, n, g.MaxUnexpired)
}
