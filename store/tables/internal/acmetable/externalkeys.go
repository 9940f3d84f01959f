package acmetable

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/caller"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

// keyColumns are the columns of the external key k, with its identity i and its account a.
const keyColumns = `k.public_id, i.spiffe_id, k.rule, k.sealed, k.created_by, k.created_at, k.expires_at, k.revoked, a.public_id, a.status, i.state`

// fromKeys is the rest of a statement with keyColumns, before its condition.
const fromKeys = `
	FROM acme_external_keys k LEFT JOIN identities i ON i.id = k.identity LEFT JOIN acme_accounts a ON a.external_key = k.id `

// keyRow holds keyColumns.
type keyRow struct {
	id, sealed, account     []byte
	identity, rule, revoked sql.NullString
	createdBy               string
	createdAt, expiresAt    int64
	status, identityState   sql.NullInt64
}

func (r *keyRow) columns() []any {
	return []any{&r.id, &r.identity, &r.rule, &r.sealed, &r.createdBy, &r.createdAt, &r.expiresAt, &r.revoked, &r.account, &r.status, &r.identityState}
}

func (r *keyRow) decode() (acme.ExternalKey, error) {
	k := acme.ExternalKey{
		ID: idOf(r.id), Rule: r.rule.String, Account: idOf(r.account), Status: statuses[r.status.Int64], RevokedBecause: r.revoked.String,
		CreatedBy: pki.ActorFromText(r.createdBy), CreatedAt: engine.FromMillis(r.createdAt), ExpiresAt: engine.FromMillis(r.expiresAt),
	}
	var err error
	if r.identity.Valid {
		k.IdentityState = pki.IdentityState(r.identityState.Int64) //nolint:gosec // checked by the table
		k.Identity, err = pki.ParseSPIFFEID(r.identity.String)
	}
	return k, err
}

// idOf returns the ID in a column. It is zero for NULL.
func idOf(b []byte) acme.ID {
	var id acme.ID
	copy(id[:], b)
	return id
}

// optionalID returns NULL for the zero ID.
func optionalID(id acme.ID) any {
	if id.IsZero() {
		return nil
	}
	return id[:]
}

// CreateExternalKey implements acme.ExternalKeyStore.
func (s *Store) CreateExternalKey(ctx context.Context, k acme.ExternalKey, sealed []byte) (acme.ExternalKey, error) {
	err := s.writeBy(ctx, "record an external key", k.CreatedBy, pki.MayRegister, k.CreatedAt,
		func(ctx context.Context, tx *engine.Tx, callers *caller.Callers) error {
			if err := checkIdentity(ctx, tx, k, callers); err != nil {
				return err
			}
			if err := insertKey(ctx, tx, k, sealed); err != nil {
				return err
			}
			return logtable.Append(ctx, tx, rules.ExternalKeyCreatedEntry(&k))
		})
	return k, err
}

// checkIdentity refuses an identity that cannot have certificates, or on which the creator of a key may not act.
func checkIdentity(ctx context.Context, tx *engine.Tx, k acme.ExternalKey, callers *caller.Callers) error {
	if k.Identity.IsZero() {
		return callers.CheckLabels(k.CreatedBy, nil)
	}
	var state pki.IdentityState
	err := tx.QueryRow(ctx, `SELECT state FROM identities WHERE spiffe_id = ?`, k.Identity.String()).Scan(&state)
	if errors.Is(err, sql.ErrNoRows) {
		return rules.NoIdentity(k.Identity)
	}
	if err != nil {
		return err
	}
	if err := callers.CheckLabelsOf(ctx, tx, k.CreatedBy, k.Identity); err != nil {
		return err
	}
	if refusal := k.Identity.CheckMayHold(state); refusal != nil {
		return refusal
	}
	return nil
}

func insertKey(ctx context.Context, tx *engine.Tx, k acme.ExternalKey, sealed []byte) error {
	if len(sealed) == 0 {
		sealed = nil
	}
	creator := k.CreatedBy.Caller()
	_, err := tx.Exec(ctx, `
		INSERT INTO acme_external_keys (public_id, identity, rule, sealed, created_by, creator, creator_certificate, created_at, expires_at)
		SELECT ?, (SELECT id FROM identities WHERE spiffe_id = ?), ?, ?, ?, (SELECT id FROM identities WHERE spiffe_id = ?), ?, ?, ?`,
		k.ID[:], k.Identity.String(), column.OptionalText(k.Rule), sealed, k.CreatedBy.String(), creator.Identity.String(),
		column.EncodeRef(creator.Certificate), engine.Millis(k.CreatedAt), engine.Millis(k.ExpiresAt))
	return err
}

