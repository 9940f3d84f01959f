package tables

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/rotations"
)

// Rotations returns the view of rotations.
func (db *DB) Rotations() *rotations.Store {
	return rotations.New(db.file, db.epochs.CheckLeads, func(ctx context.Context, what string, by pki.Actor, at time.Time,
		do func(context.Context, *engine.Tx) (int64, error), again func(context.Context, *engine.Tx, int64) error,
	) error {
		return db.writeOnce(ctx, what, by, pki.MayRevoke, at, func(ctx context.Context, tx *writeTx) (rules.Outcome, error) {
			id, err := do(ctx, tx.Tx)
			return rules.Outcome{Rotation: id}, err
		}, func(ctx context.Context, tx *writeTx, have rules.Outcome) error {
			return again(ctx, tx.Tx, have.Rotation)
		})
	})
}
