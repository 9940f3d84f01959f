package pki

import "time"

// Caller is an identity that has authenticated itself with one of its certificates. The zero value means that there is
// no caller.
type Caller struct {
	Identity    SPIFFEID
	Certificate CertRef
}

// IsZero reports whether there is no caller.
func (c Caller) IsZero() bool { return c == Caller{} }

// CallerState is what a store has recorded about a caller at one time.
type CallerState struct {
	NotBefore, NotAfter time.Time // validity of the certificate
	// Status is the certificate's status, including every bulk revocation in effect.
	Status   Status
	Identity CallerIdentity
}

// Authorize returns a refusal if the caller may not change anything at the given time. Otherwise it returns nil. The
// certificate must be valid and good, and the identity must be enrolled. Most changes also need a permission, see
// [SPIFFEID.CheckPermission].
func (c Caller) Authorize(s CallerState, at time.Time) error {
	if refusal := CheckValidity(s.NotBefore, s.NotAfter, at); refusal != nil {
		return refusal
	}
	if refusal := c.Certificate.CheckStatus(s.Status); refusal != nil {
		return refusal
	}
	if refusal := c.Identity.CheckEnrolled(s.Identity.State); refusal != nil {
		return refusal
	}
	return nil
}

// CheckValidity returns a refusal if a certificate is not valid at the given time. Otherwise it returns nil.
func CheckValidity(notBefore, notAfter, at time.Time) *Refusal {
	switch {
	case at.Before(notBefore):
		return Refuse(RuleExpired, "look at the server's clock: it is behind, or was ahead when the certificate was issued",
			"the certificate is not valid before %s (server time is %s)", formatTime(notBefore), formatTime(at))
	case at.After(notAfter):
		return Refuse(RuleExpired, "enroll with a new token; if the certificate should still be valid, compare both clocks",
			"the certificate was valid until %s (server time is %s)", formatTime(notAfter), formatTime(at))
	default:
		return nil
	}
}

// CheckStatus returns a refusal if a certificate with this status cannot authenticate a caller. If the status is good,
// it returns nil.
func (r CertRef) CheckStatus(s Status) *Refusal {
	if s.State == Good {
		return nil
	}
	return Refuse(RuleRevoked, "ask an operator: a held certificate can be taken off hold, a revoked one needs a new enrollment",
		"certificate %s is %s since %s (%s)", r.Serial, s.State.Predicate(), formatTime(s.RevokedAt), s.Reason)
}

// CheckEnrolled returns a refusal if the caller's identity is not enrolled. Otherwise it returns nil.
func (s SPIFFEID) CheckEnrolled(state IdentityState) *Refusal {
	if state == Enrolled {
		return nil
	}
	return Refuse(RuleIdentityState, "ask another operator: a suspended identity can be resumed, a retired one has ended",
		"the caller %s is %s", s, state)
}

// NotOnRecord returns the refusal of a caller whose certificate is not in the store.
func (r CertRef) NotOnRecord() *Refusal {
	return Refuse(RuleCertificateUnknown, "enroll again", "certificate %s is not on record", r.Serial)
}

// NoCertificate returns the refusal of a caller that presented no certificate.
func NoCertificate() *Refusal {
	return Refuse(RuleUnauthenticated, "connect with the client certificate that Brevet issued to you", "this request needs a client certificate")
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
