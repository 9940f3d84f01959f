package tables

import (
	"context"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
)

// Revocation is the view of the revocation authority and of responders. It implements revocation.Store, crl.Store and
// responder.Feed.
type Revocation struct{ db *DB }

// Apply makes a change and returns the changed certificates.
//
// A change that takes an identity off hold takes all of its certificates off hold. While the identity is suspended, no
// single certificate of it can be taken off hold. A change of an identity leaves revoked certificates as they are, with one
// exception: the reason keyCompromise replaces their reason.
func (r *Revocation) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	var out revocation.ChangeResult
	need := rules.ChangePermission(o, o.Identity)
	err := r.db.writeOnce(ctx, "change the status", o.Actor, need, o.At, func(ctx context.Context, tx *writeTx) (rules.Outcome, error) {
		err := o.CheckSubject()
		switch {
		case err != nil:
		case !o.Certificate.IsZero():
			out, err = tx.changeCertificate(ctx, o)
		case !o.Identity.IsZero():
			out, err = tx.changeIdentity(ctx, o)
		default:
			out, err = tx.changeKey(ctx, o)
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
	var all []bulk.Certificate
	identity := o.Identity
	if !o.Certificate.IsZero() {
		c, err := bulk.ReadCertificate(ctx, tx, o.Certificate)
		if err != nil {
			return nil, err
		}
		all, identity = append(all, c), c.Identity
	}
	row, err := bulk.New(ctx, tx, rules.BulkOf(o, pki.Selection{Identity: identity}))
	if err != nil {
		return nil, err
	}
	many, err := row.IsMany(ctx, tx)
	switch {
	case err != nil:
		return nil, err
	case many || have.Bulk != 0:
	case o.Certificate.IsZero():
		all, err = bulk.CertificatesOf(ctx, tx, identity, row.Reach)
	case rules.CompromisesKeys(o) && all[0].Key.Valid:
		var others []bulk.Certificate
		others, err = bulk.CertificatesOfKey(ctx, tx, all[0].Key.Int64, all[0].ID, row.Reach)
		all = append(others, all...)
	}
	var scope []pki.StatusChange
	for i := range all {
		scope = append(scope, all[i].Unchanged())
	}
	return scope, err
}

func (tx *writeTx) changeCertificate(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	c, err := bulk.ReadCertificate(ctx, tx, o.Certificate)
	if err != nil {
		return none, err
	}
	if err := tx.authorize(ctx, o.Actor, rules.ChangePermission(o, c.Identity), o.At); err != nil {
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
	if rules.CompromisesKeys(o) && c.Key.Valid { // a renewal may have the same key
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
func (tx *writeTx) checkHold(ctx context.Context, c bulk.Certificate, o revocation.Change) error {
	if o.Action == revocation.Revoke {
		return nil
	}
	holding, err := bulk.IsHolding(ctx, tx, c.Identity)
	if err != nil {
		return err
	}
	return c.CheckHold(o, holding)
}

// revokeKey revokes the other certificates of a compromised key.
func (tx *writeTx) revokeKey(ctx context.Context, c bulk.Certificate, o revocation.Change, out *rules.Applied) error {
	key := issuing.StoredKey{ID: c.Key}
	if err := tx.QueryRow(ctx, `SELECT rest FROM keys WHERE id = ?`, c.Key.Int64).Scan(&key.Rest); err != nil {
		return err
	}
	hash, err := key.Hash()
	if err != nil {
		return err
	}
	row, err := bulk.New(ctx, tx, rules.BulkOf(o, pki.Selection{Key: hash}))
	if err != nil {
		return err
	}
	_, err = tx.changeAffected(ctx, &row, o, out, func() ([]bulk.Certificate, error) {
		return bulk.CertificatesOfKey(ctx, tx, c.Key.Int64, c.ID, row.Reach)
	})
	return err
}

// changeKey revokes the certificates of a compromised key. It marks the key as compromised even if all of them have expired.
func (tx *writeTx) changeKey(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	key, err := bulk.ReadKey(ctx, tx, o.Key)
	if err != nil {
		return none, err
	}
	row, err := bulk.New(ctx, tx, rules.BulkOf(o, pki.Selection{Key: o.Key}))
	if err != nil {
		return none, err
	}
	var out rules.Applied
	changes, err := tx.changeAffected(ctx, &row, o, &out, func() ([]bulk.Certificate, error) {
		return bulk.CertificatesOfKey(ctx, tx, column.KeyID(o.Key), 0, row.Reach)
	})
	if err != nil || !changes && key.Compromised {
		return out.ChangeResult, err // the change was made before
	}
	if err := tx.markKey(ctx, column.KeyID(o.Key), o.At); err != nil {
		return none, err
	}
	if err := tx.append(ctx, rules.KeyEntry(o, key.Identity, out)); err != nil {
		return none, err
	}
	return out.ChangeResult, tx.distrust(ctx, key.Identity, o)
}

func (tx *writeTx) changeIdentity(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	none := revocation.ChangeResult{}
	move, err := tx.setIdentityState(ctx, o)
	if err != nil {
		return none, err
	}
	row, err := bulk.New(ctx, tx, rules.BulkOf(o, pki.Selection{Identity: o.Identity}))
	if err != nil {
		return none, err
	}
	var out rules.Applied
	changes, err := tx.changeAffected(ctx, &row, o, &out, func() ([]bulk.Certificate, error) { return bulk.CertificatesOf(ctx, tx, o.Identity, row.Reach) })
	if err != nil || !move.Changed && !changes {
		return out.ChangeResult, err // the change was made before
	}
	if err := tx.append(ctx, rules.IdentityEntry(o, move.Action, out)); err != nil {
		return none, err
	}
	return out.ChangeResult, tx.distrust(ctx, o.Identity, o)
}

// changeAffected changes the certificates that a change affects. It changes few of them in this transaction, and creates a
// bulk revocation for more (see bulk.Row.IsMany). It reports whether any certificate changes.
//
// If none changes, it creates no bulk revocation. If the change repeats one whose bulk revocation is still open, the result
// names that bulk revocation.
func (tx *writeTx) changeAffected(
	ctx context.Context, row *bulk.Row, o revocation.Change, out *rules.Applied, few func() ([]bulk.Certificate, error),
) (changes bool, err error) {
	many, err := row.IsMany(ctx, tx)
	if err != nil {
		return false, err
	}
	if many {
		open, err := bulk.ReadOpen(ctx, tx)
		if err != nil {
			return false, err
		}
		if changes, err = row.ChangesAny(ctx, tx, open); err != nil {
			return false, err
		}
		if changes {
			err := tx.insertBulk(ctx, row)
			created := row.RecordedBulk
			out.BulkRevocation, out.Created = row.ID, &created
			return true, err
		}
		if out.BulkRevocation = open.RepeatedBy(row); out.BulkRevocation != 0 {
			return false, nil
		}
	}
	members, err := few()
	if err != nil {
		return false, err
	}
	before := len(out.Changed)
	err = tx.changeMembers(ctx, members, o, out)
	return len(out.Changed) > before, err
}

// changeMembers applies a change to certificates. It adds each to the changed or to the unchanged ones in out. A certificate
// is unchanged if its status would be the same, or if it was revoked before for another reason.
func (tx *writeTx) changeMembers(ctx context.Context, members []bulk.Certificate, o revocation.Change, out *rules.Applied) error {
	for i := range members {
		c := &members[i]
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
