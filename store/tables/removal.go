package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/installed"
	"github.com/brevet-pki/brevet/translog"
)

// Retire retires an issuing CA or a root.
func (c *CA) Retire(ctx context.Context, id pki.IssuerID, at time.Time, confirm int, by pki.Actor) error {
	to := installationChange{"retire a CA", ca.Retired, translog.CARetired, func(ctx context.Context, tx *writeTx, this installed.Row) error {
		return mayRetire(ctx, tx, this, at, confirm)
	}}
	return c.change(ctx, id, to, at, by)
}

// Remove removes a CA.
func (c *CA) Remove(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error {
	to := installationChange{"remove a CA", ca.Removed, translog.CARemoved, func(ctx context.Context, tx *writeTx, this installed.Row) error {
		return tx.remove(ctx, this, at)
	}}
	return c.change(ctx, id, to, at, by)
}

// installationChange moves an installed CA to a later state.
type installationChange struct {
	what   string
	state  ca.InstallationState
	action translog.Action
	// prepare refuses the change, or deletes what the CA no longer has.
	prepare func(ctx context.Context, tx *writeTx, this installed.Row) error
}

// change changes the state of an installed CA and writes the log entry, unless the change is refused.
func (c *CA) change(ctx context.Context, id pki.IssuerID, to installationChange, at time.Time, by pki.Actor) error {
	return c.db.writeBy(ctx, to.what, by, pki.MayAdminister, at, func(ctx context.Context, tx *writeTx) error {
		this, found, err := installed.Of(ctx, tx, id)
		if err != nil || found && this.State == to.state {
			return err
		}
		if !found {
			return rules.NoInstallation(id)
		}
		if err := to.prepare(ctx, tx, this); err != nil {
			return err
		}
		if err := tx.ExecOne(ctx, `UPDATE ca_certificates SET state = ? WHERE id = ?`, to.state, this.ID); err != nil {
			return err
		}
		return tx.append(ctx, this.Entry(to.action, by, at))
	})
}

// mayRetire refuses to retire a CA without which no CA could issue certificates, and a root with certificates whose number
// is not confirmed.
func mayRetire(ctx context.Context, tx *writeTx, this installed.Row, at time.Time, confirm int) error {
	others, err := installed.Others(ctx, tx, this.ID)
	if err != nil {
		return err
	}
	if err := this.CheckRetire(others, at); err != nil {
		return err
	}
	now, err := bulk.Reach(ctx, tx, at)
	if err != nil {
		return err
	}
	var all rules.Unexpired
	for _, below := range this.Below(others) {
		found, err := stillIssued(ctx, tx, below, now)
		if err != nil {
			return err
		}
		all = all.Add(found)
	}
	return this.CheckConfirmed(all, confirm)
}

// stillIssued returns how many certificates of an issuing CA are neither expired nor revoked, without those of OCSP
// delegates.
func stillIssued(ctx context.Context, tx *writeTx, issuer pki.IssuerID, now time.Time) (rules.Unexpired, error) {
	var n int
	var last sql.NullInt64
	err := tx.QueryRow(ctx, `
		SELECT count(*), max(c.not_after) FROM certificates c LEFT JOIN identities i ON i.id = c.identity
		WHERE c.issuer = (SELECT id FROM issuers WHERE issuer = ?) AND c.not_after >= ? AND c.state <> ? AND coalesce(i.kind, 0) <> ?`,
		issuer.Bytes(), engine.Millis(now), pki.Revoked, pki.VA).Scan(&n, &last)
	return rules.Unexpired{Number: n, Last: engine.FromMillis(last.Int64)}, err
}

// remove deletes the CRLs and distribution points of a CA, unless they are still needed.
func (tx *writeTx) remove(ctx context.Context, this installed.Row, at time.Time) error {
	if err := mayRemove(ctx, tx, this, at); err != nil {
		return err
	}
	return tx.removePublished(ctx, this.Issuer)
}

// removePublished deletes the CRLs and distribution points of an issuer.
func (tx *writeTx) removePublished(ctx context.Context, issuer int64) error {
	for _, table := range []string{"crls", "crl_points", "crl_segments", "crl_packed"} {
		if _, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE issuer = ?`, issuer); err != nil {
			return err
		}
	}
	return nil
}

// mayRemove refuses to remove a CA if relying parties may still check its certificates. A certificate counts as expired only
// if it is older than the age of the records too, so that a clock that is ahead removes nothing.
func mayRemove(ctx context.Context, tx *writeTx, this installed.Row, at time.Time) error {
	now, err := bulk.Reach(ctx, tx, at)
	if err != nil || this.Removable(now) {
		return err
	}
	others, err := installed.Others(ctx, tx, this.ID)
	if err != nil {
		return err
	}
	if err := this.CheckRemove(others); err != nil {
		return err
	}
	return checkExpired(ctx, tx, this, now)
}

// checkExpired refuses to remove a CA with unexpired certificates, other than those of OCSP delegates.
func checkExpired(ctx context.Context, tx *writeTx, this installed.Row, now time.Time) error {
	var notAfter int64
	err := tx.QueryRow(ctx, `
		SELECT c.not_after FROM certificates c LEFT JOIN identities i ON i.id = c.identity
		WHERE c.issuer = ? AND c.not_after >= ? AND coalesce(i.kind, 0) <> ? ORDER BY c.not_after DESC LIMIT 1`,
		this.Issuer, engine.Millis(now), pki.VA).Scan(&notAfter)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return this.StillIssued(engine.FromMillis(notAfter))
}
