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
	err := r.db.writeBy(ctx, "carry out the order", o.By, o.At, func(ctx context.Context, tx *writeTx) error {
		var err error
		certificate, identity, key := !o.Certificate.IsZero(), !o.Identity.IsZero(), !o.Key.IsZero()
		switch {
		case certificate && !identity && !key:
			changes, err = tx.orderCertificate(ctx, o)
		case identity && !certificate && !key:
			changes, err = tx.orderIdentity(ctx, o)
		case key && !certificate && !identity:
			changes, err = tx.orderKey(ctx, o)
		default:
			return pki.Refuse(pki.RuleRequest, "name one certificate, one identity or one key", "an order is about exactly one of them")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return changes, nil
}

func (tx *writeTx) orderCertificate(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	c, err := readSubject(ctx, tx, o.Certificate)
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
	if err := tx.append(ctx, orderEntry(o, action, c.identity, changes)); err != nil {
		return nil, err
	}
	return changes, tx.distrust(ctx, c.identity, o)
}

// revokeSameKey carries a compromise to the other unexpired certificates of the key: a renewal may have kept it.
func (tx *writeTx) revokeSameKey(ctx context.Context, c subject, o revocation.Order) ([]pki.StatusChange, error) {
	if !c.key.Valid {
		return nil, nil
	}
	others, err := readKeySubjects(ctx, tx, c.key.Int64, c.id, o.At)
	if err != nil {
		return nil, err
	}
	changes, _, err := tx.changeSubjects(ctx, others, o)
	return changes, err
}

// orderKey revokes what a compromised key has, and marks it where it has nothing that is alive, too.
func (tx *writeTx) orderKey(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	if !isKeyCompromise(o) {
		return nil, pki.Refuse(pki.RuleReason, "revoke it for keyCompromise", "an order about a key can do nothing else")
	}
	key, err := readKey(ctx, tx, o.Key)
	if err != nil {
		return nil, err
	}
	subjects, err := readKeySubjects(ctx, tx, keyID(o.Key), 0, o.At)
	if err != nil {
		return nil, err
	}
	changes, standing, err := tx.changeSubjects(ctx, subjects, o)
	if err != nil || len(changes) == 0 && key.compromised {
		return standing, err // carried out before
	}
	if err := tx.markKey(ctx, keyID(o.Key), o.At); err != nil {
		return nil, err
	}
	entry := orderEntry(o, translog.CertificateRevoked, key.identity, changes)
	entry.Facts["key"] = o.Key.String()
	if err := tx.append(ctx, entry); err != nil {
		return nil, err
	}
	return append(changes, standing...), tx.distrust(ctx, key.identity, o)
}

func (tx *writeTx) orderIdentity(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	action, moved, err := tx.moveIdentity(ctx, o)
	if err != nil {
		return nil, err
	}
	subjects, err := readSubjects(ctx, tx, o.Identity, o.At)
	if err != nil {
		return nil, err
	}
	changes, standing, err := tx.changeSubjects(ctx, subjects, o)
	if err != nil {
		return nil, err
	}
	if !moved && len(changes) == 0 {
		return standing, nil // carried out before
	}
	if err := tx.append(ctx, orderEntry(o, action, o.Identity, changes)); err != nil {
		return nil, err
	}
	if err := tx.distrust(ctx, o.Identity, o); err != nil {
		return nil, err
	}
	return append(changes, standing...), nil
}

// changeSubjects gives certificates their next status, and returns what has changed and what has not: that stands as it is,
// or was revoked before, for a reason of its own.
func (tx *writeTx) changeSubjects(ctx context.Context, subjects []subject, o revocation.Order) (changes, standing []pki.StatusChange, err error) {
	for _, c := range subjects {
		status, changed, err := next(c.status, o)
		if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleFinal {
			changed, err = false, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if !changed {
			standing = append(standing, c.standing())
			continue
		}
		change, err := tx.setStatus(ctx, c, status, o)
		if err != nil {
			return nil, nil, err
		}
		changes = append(changes, change)
	}
	return changes, standing, nil
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
	return translog.Entry{
		Time: o.At, Actor: o.By, Action: action, Outcome: translog.Done, Identity: id, Changes: changes, Facts: orderFacts(o),
	}
}

// orderFacts are the reason, the invalidity date and the comment, where there are any.
func orderFacts(o revocation.Order) map[string]string {
	facts := map[string]string{}
	if o.Action == revocation.Revoke {
		facts["reason"] = o.Reason.String()
	}
	if !o.InvalidSince.IsZero() {
		facts["invalid_since"] = o.InvalidSince.UTC().Format(time.RFC3339)
	}
	if o.Why != "" {
		facts["comment"] = o.Why
	}
	return facts
}

// isKeyCompromise reports whether an order says that keys are not their holders' alone.
func isKeyCompromise(o revocation.Order) bool {
	return o.Action == revocation.Revoke && o.Reason == pki.KeyCompromise
}
