package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// keyColumns selects the state of a key. It needs k, a LEFT JOIN with keys. The last column is true for the key of a CA.
const keyColumns = `k.rest, k.identity, k.compromised_at, EXISTS (SELECT 1 FROM ca_certificates WHERE key_hash = q.hash)`

// keyID returns the row ID of a key, which is the first 8 bytes of its hash.
func keyID(h pki.KeyHash) int64 {
	return int64(binary.BigEndian.Uint64(h.Bytes())) //nolint:gosec // the same bytes, read as SQLite's integer
}

func keyRest(h pki.KeyHash) []byte { return h.Bytes()[8:] }

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
	return pki.KeyHashFromBytes(append(binary.BigEndian.AppendUint64(nil, uint64(k.id.Int64)), k.rest...)) //nolint:gosec // as in keyID
}

// keyRow is a row of keyColumns. If rest is NULL, the key is not on record.
type keyRow struct {
	rest                    []byte
	identity, compromisedAt sql.NullInt64
	reserved                bool
}

func (k *keyRow) columns() []any { return []any{&k.rest, &k.identity, &k.compromisedAt, &k.reserved} }

// addSets marks the key as compromised if an open bulk revocation does.
func (k *keyRow) addSets(ctx context.Context, q engine.Querier, open openSets, key pki.KeyHash) error {
	if !k.identity.Valid || k.compromisedAt.Valid {
		return nil
	}
	compromised, err := open.compromise(ctx, q, keyID(key), k.identity.Int64)
	k.compromisedAt.Valid = compromised
	return err
}

// state returns the state of the key, which is to be certified for an identity.
func (k *keyRow) state(key pki.KeyHash, identity int64) rules.Key {
	return rules.Key{
		Reserved: k.reserved, Collides: k.rest != nil && string(k.rest) != string(keyRest(key)),
		Compromised: k.compromisedAt.Valid, Foreign: k.identity.Valid && k.identity.Int64 != identity,
	}
}

// certifiedKey is a row of keys.
type certifiedKey struct {
	identity    pki.SPIFFEID
	compromised bool
}

// readKey reads a key that was certified.
func readKey(ctx context.Context, q engine.Querier, key pki.KeyHash) (certifiedKey, error) {
	var k certifiedKey
	var identity string
	row := q.QueryRowContext(ctx, `
		SELECT n.spiffe_id, k.compromised_at IS NOT NULL FROM keys k JOIN identities n ON n.id = k.identity WHERE k.id = ? AND k.rest = ?`,
		keyID(key), keyRest(key))
	err := row.Scan(&identity, &k.compromised)
	if errors.Is(err, sql.ErrNoRows) {
		return k, rules.NoKey(key)
	}
	if err == nil {
		k.identity, err = pki.ParseSPIFFEID(identity)
	}
	return k, err
}

// claim records that a key is certified for an identity, and adds names to the number of certificates that refer to it. The
// guard has checked that no other identity has the key.
func (tx *writeTx) claim(ctx context.Context, key pki.KeyHash, identity int64, names int) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO keys (id, rest, identity, named) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET named = named + excluded.named`,
		keyID(key), keyRest(key), identity, names)
	return err
}

// unname decrements the number of certificates that refer to a key. A key without certificates is deleted, unless it is
// compromised, because a compromised key must never be certified again.
func (tx *writeTx) unname(ctx context.Context, key int64) (left bool, err error) {
	result, err := tx.ExecContext(ctx, `DELETE FROM keys WHERE id = ? AND named = 1 AND compromised_at IS NULL`, key)
	if err != nil {
		return false, err
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return n == 1, err
	}
	return false, tx.ExecOne(ctx, `UPDATE keys SET named = named - 1 WHERE id = ?`, key)
}
