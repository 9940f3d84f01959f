package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// Certificate is a certificate whose status may change.
type Certificate struct {
	Ref      pki.CertRef
	NotAfter time.Time
	// Status has every open bulk revocation applied, and InvalidSince too; that is zero if unknown.
	Status       pki.Status
	InvalidSince time.Time
	// Delivered reports whether it was delivered. If it was not, it has no identity.
	Delivered     bool
	Identity      pki.SPIFFEID
	IdentityState pki.IdentityState
}

// Unchanged returns the certificate's status as it is.
func (c *Certificate) Unchanged() pki.StatusChange {
	return pki.StatusChange{Ref: c.Ref, NotAfter: c.NotAfter, Status: c.Status}
}

// Change returns the certificate's next status and invalidity date, and reports whether they differ from before. An
// order that upgrades a revocation to keyCompromise and names no invalidity date keeps the date on record.
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

// ChangeMember is Change for one of several certificates of an order: if its status is final, it keeps it.
func (c *Certificate) ChangeMember(
	o revocation.Change,
) (next pki.StatusChange, invalidSince time.Time, changed bool, err error) {
	next, invalidSince, changed, err = c.Change(o)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleAlreadyRevoked {
		return next, invalidSince, false, nil
	}
	return next, invalidSince, changed, err
}

// CheckHold refuses to hold or unhold one certificate of an identity that is suspended, or all of whose certificates
// are being held or released. A revocation always passes.
func (c *Certificate) CheckHold(o revocation.Change, holding bool) error {
	switch {
	case o.Action == revocation.Revoke:
		return nil
	case o.Action == revocation.Unhold && c.IdentityState == pki.Suspended:
		return pki.Refuse(pki.RuleIdentityState, "resume the identity, which releases its certificates",
			"%s is suspended", c.Identity)
	case holding:
		return pki.Refuse(pki.RuleOverloaded, "ask again in a minute",
			"the certificates of %s are being held or released", c.Identity)
	default:
		return nil
	}
}

// NextStatus returns the status after an order, and reports whether it differs from the one before. A revocation is
// final: only keyCompromise replaces another reason, and keeps the time. A hold ends with a release or a revocation.
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
		return s, false, pki.Refuse(pki.RuleRequest, "revoke, hold or release", "an order has no action %d", o.Action)
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
	next.RevokedAt = s.RevokedAt // it has been invalid since then; the key may have leaked earlier
	return next, true, nil
}

// checkFinal refuses to change a status that is final.
func checkFinal(s pki.Status) error {
	if s.State != pki.Revoked {
		return nil
	}
	return pki.Refuse(pki.RuleAlreadyRevoked, "leave it as it is; only keyCompromise can follow",
		"it is revoked already (%s)", s.Reason)
}

// CompromisesKeys reports whether an order says that keys have leaked. It marks the keys of its certificates.
func CompromisesKeys(o revocation.Change) bool {
	return o.Action == revocation.Revoke && o.Reason == pki.KeyCompromise
}
