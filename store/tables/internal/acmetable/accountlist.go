package acmetable

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/caller"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

// Accounts implements acme.AccountInventory.
func (s *Store) Accounts(
	ctx context.Context, at time.Time, after acme.ID, limit int,
) (page []acme.ListedAccount, next acme.ID, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = s.file.Read(ctx, "list accounts", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, SelectAccounts, optionalID(after), limit+1, engine.Millis(at), acme.MaxCounted)
		return rows.Each(func(rows engine.Scanner) error {
			var r accountRow
			var a acme.ListedAccount
			err := rows.Scan(append(r.columns(), &a.Unexpired)...)
			if err != nil {
				return err
			}
			a.Account, err = r.decode()
			page = append(page, a)
			return err
		})
	})
	if err != nil {
		return nil, next, err
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, nil
}

// SelectAccounts selects accounts in descending order of their row IDs, with the number of their unexpired certificates up
// to a limit.
const SelectAccounts = `
	SELECT ` + accountColumns + `, (SELECT count(*) FROM (
		SELECT 1 FROM certificates c INDEXED BY certificates_by_account WHERE c.account = a.id AND c.not_after > ?3 LIMIT ?4) m)` + fromAccounts + `
	WHERE CAST(?1 AS BLOB) IS NULL OR a.id < (SELECT id FROM acme_accounts WHERE public_id = ?1) ORDER BY a.id DESC LIMIT ?2`

// RevokeAccount implements acme.AccountInventory.
func (s *Store) RevokeAccount(ctx context.Context, r acme.AccountRevocation) (a acme.Account, err error) {
	err = s.writeBy(ctx, "revoke an account", r.By, pki.MayRevoke, r.At,
		func(ctx context.Context, tx *engine.Tx, _ *caller.Callers) error {
			a, _, err = readAccount(ctx, tx, byID, r.ID[:])
			if isMissing(err) {
				return rules.UnknownAccount(r.ID)
			}
			if err != nil || a.Status == acme.AccountRevoked {
				return err
			}
			a.Status = acme.AccountRevoked
			if !a.ExternalKey.IsZero() {
				_, err := revokeKeyAlone(ctx, tx, acme.ExternalKeyRevocation{ID: a.ExternalKey, By: r.By, Comment: r.Comment, At: r.At})
				return err
			}
			if err := setStatus(ctx, tx, r.ID, acme.AccountRevoked); err != nil {
				return err
			}
			return logtable.Append(ctx, tx, rules.AccountRevokedEntry(r))
		})
	return a, err
}

func setStatus(ctx context.Context, tx *engine.Tx, id acme.ID, to acme.AccountStatus) error {
	return tx.ExecOne(ctx, `UPDATE acme_accounts SET status = ? WHERE public_id = ?`, numberOf(to), id[:])
}
