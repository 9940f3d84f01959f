package pki

import "time"

// Caller is an identity that authenticated itself with one of its certificates. The zero value is none.
type Caller struct {
	Identity    SPIFFEID
	Certificate CertRef
}

// IsZero reports whether c is no caller.
func (c Caller) IsZero() bool { return c == Caller{} }

// CallerState is what is on record of a caller at one moment.
type CallerState struct {
	NotBefore, NotAfter time.Time // of the certificate
	// Status is the certificate's, with every bulk revocation applied that is in effect.
	Status   Status
	Identity IdentityState
}

// Authorize returns the refusal of whatever the caller wants to change at a time, or nil. The certificate has to be valid
// and good, and its identity enrolled.
func (c Caller) Authorize(s CallerState, at time.Time) error {
	if refusal := CheckValidity(s.NotBefore, s.NotAfter, at); refusal != nil {
		return refusal
	}
	if refusal := c.Certificate.CheckStatus(s.Status); refusal != nil {
		return refusal
	}
	if refusal := c.Identity.CheckEnrolled(s.Identity); refusal != nil {
		return refusal
	}
	return nil
}

// CheckValidity returns the refusal of a certificate that is not valid at a time, or nil.
func CheckValidity(notBefore, notAfter, at time.Time) *Refusal {
	switch {
	case at.Before(notBefore):
		return Refuse(RuleExpired, "look at the server's clock: it is behind, or was ahead when the certificate was issued",
			"the certificate is not valid before %s (server time is %s)", formatTime(notBefore), formatTime(at))
	case at.After(notAfter):
		return Refuse(RuleExpired, "enroll with a new token, or look at both clocks if the certificate should not be over",
			"the certificate was valid until %s (server time is %s)", formatTime(notAfter), formatTime(at))
	default:
		return nil
	}
}

// CheckStatus returns the refusal of the certificate as a credential while it has a status, or nil if it is good.
func (r CertRef) CheckStatus(s Status) *Refusal {
	if s.State == Good {
		return nil
	}
	return Refuse(RuleRevoked, "ask an operator: a held certificate can be taken off hold, a revoked one needs a new enrollment",
		"certificate %s is %s since %s (%s)", r.Serial, s.State.Predicate(), formatTime(s.RevokedAt), s.Reason)
}

// CheckEnrolled returns the refusal of a caller of this identity while it is in a state, or nil if it is enrolled.
func (s SPIFFEID) CheckEnrolled(state IdentityState) *Refusal {
	if state == Enrolled {
		return nil
	}
	return Refuse(RuleIdentityState, "ask another operator: a suspended identity can be resumed, a retired one has ended",
		"the caller %s is %s", s, state)
}

// NotOnRecord returns the refusal of a caller with a certificate that the CA has no record of.
func (r CertRef) NotOnRecord() *Refusal {
	return Refuse(RuleCertificateUnknown, "enroll again", "certificate %s is not on record", r.Serial)
}

// NoCertificate returns the refusal of a caller without a certificate.
func NoCertificate() *Refusal {
	return Refuse(RuleUnauthenticated, "connect with the client certificate that Brevet issued to you", "the call needs a certificate")
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
