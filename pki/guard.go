package pki

// Guard contains the conditions under which a certificate may be recorded. Package ra checks them when it decides
// about a request. The store checks them again, in the transaction that records the certificate, and marks the token as
// used. If a field is zero, its condition is not checked. Key is always set.
type Guard struct {
	// Identity must exist, have the revision Revision, and be in a state in which it may have certificates. Each change
	// of the identity increments its revision. If the identity changes after the decision, the store therefore refuses
	// the certificate.
	Identity SPIFFEID
	Revision uint64
	// Enrolls means that this certificate enrolls the identity. The identity gets the state enrolled and a new
	// revision.
	Enrolls bool
	// Token must be valid, unused and bound to this request. When the certificate is recorded, the token becomes used.
	Token TokenID
	// Subject is the subject of the evidence with which the identity enrolls. The identity must have this subject on record,
	// or none, in which case the subject is recorded. No other identity may have it.
	Subject EvidenceSubject
	// Terms replace the terms of the identity when the certificate is recorded. They are zero unless Enrolls is set.
	Terms Terms
	// Nonces must not have been consumed. When the certificate is recorded, they are consumed.
	Nonces []Nonce
	// Predecessor, the certificate to renew, must be recorded and not revoked. It must not have been renewed with
	// another key.
	Predecessor CertRef
	// Recovery must hold if it is not zero. Predecessor is then the newest certificate of the identity, which may have
	// expired. It is the certificate in Recovery, or was renewed from it and never renewed itself. In the second case,
	// Supersedes is set, and the predecessor does not get a successor.
	Recovery Recovery
	// Renewed means that the predecessor had already been renewed with this key when the request was decided. If it is
	// false, the predecessor must still not have been renewed.
	Renewed bool
	// MaxUnexpired is the maximum number of unexpired certificates of the identity, whatever their status. The new
	// certificate counts, and those that ACME accounts have ordered do not.
	MaxUnexpired int
	// Supersedes means that the same transaction revokes the predecessor with the reason superseded. Without a
	// predecessor it has no effect.
	Supersedes bool
	// Order must hold if it is not zero. Then MaxUnexpired counts only the certificates of orders with its Names. When the
	// certificate is recorded, the order becomes valid with it.
	Order Order
	// Key must not be recorded as compromised, be the key of a CA, or be in a certificate of another identity.
	Key KeyHash
}

// CheckMayHold returns a refusal if an identity in this state may not have certificates. Otherwise it returns nil.
func (s SPIFFEID) CheckMayHold(state IdentityState) *Refusal {
	if state == Registered || state == Enrolled {
		return nil
	}
	return Refuse(RuleIdentityState, "ask an operator", "%s is %s", s, state)
}

// EvidenceConflict returns the refusal of evidence about another subject than the one that the identity is tied to.
func (s SPIFFEID) EvidenceConflict() *Refusal {
	return Refuse(RuleEvidenceConflict, "if the device or its TPM was replaced, an operator ties the identity to the new one: "+
		"brevet identity update NAME --evidence VALUE, with the evidence_subject of this refusal in brevet log list",
		"%s is tied to evidence of another device", s)
}

// CheckRenewable returns a refusal if a certificate with this status may not be renewed. If the status is good, it
// returns nil.
func (r CertRef) CheckRenewable(s Status) *Refusal {
	if s.State == Good {
		return nil
	}
	return Refuse(RuleRevoked,
		"ask an operator: a held certificate can be taken off hold, a revoked one needs a new enrollment",
		"the certificate to renew, %s, is %s (%s)", r.Serial, s.State.Predicate(), s.Reason)
}

// Cloned returns the refusal of a renewal with another key than an earlier renewal of the same certificate.
func (r CertRef) Cloned() *Refusal {
	return Refuse(RuleRenewalKeyConflict,
		"find out who holds a copy of the credential, then enroll with a token made with --replace",
		"certificate %s was renewed before, with another key: two parties hold it", r.Serial)
}

// CheckUnexpired returns a refusal if an identity with n unexpired certificates may not get another one. Otherwise it
// returns nil.
func (g Guard) CheckUnexpired(id SPIFFEID, n int) *Refusal {
	if g.MaxUnexpired == 0 || n < g.MaxUnexpired {
		return nil
	}
	return Refuse(RuleMaxUnexpired, "wait until some have expired, or raise max_unexpired of the profile",
		"%s has %d unexpired certificates, and may have %d", id, n, g.MaxUnexpired)
}
