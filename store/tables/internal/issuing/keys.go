package issuing

import (
	"context"
	"database/sql"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// KeyColumns selects the state of a key. It needs k, a LEFT JOIN with keys. The last column is true for the key of a CA.
// PostgreSQL would read the whole table for EXISTS.
const KeyColumns = `k.rest, k.identity, k.compromised_at, coalesce((SELECT 1 FROM ca_certificates WHERE key_hash = q.hash LIMIT 1), 0)`

// StoredKey is a key as it is stored: the row ID and the rest of the hash.
type StoredKey struct {
	ID   sql.NullInt64
	Rest []byte
}

// Hash returns the hash of the key, and zero if there is no key.
func (k StoredKey) Hash() (pki.KeyHash, error) {
	if !k.ID.Valid {
		return pki.KeyHash{}, nil
	}
	return column.KeyHash(k.ID.Int64, k.Rest)
}

// KeyRow is a row of KeyColumns. If rest is NULL, the key is not on record.
type KeyRow struct {
	rest                    []byte
	identity, compromisedAt sql.NullInt64
	reserved                bool
}

// Columns returns the destinations of KeyColumns.
func (k *KeyRow) Columns() []any { return []any{&k.rest, &k.identity, &k.compromisedAt, &k.reserved} }

// ApplyOpenBulk marks the key as compromised if an open bulk revocation does.
func (k *KeyRow) ApplyOpenBulk(ctx context.Context, q engine.Querier, open bulk.Open, key pki.KeyHash) error {
	if !k.identity.Valid || k.compromisedAt.Valid {
		return nil
	}
	compromised, err := open.Compromises(ctx, q, column.KeyID(key), k.identity.Int64)
	k.compromisedAt.Valid = compromised
	return err
}

// State returns the state of the key, which is to be certified for an identity.
func (k *KeyRow) State(key pki.KeyHash, identity int64) rules.Key {
	return rules.Key{
		Reserved: k.reserved, Collides: k.rest != nil && string(k.rest) != string(column.KeyRest(key)),
		Compromised: k.compromisedAt.Valid, Foreign: k.identity.Valid && k.identity.Int64 != identity,
	}
}

// ClaimKey is a statement that records that a key is certified for an identity, and adds to the number of certificates that
// refer to it. The guard has checked that no other identity has the key.
const ClaimKey = `
	INSERT INTO keys (id, rest, identity, uses) VALUES (?, ?, ?, ?)
	ON CONFLICT (id) DO UPDATE SET uses = keys.uses + excluded.uses`

// Claim returns the arguments of ClaimKey.
func Claim(key pki.KeyHash, identity int64, uses int) []any {
	return []any{column.KeyID(key), column.KeyRest(key), identity, uses}
}
