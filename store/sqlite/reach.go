package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// maxAtOnce is the maximum number of certificates that a change of an identity or a key changes in one transaction. For more
// certificates it creates a bulk revocation, which is applied to the records in steps.
const maxAtOnce = 128

// reach returns the earliest NotAfter of the certificates that a change at the given time affects. This is that time or the
// age of the records, whichever is earlier. Every query for affected certificates uses it, so that no certificate is missed
// if the clock is ahead.
func reach(ctx context.Context, q engine.Querier, at time.Time) (time.Time, error) {
	var age sql.NullInt64
	err := q.QueryRowContext(ctx, `SELECT (SELECT time FROM age)`).Scan(&age)
	if err != nil || !age.Valid {
		return time.Time{}, err // no age was recorded yet, so there are few records
	}
	return rules.Earlier(at, engine.FromMillis(age.Int64)), nil
}

// countUnexpired counts the certificates of an identity, in any state, that expire later than after. It stops at most.
func countUnexpired(ctx context.Context, q engine.Querier, identity int64, after time.Time, most int) (int, error) {
	var n int
	err := q.QueryRowContext(ctx, `
		SELECT count(*) FROM (SELECT 1 FROM certificates INDEXED BY certificates_by_identity WHERE identity = ? AND not_after > ? LIMIT ?)`,
		identity, engine.Millis(after), most).Scan(&n)
	return n, err
}

// maxOfLineage is the maximum number of certificates that the identity of a lineage has in reach when a transaction changes
// the lineage.
const maxOfLineage = 1024

// maxCounted bounds how many entries of the index isLarge reads to find a part of them.
const maxCounted = 10 * ra.MaxLooked

// isLarge reports whether an identity has more certificates on record than one read looks at, ra.MaxLooked. Those before a
// row do not count, unless the identity has more than maxCounted in all.
func isLarge(ctx context.Context, q engine.Querier, id pki.SPIFFEID, from int64) (bool, error) {
	most := ra.MaxLooked
	if from > 0 {
		most = maxCounted
	}
	var n, all int
	err := q.QueryRowContext(ctx, `
		SELECT coalesce(sum(id >= ?), 0), count(*) FROM (
			SELECT id FROM certificates INDEXED BY certificates_by_identity
			WHERE identity = (SELECT id FROM identities WHERE spiffe_id = ?) LIMIT ?)`,
		from, id.String(), most+1).Scan(&n, &all)
	return n > ra.MaxLooked || all > most, err
}

// isMany reports whether a bulk revocation that selects one identity may have more members than one transaction changes:
// maxAtOnce, or maxOfLineage for a lineage. The caller refuses a lineage with more, since only one transaction can change it.
func (s *setRow) isMany(ctx context.Context, q engine.Querier) (bool, error) {
	identity, first, err := s.owner(ctx, q)
	if err != nil {
		return false, err
	}
	most := maxAtOnce
	if first.id != 0 {
		most = maxOfLineage
		if large, err := isLarge(ctx, q, identity, first.id); err != nil || large {
			return large, err
		}
	}
	var n int
	err = q.QueryRowContext(ctx, `
		SELECT count(*) FROM (
			SELECT 1 FROM certificates INDEXED BY certificates_by_identity
			WHERE identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND not_after >= ? LIMIT ?)`,
		identity.String(), engine.Millis(s.reach), most+1).Scan(&n)
	if err != nil || n > most || s.Action == revocation.Revoke {
		return n > most, err
	}
	return isHolding(ctx, q, identity)
}

// isHolding reports whether an open bulk revocation holds or unholds the certificates of an identity. Another hold or unhold
// must wait for it, because neither is final and their order matters.
func isHolding(ctx context.Context, q engine.Querier, id pki.SPIFFEID) (bool, error) {
	var holding bool
	err := q.QueryRowContext(ctx, `
		SELECT EXISTS (SELECT 1 FROM revocation_sets WHERE done = 0 AND action <> 1 AND identity = (SELECT id FROM identities WHERE spiffe_id = ?))`,
		id.String()).Scan(&holding)
	return holding, err
}

// newSet returns the row of a new bulk revocation, with the reach of its time.
func newSet(ctx context.Context, q engine.Querier, o revocation.BulkRequest) (setRow, error) {
	s := setRow{BulkRevocation: revocation.BulkRevocation{BulkRequest: o}}
	var err error
	s.reach, err = reach(ctx, q, o.At)
	return s, err
}
