package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// Revocation is the view of the revocation authority and of responders: a revocation.Records and a responder.Feed.
type Revocation struct{ db *DB }

// Apply carries out an order and returns the statuses of the certificates that it is about.
//
// Releasing an identity releases every hold on its certificates; a certificate alone is not released while its identity
// is suspended. An order about an identity leaves what is revoked already as it is, keyCompromise excepted.
func (r *Revocation) Apply(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	var changes []pki.StatusChange
	err := r.db.write(ctx, "carry out the order", func(ctx context.Context, tx *writeTx) error {
		var err error
		switch {
		case o.Certificate.IsZero() == o.Identity.IsZero():
			return pki.Refuse(pki.RuleRequest, "name one certificate or one identity", "an order is about exactly one of them")
		case o.Identity.IsZero():
			changes, err = tx.orderCertificate(ctx, o)
		default:
			changes, err = tx.orderIdentity(ctx, o)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return changes, nil
}

func (tx *writeTx) orderCertificate(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	c, err := tx.readSubject(ctx, o.Certificate)
	if err != nil {
		return nil, err
	}
	status, changed, err := next(c.status, o)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", o.Certificate.Serial, err)
	}
	if !changed {
		return []pki.StatusChange{c.standing()}, nil
	}
	if o.Action == revocation.Release && c.identityState == pki.Suspended {
		return nil, pki.Refuse(pki.RuleIdentityState, "resume the identity, which releases its certificates", "%s is suspended", c.identity)
	}
	change, err := tx.setStatus(ctx, c, status, o)
	if err != nil {
		return nil, err
	}
	changes := []pki.StatusChange{change}
	if isKeyCompromise(o) {
		others, err := tx.revokeSameKey(ctx, c, o)
		if err != nil {
			return nil, err
		}
		changes = append(changes, others...)
	}
	action := map[revocation.Action]translog.Action{
		revocation.Revoke: translog.CertificateRevoked, revocation.Hold: translog.CertificateHeld, revocation.Release: translog.CertificateReleased,
	}[o.Action]
	return changes, tx.append(ctx, orderEntry(o, action, c.identity, changes))
}

// revokeSameKey carries a compromise to the other unexpired certificates of the key: a renewal may have kept it.
func (tx *writeTx) revokeSameKey(ctx context.Context, c subject, o revocation.Order) ([]pki.StatusChange, error) {
	others, err := tx.readSameKey(ctx, c, o.At)
	if err != nil {
		return nil, err
	}
	var changes []pki.StatusChange
	for _, other := range others {
		status, changed, err := next(other.status, o)
		if err != nil {
			return nil, err
		}
		if !changed {
			continue
		}
		change, err := tx.setStatus(ctx, other, status, o)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	return changes, nil
}

func (tx *writeTx) orderIdentity(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	action, moved, err := tx.moveIdentity(ctx, o)
	if err != nil {
		return nil, err
	}
	subjects, err := tx.readSubjects(ctx, o.Identity, o.At)
	if err != nil {
		return nil, err
	}
	var changes, standing []pki.StatusChange
	for _, c := range subjects {
		status, changed, err := next(c.status, o)
		if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleFinal {
			changed, err = false, nil // revoked before, for a reason of its own
		}
		if err != nil {
			return nil, err
		}
		if !changed {
			standing = append(standing, c.standing())
			continue
		}
		change, err := tx.setStatus(ctx, c, status, o)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	if !moved && len(changes) == 0 {
		return standing, nil // carried out before
	}
	if err := tx.append(ctx, orderEntry(o, action, o.Identity, changes)); err != nil {
		return nil, err
	}
	return append(changes, standing...), nil
}

// next returns the status after an order, and whether that is another one than before.
func next(s pki.Status, o revocation.Order) (pki.Status, bool, error) {
	changed := pki.Status{Version: s.Version + 1, RevokedAt: o.At.Truncate(time.Second)}
	switch o.Action {
	case revocation.Revoke:
		changed.State, changed.Reason = pki.Revoked, o.Reason
		return nextRevoked(s, changed)
	case revocation.Hold:
		changed.State, changed.Reason = pki.Hold, pki.CertificateHold
		return changed, s.State == pki.Good, ifFinal(s)
	case revocation.Release:
		return pki.Status{State: pki.Good, Version: s.Version + 1}, s.State == pki.Hold, ifFinal(s)
	default:
		return s, false, pki.Refuse(pki.RuleRequest, "revoke, hold or release", "an order has no action %d", o.Action)
	}
}

func nextRevoked(s, changed pki.Status) (pki.Status, bool, error) {
	if changed.Reason == pki.CertificateHold {
		return s, false, pki.Refuse(pki.RuleReason, "give a reason that is final", "certificateHold does not revoke")
	}
	if s.State != pki.Revoked {
		return changed, true, nil
	}
	if s.Reason == changed.Reason {
		return s, false, nil
	}
	if changed.Reason != pki.KeyCompromise {
		return s, false, ifFinal(s)
	}
	changed.RevokedAt = s.RevokedAt // it was worth nothing since then; the key may have been for longer
	return changed, true, nil
}

// ifFinal refuses to change a status that is final.
func ifFinal(s pki.Status) error {
	if s.State != pki.Revoked {
		return nil
	}
	return pki.Refuse(pki.RuleFinal, "leave it as it is; only keyCompromise can follow", "it is revoked already (%s)", s.Reason)
}

func orderEntry(o revocation.Order, action translog.Action, id pki.SPIFFEID, changes []pki.StatusChange) translog.Entry {
	e := translog.Entry{Time: o.At, Actor: o.By, Action: action, Outcome: translog.Done, Identity: id, Changes: changes}
	if o.Action == revocation.Revoke {
		e.Facts = map[string]string{"reason": o.Reason.String()}
	}
	return e
}

// isKeyCompromise reports whether an order says that keys are not their holders' alone.
func isKeyCompromise(o revocation.Order) bool {
	return o.Action == revocation.Revoke && o.Reason == pki.KeyCompromise
}
