package sqlite

import (
	"context"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/store/rules"
)

// RA is the registration authority's view of a DB. It implements ra.Store, ra.PolicyStore, audit.Store and
// retention.Store.
type RA struct{ db *DB }

// Refused writes a refusal to the log.
func (r *RA) Refused(ctx context.Context, refused audit.Refusal) error {
	return r.db.write(ctx, "log a refusal", func(ctx context.Context, tx *writeTx) error {
		return tx.append(ctx, rules.RefusedEntry(refused))
	})
}