// readKey reads an external key and its sealed HMAC key.
func readKey(ctx context.Context, q engine.Querier, id acme.ID) (acme.ExternalKey, []byte, error) {
	var r keyRow
	err := q.QueryRow(ctx, `SELECT `+keyColumns+fromKeys+`WHERE k.public_id = `+engine.Blob, id[:]).Scan(r.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		return acme.ExternalKey{}, nil, rules.NoExternalKey(id)
	}
	if err != nil {
		return acme.ExternalKey{}, nil, err
	}
	k, err := r.decode()
	return k, r.sealed, err
}

// ExternalKey implements acme.ExternalKeyStore.
func (s *Store) ExternalKey(ctx context.Context, id acme.ID) (k acme.ExternalKey, sealed []byte, err error) {
	err = s.file.Look(ctx, "read an external key", func(ctx context.Context, q engine.Querier) error {
		k, sealed, err = readKey(ctx, q, id)
		return err
	})
	return k, sealed, err
}

// ExternalKeys implements acme.ExternalKeyStore.
func (s *Store) ExternalKeys(ctx context.Context, after acme.ID, limit int) (page []acme.ExternalKey, next acme.ID, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = s.file.Read(ctx, "list external keys", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT `+keyColumns+fromKeys+`
			WHERE CAST(?1 AS BLOB) IS NULL OR k.id < (SELECT id FROM acme_external_keys WHERE public_id = ?1) ORDER BY k.id DESC LIMIT ?2`,
			optionalID(after), limit+1)
		return rows.Each(func(rows engine.Scanner) error {
			var r keyRow
			if err := rows.Scan(r.columns()...); err != nil {
				return err
			}
			k, err := r.decode()
			page = append(page, k)
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

// RevokeExternalKey implements acme.ExternalKeyStore.
func (s *Store) RevokeExternalKey(ctx context.Context, r acme.ExternalKeyRevocation) (k acme.ExternalKey, err error) {
	err = s.writeBy(ctx, "revoke an external key", r.By, pki.MayRevoke, r.At,
		func(ctx context.Context, tx *engine.Tx, _ *caller.Callers) error {
			k, err = revokeKeyAlone(ctx, tx, r)
			return err
		})
	return k, err
}

// revokeKeyAlone revokes an external key with its account, and writes a log entry, unless the key is revoked already.
func revokeKeyAlone(ctx context.Context, tx *engine.Tx, r acme.ExternalKeyRevocation) (acme.ExternalKey, error) {
	k, _, err := readKey(ctx, tx, r.ID)
	if err != nil || k.RevokedBecause != "" {
		return k, err
	}
	if err := revokeKey(ctx, tx, r.ID, rules.ExternalKeyRevokedAlone); err != nil {
		return k, err
	}
	if k, _, err = readKey(ctx, tx, r.ID); err != nil {
		return k, err
	}
	err = logtable.Append(ctx, tx, rules.ExternalKeyRevokedEntry(r, &k))
	return k, err
}

// revokeKey revokes an external key and its account.
func revokeKey(ctx context.Context, tx *engine.Tx, id acme.ID, cause string) error {
	err := tx.ExecOne(ctx, `UPDATE acme_external_keys SET revoked = ?, sealed = NULL WHERE public_id = ?`, cause, id[:])
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		UPDATE acme_accounts SET status = ? WHERE external_key = (SELECT id FROM acme_external_keys WHERE public_id = ?)`,
		numberOf(acme.AccountRevoked), id[:])
	return err
}

// RevokeKeysOf revokes the unused external keys that an identity has created, and writes a log entry if there are any.
func RevokeKeysOf(ctx context.Context, tx *engine.Tx, creator pki.SPIFFEID, cause string, by pki.Actor, at time.Time) error {
	n, err := revokeKeysOf(ctx, tx, creator, cause)
	if err != nil || n == 0 {
		return err
	}
	return logtable.Append(ctx, tx, rules.ExternalKeysRevokedEntry(creator, cause, by, at))
}

func revokeKeysOf(ctx context.Context, tx *engine.Tx, creator pki.SPIFFEID, cause string) (int64, error) {
	return tx.Exec(ctx, `
		UPDATE acme_external_keys SET revoked = ?, sealed = NULL
		WHERE creator = (SELECT id FROM identities WHERE spiffe_id = ?) AND revoked IS NULL
		  AND NOT EXISTS (SELECT 1 FROM acme_accounts a WHERE a.external_key = acme_external_keys.id)`,
		cause, creator.String())
}
