package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// Certificate is the state of a certificate whose status is to be changed.
type Certificate struct {
	Ref      pki.CertRef
	NotAfter time.Time
	// Status and InvalidSince are the effective values, with the open bulk revocations. InvalidSince is zero if unknown.
	Status       pki.Status
	InvalidSince time.Time
	// Delivered is true if the certificate was delivered. If it was not, Identity is zero.
	Delivered     bool
	Identity      pki.SPIFFEID
	IdentityState pki.IdentityState
}

// Unchanged returns a StatusChange with the current status of the certificate.
func (c *Certificate) Unchanged() pki.StatusChange {
	return pki.StatusChange{Ref: c.Ref, NotAfter: c.NotAfter, Status: c.Status}
}

// Change returns the status and invalidity date of the certificate after the change o. It returns true if they differ from
// the current ones. If o changes the reason to keyCompromise without an invalidity date, the date on record stays.
func (c *Certificate) Change(
	o revocation.Change,
) (next pki.StatusChange, invalidSince time.Time, changed bool, err error) {
	status, changed, err := NextStatus(c.Status, o)
	if err != nil || !changed {
		return c.Unchanged(), c.InvalidSince, false, err
	}
	if invalidSince = o.InvalidSince; invalidSince.IsZero() && status.State == pki.Revoked {
		invalidSince = c.InvalidSince
	}
	return pki.StatusChange{Ref: c.Ref, NotAfter: c.NotAfter, Status: status}, invalidSince, true, nil
}

// ChangeMember is like Change, for one of several certificates of a change. It does not refuse a final status, but leaves
// it unchanged.
func (c *Certificate) ChangeMember(
	o revocation.Change,
) (next pki.StatusChange, invalidSince time.Time, changed bool, err error) {
	next, invalidSince, changed, err = c.Change(o)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleAlreadyRevoked {
		return next, invalidSince, false, nil
	}
	return next, invalidSince, changed, err
}

// CheckHold refuses to unhold a single certificate of a suspended identity. If holding is true, a bulk revocation is
// holding or unholding all certificates of the identity, and CheckHold refuses both for a single certificate. It never
// refuses a revocation.
func (c *Certificate) CheckHold(o revocation.Change, holding bool) error {
	switch {
	case o.Action == revocation.Revoke:
		return nil
	case o.Action == revocation.Unhold && c.IdentityState == pki.Suspended:
		return pki.Refuse(pki.RuleIdentityState, "resume the identity, which unholds its certificates",
			"%s is suspended", c.Identity)
	case holding:
		return pki.Refuse(pki.RuleOverloaded, "retry in a minute",
			"the certificates of %s are being held or unheld", c.Identity)
	default:
		return nil
	}
}

// NextStatus returns the status after the change o, and reports whether it differs from s. A revocation is final, except
// that keyCompromise replaces another reason and keeps the time. A hold ends with an unhold or a revocation.
func NextStatus(s pki.Status, o revocation.Change) (pki.Status, bool, error) {
	next := pki.Status{Version: s.Version + 1, RevokedAt: o.At.Truncate(time.Second)}
	switch o.Action {
	case revocation.Revoke:
		next.State, next.Reason = pki.Revoked, o.Reason
		return nextRevoked(s, next)
	case revocation.Hold:
		next.State, next.Reason = pki.Hold, pki.CertificateHold
		return next, s.State == pki.Good, checkFinal(s)
	case revocation.Unhold:
		return pki.Status{State: pki.Good, Version: s.Version + 1}, s.State == pki.Hold, checkFinal(s)
	default:
		return s, false, pki.Refuse(pki.RuleRequest, "revoke, hold or unhold", "unknown action %d", o.Action)
	}
}

func nextRevoked(s, next pki.Status) (pki.Status, bool, error) {
	if next.Reason == pki.CertificateHold {
		return s, false, pki.Refuse(pki.RuleReason, "give a reason that is final", "certificateHold does not revoke")
	}
	if s.State != pki.Revoked {
		return next, true, nil
	}
	if s.Reason == next.Reason {
		return s, false, nil
	}
	if next.Reason != pki.KeyCompromise {
		return s, false, checkFinal(s)
	}
	next.RevokedAt = s.RevokedAt // the certificate stays revoked since then
	return next, true, nil
}

// checkFinal refuses to change the status of a revoked certificate.
func checkFinal(s pki.Status) error {
	if s.State != pki.Revoked {
		return nil
	}
	return pki.Refuse(pki.RuleAlreadyRevoked, "leave it as it is; only keyCompromise can follow",
		"it is revoked already (%s)", s.Reason)
}

// CompromisesKeys reports whether a change marks the keys of its certificates as compromised.
func CompromisesKeys(o revocation.Change) bool {
	return o.Action == revocation.Revoke && o.Reason == pki.KeyCompromise
}
