package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/installed"
	"github.com/brevet-pki/brevet/translog"
)

// Retire retires an issuing CA or a root.
func (c *CA) Retire(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error {
	return c.change(ctx, "retire a CA", id, ca.Retired, at, by)
}

// Remove removes a CA.
func (c *CA) Remove(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error {
	return c.change(ctx, "remove a CA", id, ca.Removed, at, by)
}

// change moves an installed CA to a later state and writes the log entry, unless the change is refused.
func (c *CA) change(ctx context.Context, what string, id pki.IssuerID, to ca.InstallationState, at time.Time, by pki.Actor) error {
	return c.db.writeBy(ctx, what, by, pki.MayAdminister, at, func(ctx context.Context, tx *writeTx) error {
		this, found, err := installed.Of(ctx, tx, id)
		if err != nil || found && this.State == to {
			return err
		}
		if !found {
			return rules.NoInstallation(id)
		}
		action := translog.CARetired
		if to == ca.Retired {
			err = mayRetire(ctx, tx, this, at)
		} else {
			action, err = translog.CARemoved, tx.remove(ctx, this, at)
		}
		if err != nil {
			return err
		}
		if err := tx.ExecOne(ctx, `UPDATE ca_certificates SET state = ? WHERE id = ?`, to, this.ID); err != nil {
			return err
		}
		return tx.append(ctx, this.Entry(action, by, at))
	})
}

// mayRetire refuses to retire a CA without which no CA could issue certificates.
func mayRetire(ctx context.Context, tx *writeTx, this installed.Row, at time.Time) error {
	others, err := installed.Others(ctx, tx, this.ID)
	if err != nil {
		return err
	}
	return this.CheckRetire(others, at)
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
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE issuer = ?`, issuer); err != nil {
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
	err := tx.QueryRowContext(ctx, `
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
