package acmetable

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

// statuses are the statuses of accounts by their numbers in the table. The number 0 stands for no account.
var statuses = [...]acme.AccountStatus{"", acme.AccountValid, acme.AccountDeactivated, acme.AccountRevoked}

func numberOf(s acme.AccountStatus) int {
	for n, have := range statuses {
		if have == s {
			return n
		}
	}
	return 0
}

// accountColumns are the columns of the account a, with its external key k.
const accountColumns = `a.id, a.public_id, a.key, a.thumbprint, a.status, a.contact, k.public_id, a.created_at`

// fromAccounts is the rest of a statement with accountColumns, before its condition.
const fromAccounts = ` FROM acme_accounts a LEFT JOIN acme_external_keys k ON k.id = a.external_key `

// accountRow holds accountColumns.
type accountRow struct {
	row                              int64
	id, key, thumbprint, externalKey []byte
	status, createdAt                int64
	contact                          sql.NullString
}

func (r *accountRow) columns() []any {
	return []any{&r.row, &r.id, &r.key, &r.thumbprint, &r.status, &r.contact, &r.externalKey, &r.createdAt}
}

func (r *accountRow) decode() (acme.Account, error) {
	a := acme.Account{
		ID: idOf(r.id), Key: r.key, Status: statuses[r.status], ExternalKey: idOf(r.externalKey), CreatedAt: engine.FromMillis(r.createdAt),
	}
	copy(a.Thumbprint[:], r.thumbprint)
	if r.contact.Valid {
		if err := json.Unmarshal([]byte(r.contact.String), &a.Contact); err != nil {
			return a, fmt.Errorf("read the contacts of the account %s: %w", a.ID, err)
		}
	}
	return a, nil
}

func encodeContact(contact []string) (any, error) {
	if len(contact) == 0 {
		return nil, nil //nolint:nilnil // NULL
	}
	text, err := json.Marshal(contact)
	return string(text), err
}

// readAccount reads the account that satisfies a condition with one argument, and its row ID.
func readAccount(ctx context.Context, q engine.Querier, where string, argument any) (acme.Account, int64, error) {
	var r accountRow
	err := q.QueryRow(ctx, `SELECT `+accountColumns+fromAccounts+where, argument).Scan(r.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		return acme.Account{}, 0, rules.NoAccount()
	}
	if err != nil {
		return acme.Account{}, 0, err
	}
	a, err := r.decode()
	return a, r.row, err
}

// The conditions of readAccount. A join that compares a column with a parameter would be planned again for each execution
// ([engine.Blob]).
const (
	byID         = `WHERE a.public_id = ` + engine.Blob
	byThumbprint = `WHERE a.thumbprint = ` + engine.Blob
)

// CreateAccount implements acme.AccountStore.
func (s *Store) CreateAccount(ctx context.Context, a acme.Account) (have acme.Account, created bool, err error) {
	err = s.file.Write(ctx, "record an account", func(ctx context.Context, tx *engine.Tx) error {
		created = false
		holder, row, err := readAccount(ctx, tx, byThumbprint, a.Thumbprint[:])
		if row != 0 {
			have = holder
			if err == nil {
				err = holder.CheckValid()
			}
			return err
		}
		if !a.ExternalKey.IsZero() {
			k, _, err := readKey(ctx, tx, a.ExternalKey)
			if err != nil {
				return err
			}
			if refusal := rules.CheckExternalKeyOpen(&k, a.CreatedAt); refusal != nil {
				return refusal
			}
		}
		if err := insertAccount(ctx, tx, a); err != nil {
			return err
		}
		have, created = a, true
		have.CreatedAt = engine.FromMillis(engine.Millis(a.CreatedAt))
		return logtable.Append(ctx, tx, rules.AccountCreatedEntry(&a))
	})
	return have, err == nil && created, err
}

// insertAccount records an account, and erases the HMAC key of its external key.
func insertAccount(ctx context.Context, tx *engine.Tx, a acme.Account) error {
	contact, err := encodeContact(a.Contact)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO acme_accounts (public_id, key, thumbprint, status, contact, external_key, created_at)
		VALUES (?, ?, ?, ?, ?, (SELECT id FROM acme_external_keys WHERE public_id = ?), ?)`,
		a.ID[:], a.Key, a.Thumbprint[:], numberOf(a.Status), contact, optionalID(a.ExternalKey), engine.Millis(a.CreatedAt))
	if err != nil || a.ExternalKey.IsZero() {
		return err
	}
	return tx.ExecOne(ctx, `UPDATE acme_external_keys SET sealed = NULL WHERE public_id = ?`, a.ExternalKey[:])
}

// Account implements acme.AccountStore.
func (s *Store) Account(ctx context.Context, id acme.ID) (acme.Account, error) {
	read := func() (acme.Account, error) { return s.account(ctx, byID, id[:]) }
	if !s.file.IsExclusive() {
		return read() // another process may change it
	}
	return s.accounts.read(id, read)
}

// AccountByKey implements acme.AccountStore.
func (s *Store) AccountByKey(ctx context.Context, thumbprint [32]byte) (acme.Account, error) {
	return s.account(ctx, byThumbprint, thumbprint[:])
}

func (s *Store) account(ctx context.Context, where string, argument []byte) (a acme.Account, err error) {
	err = s.file.Look(ctx, "read an account", func(ctx context.Context, q engine.Querier) error {
		a, _, err = readAccount(ctx, q, where, argument)
		return err
	})
	return a, err
}

// ChangeAccount implements acme.AccountStore.
func (s *Store) ChangeAccount(ctx context.Context, c acme.AccountChange) (a acme.Account, err error) {
	defer s.accounts.changed()
	err = s.file.Write(ctx, "change an account", func(ctx context.Context, tx *engine.Tx) error {
		have, row, err := readAccount(ctx, tx, byID, c.ID[:])
		if err != nil {
			return err
		}
		var holder *acme.Account
		if c.NewKey != nil {
			other, otherRow, err := readAccount(ctx, tx, byThumbprint, c.NewThumbprint[:])
			if otherRow != 0 {
				holder = &other
			} else if !isMissing(err) {
				return err
			}
		}
		var changed bool
		if a, changed, err = rules.ChangeAccount(have, c, holder); err != nil || !changed {
			return err
		}
		contact, err := encodeContact(a.Contact)
		if err != nil {
			return err
		}
		err = tx.ExecOne(ctx, `UPDATE acme_accounts SET key = ?, thumbprint = ?, status = ?, contact = ? WHERE id = ?`,
			a.Key, a.Thumbprint[:], numberOf(a.Status), contact, row)
		if err != nil {
			return err
		}
		if e, logged := rules.AccountChangedEntry(&a, c); logged {
			return logtable.Append(ctx, tx, e)
		}
		return nil
	})
	return a, err
}
