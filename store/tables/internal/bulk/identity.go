package bulk

import (
	"context"
	"database/sql"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// This file reads the members of bulk revocations that select certificates of one identity. If they are few, one transaction
// creates the bulk revocation and changes them.

const (
	// maxAtOnce is the maximum number of certificates that a change of an identity or a key changes in one transaction. For
	// more certificates it creates a bulk revocation, which is applied to the records in steps.
	maxAtOnce = 128
	// maxOfLineage is the maximum number of certificates that a transaction reads to change a lineage: those of its identity
	// with a notAfter from [Reach] on. A change of a lineage with more is refused.
	maxOfLineage = 1024
	// maxCounted bounds how many entries of the index IsLarge reads to find a part of them.
	maxCounted = 10 * ra.MaxLooked
)

// Reach returns the earliest NotAfter of the certificates that a change at the given time affects. This is that time or the
// age of the records, whichever is earlier. Every query for affected certificates uses it, so that no certificate is missed
// if the clock is ahead.
func Reach(ctx context.Context, q engine.Querier, at time.Time) (time.Time, error) {
	var age sql.NullInt64
	err := q.QueryRow(ctx, `SELECT (SELECT time FROM age)`).Scan(&age)
	if err != nil || !age.Valid {
		return time.Time{}, err // no age was recorded yet, so there are few records
	}
	return rules.Earlier(at, engine.FromMillis(age.Int64)), nil
}

// IsLarge reports whether an identity has more certificates on record than one read looks at, [ra.MaxLooked]. Those before a
// row do not count, unless the identity has more than maxCounted in all.
func IsLarge(ctx context.Context, q engine.Querier, id pki.SPIFFEID, from int64) (bool, error) {
	most := ra.MaxLooked
	if from > 0 {
		most = maxCounted
	}
	var n, all int
	err := q.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE id >= ?), count(*) FROM (
			SELECT id FROM certificates INDEXED BY certificates_by_identity
			WHERE identity = (SELECT id FROM identities WHERE spiffe_id = ?) LIMIT ?) c`,
		from, id.String(), most+1).Scan(&n, &all)
	return n > ra.MaxLooked || all > most, err
}

// IsMany reports whether a bulk revocation that selects one identity may have more members than one transaction changes:
// maxAtOnce, or maxOfLineage for a lineage. The caller refuses a lineage with more, since only one transaction can change it.
func (r *Row) IsMany(ctx context.Context, q engine.Querier) (bool, error) {
	identity, first, err := r.Owner(ctx, q)
	if err != nil {
		return false, err
	}
	most := maxAtOnce
	if first.ID != 0 {
		most = maxOfLineage
		if large, err := IsLarge(ctx, q, identity, first.ID); err != nil || large {
			return large, err
		}
	}
	var n int
	err = q.QueryRow(ctx, `
		SELECT count(*) FROM (
			SELECT 1 FROM certificates INDEXED BY certificates_by_identity
			WHERE identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND not_after >= ? LIMIT ?) c`,
		identity.String(), engine.Millis(r.Reach), most+1).Scan(&n)
	if err != nil || n > most || r.Action == revocation.Revoke {
		return n > most, err
	}
	return IsHolding(ctx, q, identity)
}

// Owner returns the identity to which all certificates of a selection of one identity belong, and the certificate that its
// lineage begins with, if it has one.
func (r *Row) Owner(ctx context.Context, q engine.Querier) (identity pki.SPIFFEID, first Certificate, err error) {
	identity = r.Identity
	if !r.LineageOf.IsZero() {
		if first, err = ReadCertificate(ctx, q, r.LineageOf); err != nil {
			return identity, first, err
		}
		if !first.Key.Valid {
			return identity, first, rules.NeverDelivered(r.LineageOf.Serial)
		}
		identity = first.Identity
	}
	if r.Key.IsZero() {
		return identity, first, nil
	}
	key, err := ReadKey(ctx, q, r.Key)
	if identity.IsZero() {
		identity = key.Identity
	}
	return identity, first, err
}

// BoundedLineage returns the row IDs of a certificate and of those that were renewed from it. It refuses a lineage that is
// among too many certificates to walk through.
func BoundedLineage(ctx context.Context, q engine.Querier, first Certificate) (map[int64]bool, error) {
	large, err := IsLarge(ctx, q, first.Identity, first.ID)
	if err != nil {
		return nil, err
	}
	if large {
		return nil, rules.LongLineage(first.Ref.Serial)
	}
	return lineage(ctx, q, first.ID)
}

// lineage returns the row IDs of a certificate and of those renewed from it.
func lineage(ctx context.Context, q engine.Querier, first int64) (map[int64]bool, error) {
	var links []rules.Link[int64]
	rows := engine.Query(ctx, q, `
		SELECT id, key, successor FROM certificates
		WHERE identity = (SELECT identity FROM certificates WHERE id = ?1) AND +id >= ?1 ORDER BY +id`, first)
	err := rows.Each(func(rows engine.Scanner) error {
		var l rules.Link[int64]
		var successor sql.NullInt64
		err := rows.Scan(&l.ID, &l.Key, &successor)
		l.Successor, l.HasSuccessor = successor.Int64, successor.Valid
		links = append(links, l)
		return err
	})
	return rules.Lineage(links), err
}

// Few returns the members of a bulk revocation that selects certificates of one identity. The caller has checked with IsMany
// that they are few.
func (r *Row) Few(ctx context.Context, q engine.Querier) ([]Certificate, error) {
	identity, first, err := r.Owner(ctx, q)
	if err != nil {
		return nil, err
	}
	all, err := CertificatesOf(ctx, q, identity, r.Reach)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return r.membersAmong(ctx, q, identity, first.ID, all)
}

// membersAmong returns the members among the certificates of an identity.
func (r *Row) membersAmong(ctx context.Context, q engine.Querier, identity pki.SPIFFEID, first int64, all []Certificate) ([]Certificate, error) {
	var ids []int64
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	plain := *r
	plain.Reason = pki.Unspecified // BulkMembers adds the certificates with the same key
	masks, err := openOf(plain).Masks(ctx, q, ids)
	if err != nil {
		return nil, err
	}
	var line map[int64]bool
	if first != 0 {
		if line, err = lineage(ctx, q, first); err != nil {
			return nil, err
		}
	}
	candidates := make([]rules.Candidate[int64], len(all))
	for i, c := range all {
		candidates[i] = rules.Candidate[int64]{Key: c.Key.Int64, Selected: masks[c.ID] == 1 && (r.Identity.IsZero() || r.Identity == identity) &&
			(first == 0 || line[c.ID]) && (r.Key.IsZero() || c.Key.Int64 == column.KeyID(r.Key))}
	}
	var members []Certificate
	for i, is := range rules.BulkMembers(r.BulkRequest, candidates) {
		if is {
			members = append(members, all[i])
		}
	}
	return members, nil
}
