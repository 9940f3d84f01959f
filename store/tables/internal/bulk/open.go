package bulk

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// Open holds the bulk revocations that are not completely applied, oldest first. A mask of a certificate is an integer whose
// bit i is set if the certificate is a member of the i-th of them.
type Open struct {
	rows    []Row
	changes rules.OpenBulk
}

// AnyOpen is an SQL expression that is true if there are open bulk revocations.
const AnyOpen = `EXISTS (SELECT 1 FROM bulk_revocations WHERE done = 0)`

// ReadOpen returns the open bulk revocations.
func ReadOpen(ctx context.Context, q engine.Querier) (Open, error) {
	rows, err := query(ctx, q, `WHERE s.done = 0 ORDER BY s.id`)
	return openOf(rows...), err
}

func readOpenBefore(ctx context.Context, q engine.Querier, id int64) (Open, error) {
	rows, err := query(ctx, q, `WHERE s.done = 0 AND s.id < ? ORDER BY s.id`, id)
	return openOf(rows...), err
}

func openOf(rows ...Row) Open {
	open := Open{rows: rows}
	for i := range rows {
		open.changes = append(open.changes, rows[i].Change())
	}
	return open
}

// IsEmpty reports whether no bulk revocation is open.
func (open Open) IsEmpty() bool { return len(open.rows) == 0 }

// Rows returns the open bulk revocations, oldest first.
func (open Open) Rows() []Row { return open.rows }

// RepeatedBy returns the ID of the open bulk revocation that r repeats (see [rules.Repeats]), and zero if there is none.
func (open Open) RepeatedBy(r *Row) int64 {
	for _, o := range slices.Backward(open.rows) {
		if rules.Repeats(o.BulkRequest, r.BulkRequest) {
			return o.ID
		}
	}
	return 0
}

// AddMask adds an integer expression: the mask of the certificate c. The casts are for PostgreSQL, whose literals have 32 bits.
func (open Open) AddMask(q *engine.Clause) {
	q.Add(`(CAST(0 AS BIGINT)`)
	for i := range open.rows {
		q.Add(` | ((CASE WHEN (`)
		open.rows[i].addIsMember(q)
		q.Add(`) THEN CAST(1 AS BIGINT) ELSE 0 END) << ?)`, i)
	}
	q.Add(`)`)
}

// Masks returns the masks of certificates by their row IDs.
func (open Open) Masks(ctx context.Context, q engine.Querier, ids []int64) (map[int64]uint64, error) {
	list, err := column.IDs(ids)
	if err != nil {
		return nil, err
	}
	var c engine.Clause
	c.Add(`SELECT c.id, `)
	open.AddMask(&c)
	c.Add(` FROM json_each(?) j CROSS JOIN certificates c ON c.id = j.value`, list)
	masks := map[int64]uint64{}
	rows := c.Query(ctx, q)
	err = rows.Each(func(rows engine.Scanner) error {
		var id int64
		var mask uint64
		if err := rows.Scan(&id, &mask); err != nil {
			return err
		}
		masks[id] = mask
		return nil
	})
	return masks, err
}

// Status returns the status of a certificate with all open bulk revocations applied. s is the status on record. Bit i of
// mask is set if the certificate is a member of the i-th open bulk revocation.
func (open Open) Status(s pki.Status, mask uint64) pki.Status { return open.changes.Status(s, mask) }

// InvalidSince returns the invalidity date of a certificate with all open bulk revocations applied. s and since are on
// record; mask is that of Status.
func (open Open) InvalidSince(s pki.Status, mask uint64, since time.Time) time.Time {
	return open.changes.InvalidSince(s, mask, since)
}

// Compromises reports whether an open bulk revocation compromises a key of an identity.
func (open Open) Compromises(ctx context.Context, q engine.Querier, key, identity int64) (bool, error) {
	for i := range open.rows {
		if open.rows[i].Reason != pki.KeyCompromise {
			continue
		}
		var c engine.Clause
		c.Add(`SELECT EXISTS (SELECT 1 FROM certificates c WHERE c.identity = ? AND c.key = ? AND `, identity, key)
		open.rows[i].addIsMember(&c)
		c.Add(`)`)
		if found, err := c.IsTrue(ctx, q); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

// CountOpen returns the number of open bulk revocations.
func CountOpen(ctx context.Context, q engine.Querier) (int, error) {
	var n int
	err := q.QueryRow(ctx, `SELECT count(*) FROM bulk_revocations WHERE done = 0`).Scan(&n)
	return n, err
}

// IsSelectingByLabel reports whether an open bulk revocation selects by a label.
func IsSelectingByLabel(ctx context.Context, q engine.Querier) (bool, error) {
	var is bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM bulk_revocations WHERE done = 0 AND label_name IS NOT NULL)`).Scan(&is)
	return is, err
}

// IsHolding reports whether an open bulk revocation holds or unholds the certificates of an identity. Another hold or unhold
// must wait for it, because neither is final and their order matters.
func IsHolding(ctx context.Context, q engine.Querier, id pki.SPIFFEID) (bool, error) {
	var holding bool
	err := q.QueryRow(ctx, `
		SELECT EXISTS (SELECT 1 FROM bulk_revocations WHERE done = 0 AND action <> 1 AND identity = (SELECT id FROM identities WHERE spiffe_id = ?))`,
		id.String()).Scan(&holding)
	return holding, err
}

// IsNext reports whether a bulk revocation is the oldest open one. Only that one is applied to the records.
func IsNext(ctx context.Context, q engine.Querier, id int64) (bool, error) {
	var isNext bool
	err := q.QueryRow(ctx, `SELECT NOT EXISTS (SELECT 1 FROM bulk_revocations WHERE done = 0 AND id < ?)`, id).Scan(&isNext)
	return isNext, err
}

// Missed reports whether a revocation in bulk selects one of the certificates of an identity, but did not reach it, because
// it had expired too long before. expired is the earliest notAfter of the certificates. The labels are the current ones. A
// revocation of a lineage counts for all certificates of its identity.
func Missed(ctx context.Context, q engine.Querier, expired time.Time, ids ...int64) (bool, error) {
	rows, err := query(ctx, q, `WHERE s.action = 1 AND s.reach > ? ORDER BY s.id`, engine.Millis(expired))
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		if r.Reach = (time.Time{}); !r.LineageOf.IsZero() {
			first, err := ReadCertificate(ctx, q, r.LineageOf)
			if _, ok := pki.AsRefusal(err); ok {
				continue // the retention has removed the certificate, and then those before it as well
			}
			if err != nil {
				return false, err
			}
			r.Identity = first.Identity
		}
		masks, err := openOf(r).Masks(ctx, q, ids)
		if err != nil {
			return false, err
		}
		for _, mask := range masks {
			if mask != 0 {
				return true, nil
			}
		}
	}
	return false, nil
}
