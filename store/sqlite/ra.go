package sqlite

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// RA is the registration authority's view of a DB: an ra.Records, an audit.Store and a retention.Store.
type RA struct{ db *DB }

// Refused logs a refusal.
func (r *RA) Refused(ctx context.Context, by pki.Actor, identity pki.SPIFFEID, why *pki.Refusal, at time.Time) error {
	return r.db.write(ctx, "log a refusal", func(ctx context.Context, tx *writeTx) error {
		return tx.append(ctx, translog.Entry{
			Time: at, Actor: by, Action: translog.RequestRefused, Outcome: translog.Refused, Identity: identity,
			Facts: map[string]string{"rule": string(why.Rule), "detail": why.Detail},
		})
	})
}
