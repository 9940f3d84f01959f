package ra

import (
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// operatorFactor multiplies the profile's max_unexpired for certificates that an operator authorizes, with an issue
// request or with a token that replaces certificates.
const operatorFactor = 16

// orderFactor multiplies the profile's max_unexpired for all certificates of an identity that ACME accounts order, whatever
// their names. max_unexpired alone limits those with the same set of names, and there are as many sets as a client likes.
const orderFactor = 100

// minRenewal is the minimum lifetime that a renewal can request, unless the lifetime of the profile is shorter. A renewal
// past half of the lifetime is not counted by max_unexpired, so a very short lifetime would evade that limit.
const minRenewal = time.Minute

// checkRenewalLifetime refuses a renewal that requests a lifetime shorter than minRenewal.
func checkRenewalLifetime(p *ca.Profile, req ca.Request) error {
	least := min(minRenewal, p.Lifetime())
	if req.Guard.Predecessor.IsZero() || req.Lifetime == 0 || req.Lifetime >= least {
		return nil
	}
	return pki.Refuse(pki.RuleLifetime, "ask for "+least.String()+" at least, or leave it to the profile",
		"profile %s does not allow a renewal for %s", p.Name(), req.Lifetime)
}

// bound returns the maximum number of unexpired certificates of the identity, including the new one. It returns zero if
// there is no maximum for the request, which is the case for:
//   - the first certificate of an identity
//   - the first renewal of a certificate that is past half of its lifetime
//   - the first renewal of a certificate of a retired CA
//   - a recovery, which succeeds only one certificate and only once
//
// So each certificate leads to at most one renewal that the maximum does not limit.
func (r *Registrar) bound(st IssuanceState, p *ca.Profile, req ca.Request) int {
	before := req.Guard.Predecessor
	if !req.Guard.Recovery.IsZero() {
		return 0
	}
	if !req.Guard.Order.IsZero() {
		return p.MaxUnexpired()
	}
	if before.IsZero() {
		if st.Identity.State == pki.Registered {
			return 0
		}
		return operatorFactor * p.MaxUnexpired()
	}
	always := slices.Contains(r.retired, before.Issuer) || !r.clock().Before(halfLife(st.Predecessor))
	if always && st.Predecessor.Successor.IsZero() {
		return 0
	}
	return p.MaxUnexpired()
}

// halfLife returns the middle of the lifetime of p. The lifetime starts at p.IssuedAt and not at NotBefore, which the
// profile may backdate.
func halfLife(p Predecessor) time.Time {
	return p.IssuedAt.Add(p.NotAfter.Sub(p.IssuedAt) / 2)
}

// checkBound refuses a request if the identity already has the maximum number of unexpired certificates.
func (r *Registrar) checkBound(st IssuanceState, req ca.Request) error {
	refusal := req.Guard.CheckUnexpired(st.Identity.ID, min(st.Unexpired, req.Guard.MaxUnexpired))
	if refusal == nil {
		refusal = req.Guard.Order.CheckUnexpired(st.Identity.ID, st.OrdersUnexpired)
	}
	if refusal == nil {
		return nil
	}
	if req.Guard.Predecessor.IsZero() {
		return refusal
	}
	return r.tooEarly(req.Guard.Predecessor, st.Predecessor)
}

// tooEarlyError is the refusal of a renewal that will be allowed later.
type tooEarlyError struct {
	*pki.Refusal
	after time.Duration
}

// Unwrap returns the refusal that e wraps.
func (e *tooEarlyError) Unwrap() error { return e.Refusal }

// RetryAfter returns the time until the renewal will be allowed.
func (e *tooEarlyError) RetryAfter() time.Duration { return e.after }

// tooEarly returns the refusal of a renewal whose identity has the maximum number of unexpired certificates. If the
// predecessor was renewed before, waiting does not help, so the refusal has no retry time.
func (r *Registrar) tooEarly(ref pki.CertRef, p Predecessor) error {
	at := halfLife(p)
	if !p.Successor.IsZero() {
		return pki.Refuse(pki.RuleMaxUnexpired, "renew the newest certificate, or have max_unexpired of the profile raised",
			"certificate %s was renewed before, and its identity has as many unexpired certificates as its profile allows", ref.Serial)
	}
	return &tooEarlyError{
		pki.Refuse(pki.RuleRenewalTooEarly, "renew from "+at.UTC().Format(time.RFC3339)+" on, or have max_unexpired of the profile raised",
			"certificate %s has not reached half of its lifetime, and its identity has as many unexpired certificates as its profile allows", ref.Serial),
		max(at.Sub(r.clock()), time.Second),
	}
}
