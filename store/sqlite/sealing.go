package sqlite

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// makeSealingKey generates the sealing key, if the store has none.
func (db *DB) makeSealingKey(ctx context.Context) error {
	const what = "make the sealing key"
	var exists bool
	err := db.file.Look(ctx, what, func(ctx context.Context, q engine.Querier) error {
		return q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sealing_key)`).Scan(&exists)
	})
	if err != nil || exists {
		return err
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails: crypto/rand ends the process if it cannot read random bytes
	return db.write(ctx, what, func(ctx context.Context, tx *writeTx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO sealing_key (id, key) VALUES (1, ?)`, key[:])
		return err
	})
}

// SealingKey returns the secret key of the store that seals challenges. It was generated when the store was created,
// and never changes. It is not in the log, so a store that is restored from the log has another one.
func (r *RA) SealingKey(ctx context.Context) ([32]byte, error) {
	var key []byte
	err := r.db.file.Look(ctx, "read the sealing key", func(ctx context.Context, q engine.Querier) error {
		return q.QueryRowContext(ctx, `SELECT key FROM sealing_key`).Scan(&key)
	})
	if err != nil {
		return [32]byte{}, err
	}
	if len(key) != 32 {
		return [32]byte{}, fmt.Errorf("read the sealing key: it has %d bytes, want 32", len(key))
	}
	return [32]byte(key), nil
}
