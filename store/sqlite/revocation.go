package sqlite

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// Revocation is the view of the revocation authority and of responders: a revocation.Records, a crl.Store and a responder.Feed.
type Revocation struct{ db *DB }

// Apply carries out an order and returns what it has changed.
//
// Releasing an identity releases every hold on its certificates; a certificate alone is not released while its identity
// is suspended. An order about an identity leaves what is revoked already as it is, keyCompromise excepted.
func (r *Revocation) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	var out revocation.ChangeResult
	err := r.db.writeBy(ctx, "carry out the order", o.Actor, o.At, func(ctx context.Context, tx *writeTx) error {
		var err error
		certificate, identity, key := !o.Certificate.IsZero(), !o.Identity.IsZero(), !o.Key.IsZero()
		switch {
		case certificate && !identity && !key:
			out, err = tx.orderCertificate(ctx, o)
		case identity && !certificate && !key:
			out, err = tx.orderIdentity(ctx, o)
		case key && !certificate && !identity:
			out, err = tx.orderKey(ctx, o)
		default:
			return pki.Refuse(pki.RuleRequest, "name one certificate, one identity or one key", "an order is about exactly one of them")
		}
		return err
	})
	if err != nil {
		return revocation.ChangeResult{}, err
	}
	return out, nil
}

// certificateActions are how the log calls what orders do to certificates.
var certificateActions = map[revocation.Action]translog.Action{
	revocation.Revoke: translog.CertificateRevoked, revocation.Hold: translog.CertificateHeld, revocation.Unhold: translog.CertificateUnheld,
}

func (tx *writeTx) orderCertificate(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	c, err := readSubject(ctx, tx, o.Certificate)
	if err != nil {
		return none, err
	}
	status, changed, err := next(c.status, o)
	if err != nil {
		return none, fmt.Errorf("certificate %s: %w", o.Certificate.Serial, err)
	}
	if !changed {
		return revocation.ChangeResult{Unchanged: []pki.StatusChange{c.standing()}}, nil
	}
	if err := tx.checkHold(ctx, c, o); err != nil {
		return none, err
	}
	change, err := tx.setStatus(ctx, c, status, o)
	if err != nil {
		return none, err
	}
	var out revocation.ChangeResult
	if isKeyCompromise(o) && c.key.Valid { // a renewal may have kept the key
		if out, err = tx.revokeKey(ctx, c, o); err != nil {
			return none, err
		}
	}
	out.Changed = append([]pki.StatusChange{change}, out.Changed...)
	if err := tx.append(ctx, orderEntry(o, certificateActions[o.Action], c.identity, out)); err != nil {
		return none, err
	}
	return out, tx.distrust(ctx, c.identity, o)
}

// checkHold refuses to hold or release a certificate beside what is done to all of its identity's.
func (tx *writeTx) checkHold(ctx context.Context, c subject, o revocation.Change) error {
	if o.Action == revocation.Revoke {
		return nil
	}
	if o.Action == revocation.Unhold && c.identityState == pki.Suspended {
		return pki.Refuse(pki.RuleIdentityState, "resume the identity, which releases its certificates", "%s is suspended", c.identity)
	}
	holding, err := isHolding(ctx, tx, c.identity)
	if err == nil && holding {
		err = pki.Refuse(pki.RuleOverloaded, "ask again in a minute", "the certificates of %s are being held or released", c.identity)
	}
	return err
}

// revokeKey carries a compromise to the other certificates of a certificate's key.
func (tx *writeTx) revokeKey(ctx context.Context, c subject, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	key := storedKey{id: c.key}
	if err := tx.QueryRowContext(ctx, `SELECT rest FROM keys WHERE id = ?`, c.key.Int64).Scan(&key.rest); err != nil {
		return none, err
	}
	hash, err := key.hash()
	if err != nil {
		return none, err
	}
	s, err := newSet(ctx, tx, setOf(o, revocation.Selection{Key: hash}))
	if err != nil {
		return none, err
	}
	out, _, err := tx.carryOut(ctx, &s, o, func() ([]subject, error) { return readKeySubjects(ctx, tx, c.key.Int64, c.id, s.reach) })
	return out, err
}

// orderKey revokes what a compromised key has, and marks it where it has nothing that is alive, too.
func (tx *writeTx) orderKey(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	if !isKeyCompromise(o) {
		return none, pki.Refuse(pki.RuleReason, "revoke it for keyCompromise", "an order about a key can do nothing else")
	}
	key, err := readKey(ctx, tx, o.Key)
	if err != nil {
		return none, err
	}
	s, err := newSet(ctx, tx, setOf(o, revocation.Selection{Key: o.Key}))
	if err != nil {
		return none, err
	}
	out, changes, err := tx.carryOut(ctx, &s, o, func() ([]subject, error) { return readKeySubjects(ctx, tx, keyID(o.Key), 0, s.reach) })
	if err != nil || !changes && key.compromised {
		return out, err // carried out before
	}
	if err := tx.markKey(ctx, keyID(o.Key), o.At); err != nil {
		return none, err
	}
	entry := orderEntry(o, translog.CertificateRevoked, key.identity, out)
	entry.Facts["key"] = o.Key.String()
	if err := tx.append(ctx, entry); err != nil {
		return none, err
	}
	return out, tx.distrust(ctx, key.identity, o)
}

