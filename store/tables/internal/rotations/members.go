package rotations

import (
	"context"
	"database/sql"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
)

// visitBatch is the number of certificates that Members visits at a time.
const visitBatch = 4096

// selected returns a bulk revocation with the selection of a rotation. It selects the certificates on record and valid at
// the start of the rotation.
func selected(r *rules.RecordedRotation) *bulk.Row {
	var row bulk.Row
	row.Selection, row.Mark, row.Reach = r.Selection, r.Mark, r.At
	return &row
}

// addFromMembers adds the tables and conditions of the certificates c of a rotation that were not renewed. A certificate
// that was revoked before the start is not affected.
func addFromMembers(q *engine.Clause, r *rules.RecordedRotation) {
	selected(r).AddFromMembers(q)
	q.Add(` AND c.successor IS NULL AND (c.state <> 3 OR c.revoked_at >= ?)`, engine.Millis(r.At))
}

// members calls visit with the certificates of a rotation that were not renewed, in batches.
func members(ctx context.Context, q engine.Querier, r *rules.RecordedRotation, visit func([]pki.CertRef) error) error {
	issuers, err := bulk.ReadIssuers(ctx, q)
	if err != nil {
		return err
	}
	var c engine.Clause
	c.Add(`SELECT c.issuer, c.serial`)
	addFromMembers(&c, r)
	batch := make([]pki.CertRef, 0, visitBatch)
	rows := c.Query(ctx, q)
	var serial sql.RawBytes
	err = rows.Each(func(rows engine.Scanner) error {
		var issuer int64
		if err := rows.Scan(&issuer, &serial); err != nil {
			return err
		}
		n, err := pki.SerialFromBytes(serial)
		if err != nil {
			return err
		}
		if batch = append(batch, pki.CertRef{Issuer: issuers[issuer], Serial: n}); len(batch) < visitBatch {
			return nil
		}
		err = visit(batch)
		batch = batch[:0]
		return err
	})
	if err != nil || len(batch) == 0 {
		return err
	}
	return visit(batch)
}

// count returns the number of certificates that a new rotation affects, and the number of living certificates. It sets the
// mark of r.
func count(ctx context.Context, q engine.Querier, r *rules.RecordedRotation) (rotation.Counts, error) {
	var n rotation.Counts
	if err := check(ctx, q, r); err != nil {
		return n, err
	}
	if err := q.QueryRow(ctx, bulk.NewestCertificate).Scan(&r.Mark); err != nil {
		return n, err
	}
	var c engine.Clause
	c.Add(`SELECT count(*)`)
	addFromMembers(&c, r)
	if err := c.QueryRow(ctx, q).Scan(&n.Affected); err != nil {
		return n, err
	}
	err := q.QueryRow(ctx, `SELECT count(*) FROM certificates WHERE not_after >= ? AND state <> 3`, engine.Millis(r.At)).Scan(&n.Living)
	return n, err
}

// check refuses a selection by an issuer, an identity or a key that is not on record.
func check(ctx context.Context, q engine.Querier, r *rules.RecordedRotation) error {
	if err := selected(r).CheckNamed(ctx, q); err != nil || r.Key.IsZero() {
		return err
	}
	_, err := bulk.ReadKey(ctx, q, r.Key)
	return err
}

// progress returns the progress of a rotation at a time. The certificates of an identity that got a newer one are renewed.
// The query looks for a newer one once for each identity, because an identity may have thousands of certificates.
func progress(ctx context.Context, q engine.Querier, r *rules.RecordedRotation, at time.Time) (rotation.Progress, error) {
	var c engine.Clause
	c.Add(`
		SELECT coalesce(sum(living), 0), coalesce(sum(members - living), 0) FROM (
			SELECT c.identity, count(*) AS members, count(*) FILTER (WHERE c.state <> 3 AND +c.not_after >= ?) AS living`, engine.Millis(at))
	addFromMembers(&c, r)
	c.Add(` GROUP BY c.identity) g
		WHERE NOT EXISTS (
			SELECT 1 FROM certificates n INDEXED BY certificates_by_identity
			WHERE n.identity = g.identity AND n.not_after >= ? AND +n.id > ?)`, engine.Millis(r.At), r.Mark)
	var p rotation.Progress
	var gone int
	err := c.QueryRow(ctx, q).Scan(&p.Due, &gone)
	p.Renewed = max(0, r.Affected-p.Due-gone)
	return p, err
}
