package sqlite

import (
	"context"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
)

// Revocation is the view of the revocation authority and of responders. It implements revocation.Store, crl.Store and
// responder.Feed.
type Revocation struct{ db *DB }

// Apply makes a change and returns the changed certificates.
//
// Unholding an identity unholds all of its certificates. A single certificate cannot be unheld while its identity is
// suspended. A change of an identity does not change revoked certificates, except for the reason keyCompromise.
func (r *Revocation) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	var out revocation.ChangeResult
	err := r.db.writeOnce(ctx, "carry out the order", o.Actor, o.At, func(ctx context.Context, tx *writeTx) (rules.Outcome, error) {
		err := o.CheckSubject()
		switch {
		case err != nil:
		case !o.Certificate.IsZero():
			out, err = tx.orderCertificate(ctx, o)
		case !o.Identity.IsZero():
			out, err = tx.orderIdentity(ctx, o)
		default:
			out, err = tx.orderKey(ctx, o)
		}
		return rules.OutcomeOf(out, o.At), err
	}, func(ctx context.Context, tx *writeTx, have rules.Outcome) error {
		scope, err := tx.scope(ctx, o, have)
		out = have.Repeated(scope)
		return err
	})
	if err != nil {
		return revocation.ChangeResult{}, err
	}
	return out, nil
}

// scope returns the current statuses of the certificates that a change of a certificate or an identity concerns. If they are
// many, it leaves them out: the steps of the bulk revocation notify the responder.
func (tx *writeTx) scope(ctx context.Context, o revocation.Change, have rules.Outcome) ([]pki.StatusChange, error) {
	var all []subject
	identity := o.Identity
	if !o.Certificate.IsZero() {
		c, err := readSubject(ctx, tx, o.Certificate)
		if err != nil {
			return nil, err
		}
		all, identity = append(all, c), c.Identity
	}
	s, err := newSet(ctx, tx, rules.BulkOf(o, pki.Selection{Identity: identity}))
	if err != nil {
		return nil, err
	}
	many, err := s.isMany(ctx, tx)
	switch {
	case err != nil:
		return nil, err
	case many || have.Bulk != 0:
	case o.Certificate.IsZero():
		all, err = readSubjects(ctx, tx, identity, s.reach)
	case rules.CompromisesKeys(o) && all[0].key.Valid:
		var others []subject
		others, err = readKeySubjects(ctx, tx, all[0].key.Int64, all[0].id, s.reach)
		all = append(others, all...)
	}
	var scope []pki.StatusChange
	for i := range all {
		scope = append(scope, all[i].Unchanged())
	}
	return scope, err
}

func (tx *writeTx) orderCertificate(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	c, err := readSubject(ctx, tx, o.Certificate)
	if err != nil {
		return none, err
	}
	change, invalidSince, changed, err := c.Change(o)
	if err != nil {
		return none, fmt.Errorf("certificate %s: %w", o.Certificate.Serial, err)
	}
	if !changed {
		return revocation.ChangeResult{Unchanged: []pki.StatusChange{change}}, nil
	}
	if err := tx.checkHold(ctx, c, o); err != nil {
		return none, err
	}
	if err := tx.setStatus(ctx, &c, change.Status, invalidSince, o); err != nil {
		return none, err
	}
	var out rules.Applied
	out.Add(change, invalidSince)
	if rules.CompromisesKeys(o) && c.key.Valid { // a renewal may have the same key
		if err := tx.revokeKey(ctx, c, o, &out); err != nil {
			return none, err
		}
	}
	if err := tx.append(ctx, rules.CertificateEntry(o, c.Identity, out)); err != nil {
		return none, err
	}
	return out.ChangeResult, tx.distrust(ctx, c.Identity, o)
}

// checkHold refuses to hold or unhold a single certificate if this conflicts with a change of all certificates of its
// identity. See rules.Certificate.CheckHold.
func (tx *writeTx) checkHold(ctx context.Context, c subject, o revocation.Change) error {
	if o.Action == revocation.Revoke {
		return nil
	}
	holding, err := isHolding(ctx, tx, c.Identity)
	if err != nil {
		return err
	}
	return c.CheckHold(o, holding)
}

