package sqlite

import (
	"context"
	"database/sql"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// keyColumns selects the state of a key. It needs k, a LEFT JOIN with keys. The last column is true for the key of a CA.
const keyColumns = `k.rest, k.identity, k.compromised_at, EXISTS (SELECT 1 FROM ca_certificates WHERE key_hash = q.hash)`

// storedKey is a key as it is stored: the row ID and the rest of the hash.
type storedKey struct {
	id   sql.NullInt64
	rest []byte
}

// hash returns the hash of the key, and zero if there is no key.
func (k storedKey) hash() (pki.KeyHash, error) {
	if !k.id.Valid {
		return pki.KeyHash{}, nil
	}
	return column.KeyHash(k.id.Int64, k.rest)
}

// keyRow is a row of keyColumns. If rest is NULL, the key is not on record.
type keyRow struct {
	rest                    []byte
	identity, compromisedAt sql.NullInt64
	reserved                bool
}

func (k *keyRow) columns() []any { return []any{&k.rest, &k.identity, &k.compromisedAt, &k.reserved} }

// applyOpenBulk marks the key as compromised if an open bulk revocation does.
func (k *keyRow) applyOpenBulk(ctx context.Context, q engine.Querier, open bulk.Open, key pki.KeyHash) error {
	if !k.identity.Valid || k.compromisedAt.Valid {
		return nil
	}
	compromised, err := open.Compromises(ctx, q, column.KeyID(key), k.identity.Int64)
	k.compromisedAt.Valid = compromised
	return err
}

// state returns the state of the key, which is to be certified for an identity.
func (k *keyRow) state(key pki.KeyHash, identity int64) rules.Key {
	return rules.Key{
		Reserved: k.reserved, Collides: k.rest != nil && string(k.rest) != string(column.KeyRest(key)),
		Compromised: k.compromisedAt.Valid, Foreign: k.identity.Valid && k.identity.Int64 != identity,
	}
}

// claim records that a key is certified for an identity, and adds uses to the number of certificates that refer to it. The
// guard has checked that no other identity has the key.
func (tx *writeTx) claim(ctx context.Context, key pki.KeyHash, identity int64, uses int) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO keys (id, rest, identity, uses) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET uses = uses + excluded.uses`,
		column.KeyID(key), column.KeyRest(key), identity, uses)
	return err
}
