// Package sealing keeps the secret key of a store, from which the keys of challenges and of external keys are derived.
package sealing

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/brevet-pki/brevet/store/engine"
)

// Make generates the key, if the store has none.
func Make(ctx context.Context, file engine.DB) error {
	const what = "make the sealing key"
	var exists bool
	err := file.Look(ctx, what, func(ctx context.Context, q engine.Querier) error {
		return q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM sealing_key)`).Scan(&exists)
	})
	if err != nil || exists {
		return err
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails: crypto/rand ends the process if it cannot read random bytes
	return file.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO sealing_key (id, key) VALUES (1, ?) ON CONFLICT DO NOTHING`, key[:]) // of another process
		return err
	})
}

// Read returns the key.
func Read(ctx context.Context, file engine.DB) ([32]byte, error) {
	var key []byte
	err := file.Look(ctx, "read the sealing key", func(ctx context.Context, q engine.Querier) error {
		return q.QueryRow(ctx, `SELECT key FROM sealing_key`).Scan(&key)
	})
	if err != nil {
		return [32]byte{}, err
	}
	if len(key) != 32 {
		return [32]byte{}, fmt.Errorf("read the sealing key: it has %d bytes, want 32", len(key))
	}
	return [32]byte(key), nil
}