// revokeKey revokes the other certificates of a compromised key.
func (tx *writeTx) revokeKey(ctx context.Context, c subject, o revocation.Change, out *rules.Applied) error {
	key := storedKey{id: c.key}
	if err := tx.QueryRowContext(ctx, `SELECT rest FROM keys WHERE id = ?`, c.key.Int64).Scan(&key.rest); err != nil {
		return err
	}
	hash, err := key.hash()
	if err != nil {
		return err
	}
	s, err := newSet(ctx, tx, rules.BulkOf(o, pki.Selection{Key: hash}))
	if err != nil {
		return err
	}
	_, err = tx.carryOut(ctx, &s, o, out, func() ([]subject, error) { return readKeySubjects(ctx, tx, c.key.Int64, c.id, s.reach) })
	return err
}

// orderKey revokes the certificates of a compromised key. It marks the key as compromised even if all of them have expired.
func (tx *writeTx) orderKey(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	key, err := readKey(ctx, tx, o.Key)
	if err != nil {
		return none, err
	}
	s, err := newSet(ctx, tx, rules.BulkOf(o, pki.Selection{Key: o.Key}))
	if err != nil {
		return none, err
	}
	var out rules.Applied
	changes, err := tx.carryOut(ctx, &s, o, &out, func() ([]subject, error) { return readKeySubjects(ctx, tx, keyID(o.Key), 0, s.reach) })
	if err != nil || !changes && key.compromised {
		return out.ChangeResult, err // the change was made before
	}
	if err := tx.markKey(ctx, keyID(o.Key), o.At); err != nil {
		return none, err
	}
	if err := tx.append(ctx, rules.KeyEntry(o, key.identity, out)); err != nil {
		return none, err
	}
	return out.ChangeResult, tx.distrust(ctx, key.identity, o)
}

func (tx *writeTx) orderIdentity(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	move, err := tx.moveIdentity(ctx, o)
	if err != nil {
		return none, err
	}
	s, err := newSet(ctx, tx, rules.BulkOf(o, pki.Selection{Identity: o.Identity}))
	if err != nil {
		return none, err
	}
	var out rules.Applied
	changes, err := tx.carryOut(ctx, &s, o, &out, func() ([]subject, error) { return readSubjects(ctx, tx, o.Identity, s.reach) })
	if err != nil || !move.Changed && !changes {
		return out.ChangeResult, err // the change was made before
	}
	if err := tx.append(ctx, rules.IdentityEntry(o, move.Action, out)); err != nil {
		return none, err
	}
	return out.ChangeResult, tx.distrust(ctx, o.Identity, o)
}

// carryOut changes the certificates that a change affects. It changes up to maxAtOnce of them in this transaction, and creates
// a bulk revocation for more. It reports whether any certificate changes.
//
// If none changes, it creates no bulk revocation. If the change repeats one whose bulk revocation is still open, the result
// names that bulk revocation.
func (tx *writeTx) carryOut(
	ctx context.Context, s *setRow, o revocation.Change, out *rules.Applied, few func() ([]subject, error),
) (changes bool, err error) {
	many, err := s.isMany(ctx, tx)
	if err != nil {
		return false, err
	}
	if many {
		open, err := readOpenSets(ctx, tx)
		if err != nil {
			return false, err
		}
		if changes, err = s.changesAny(ctx, tx, open); err != nil {
			return false, err
		}
		if changes {
			err := tx.insertSet(ctx, s)
			created := s.recorded()
			out.BulkRevocation, out.Created = s.ID, &created
			return true, err
		}
		if out.BulkRevocation = open.repeats(s); out.BulkRevocation != 0 {
			return false, nil
		}
	}
	subjects, err := few()
	if err != nil {
		return false, err
	}
	before := len(out.Changed)
	err = tx.changeSubjects(ctx, subjects, o, out)
	return len(out.Changed) > before, err
}

// changeSubjects applies a change to certificates. It adds each to the changed or to the unchanged ones in out. A certificate
// is unchanged if its status would be the same, or if it was revoked before for another reason.
func (tx *writeTx) changeSubjects(ctx context.Context, subjects []subject, o revocation.Change, out *rules.Applied) error {
	for i := range subjects {
		c := &subjects[i]
		change, invalidSince, changed, err := c.ChangeMember(o)
		if err != nil {
			return err
		}
		if !changed {
			out.Unchanged = append(out.Unchanged, change)
			continue
		}
		if err := tx.setStatus(ctx, c, change.Status, invalidSince, o); err != nil {
			return err
		}
		out.Add(change, invalidSince)
	}
	return nil
}