func (tx *writeTx) orderIdentity(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	action, moved, err := tx.moveIdentity(ctx, o)
	if err != nil {
		return none, err
	}
	s, err := newSet(ctx, tx, setOf(o, revocation.Selection{Identity: o.Identity}))
	if err != nil {
		return none, err
	}
	out, changes, err := tx.carryOut(ctx, &s, o, func() ([]subject, error) { return readSubjects(ctx, tx, o.Identity, s.reach) })
	if err != nil || !moved && !changes {
		return out, err // carried out before
	}
	if err := tx.append(ctx, orderEntry(o, action, o.Identity, out)); err != nil {
		return none, err
	}
	return out, tx.distrust(ctx, o.Identity, o)
}

// carryOut changes the certificates that an order reaches: few of them now, and more as a set, whose records follow. It reports
// whether any changes. An order that changes none leaves no set: if it was given before and its records are to follow, the
// outcome has the set of that time.
func (tx *writeTx) carryOut(ctx context.Context, s *setRow, o revocation.Change, few func() ([]subject, error)) (out revocation.ChangeResult, changes bool, err error) {
	many, err := s.isMany(ctx, tx)
	if err != nil {
		return out, false, err
	}
	if many {
		open, err := readOpenSets(ctx, tx)
		if err != nil {
			return out, false, err
		}
		if changes, err = s.changesAny(ctx, tx, open); err != nil {
			return out, false, err
		}
		if changes {
			err := tx.insertSet(ctx, s)
			return revocation.ChangeResult{BulkRevocation: s.ID}, true, err
		}
		if out.BulkRevocation = open.repeats(s); out.BulkRevocation != 0 {
			return out, false, nil
		}
	}
	subjects, err := few()
	if err != nil {
		return out, false, err
	}
	out.Changed, out.Unchanged, err = tx.changeSubjects(ctx, subjects, o)
	return out, len(out.Changed) > 0, err
}

// changeSubjects gives certificates their next status, and returns what has changed and what has not: that stands as it is,
// or was revoked before, for a reason of its own.
func (tx *writeTx) changeSubjects(ctx context.Context, subjects []subject, o revocation.Change) (changes, standing []pki.StatusChange, err error) {
	for _, c := range subjects {
		status, changed, err := next(c.status, o)
		if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleAlreadyRevoked {
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
func next(s pki.Status, o revocation.Change) (pki.Status, bool, error) {
	changed := pki.Status{Version: s.Version + 1, RevokedAt: o.At.Truncate(time.Second)}
	switch o.Action {
	case revocation.Revoke:
		changed.State, changed.Reason = pki.Revoked, o.Reason
		return nextRevoked(s, changed)
	case revocation.Hold:
		changed.State, changed.Reason = pki.Hold, pki.CertificateHold
		return changed, s.State == pki.Good, ifFinal(s)
	case revocation.Unhold:
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
	return pki.Refuse(pki.RuleAlreadyRevoked, "leave it as it is; only keyCompromise can follow", "it is revoked already (%s)", s.Reason)
}

func orderEntry(o revocation.Change, action translog.Action, id pki.SPIFFEID, out revocation.ChangeResult) translog.Entry {
	e := translog.Entry{
		Time: o.At, Actor: o.Actor, Action: action, Outcome: translog.Done, Identity: id, Changes: out.Changed, Facts: orderFacts(o),
	}
	if out.BulkRevocation != 0 {
		e.Facts["set"] = strconv.FormatInt(out.BulkRevocation, 10)
	}
	return e
}

// orderFacts are the reason, the invalidity date and the comment, where there are any.
func orderFacts(o revocation.Change) map[string]string {
	facts := map[string]string{}
	if o.Action == revocation.Revoke {
		facts["reason"] = o.Reason.String()
	}
	if !o.InvalidSince.IsZero() {
		facts["invalid_since"] = o.InvalidSince.UTC().Format(time.RFC3339)
	}
	if o.Comment != "" {
		facts["comment"] = o.Comment
	}
	return facts
}

// isKeyCompromise reports whether an order says that keys are not their holders' alone.
func isKeyCompromise(o revocation.Change) bool {
	return o.Action == revocation.Revoke && o.Reason == pki.KeyCompromise
}
