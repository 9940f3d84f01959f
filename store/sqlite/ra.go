package sqlite

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
)

// RA is the registration authority's view of a DB. It implements ra.Store, ra.PolicyStore, audit.Store and
// retention.Store.
type RA struct{ db *DB }

// Refused writes a refusal to the log.
func (r *RA) Refused(ctx context.Context, by pki.Actor, identity pki.SPIFFEID, why *pki.Refusal, at time.Time) error {
	return r.db.write(ctx, "log a refusal", func(ctx context.Context, tx *writeTx) error {
		return tx.append(ctx, rules.RefusedEntry(by, identity, why, at))
	})
}
