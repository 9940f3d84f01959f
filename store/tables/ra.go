package tables

import (
	"context"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
	"github.com/brevet-pki/brevet/store/tables/internal/sealing"
)

// RA is the registration authority's view of a DB. It implements ra.Store, ra.PolicyStore, audit.Store and
// retention.Store.
type RA struct{ db *DB }

// SealingKey returns the secret key of the store that seals challenges and external keys. It was generated when the store
// was created, and never changes. It is not in the log, so a store that is restored from the log has another one.
func (r *RA) SealingKey(ctx context.Context) ([32]byte, error) { return sealing.Read(ctx, r.db.file) }

// Refused writes a refusal to the log.
func (r *RA) Refused(ctx context.Context, refused audit.Refusal) error {
	return r.db.write(ctx, "log a refusal", func(ctx context.Context, tx *writeTx) error {
		return tx.append(ctx, rules.RefusedEntry(refused))
	})
}

// IssuanceState reads a consistent snapshot. It implements ra.Store.
func (r *RA) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	return issuing.State(ctx, r.db.file, q)
}
