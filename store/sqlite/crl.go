package sqlite

import (
	"context"
	"database/sql"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/crlindex"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// TakeNumber allocates the next CRL number of an issuer. It is greater than every number allocated before, and than that of
// every CRL on record.
func (r *Revocation) TakeNumber(ctx context.Context, issuer pki.IssuerID, at time.Time) (*big.Int, error) {
	var number *big.Int
	err := r.db.write(ctx, "take a CRL number", func(ctx context.Context, tx *writeTx) error {
		id, err := tx.issuer(ctx, issuer)
		if err != nil {
			return err
		}
		var last []byte
		err = tx.QueryRowContext(ctx, `
			SELECT max(n) FROM (SELECT taken AS n FROM crl_numbers WHERE issuer = ?1 UNION ALL SELECT number FROM crls WHERE issuer = ?1)`,
			id).Scan(&last)
		if err != nil {
			return err
		}
		if number, err = rules.NextCRLNumber(issuer, new(big.Int).SetBytes(last)); err != nil {
			return err
		}
		if err := tx.setNumber(ctx, id, number); err != nil {
			return err
		}
		return tx.append(ctx, rules.CRLNumberEntry(issuer, number, at))
	})
	if err != nil {
		return nil, err
	}
	return number, nil
}

// setNumber records the last CRL number that was allocated for an issuer.
func (tx *writeTx) setNumber(ctx context.Context, issuer int64, number *big.Int) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO crl_numbers (issuer, taken) VALUES (?, ?) ON CONFLICT (issuer) DO UPDATE SET taken = excluded.taken`,
		issuer, number.FillBytes(make([]byte, rules.CRLNumberSize)))
	return err
}

// PutCRLs records CRLs, which replace the previous ones of their scopes.
func (r *Revocation) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, at time.Time) error {
	for _, c := range crls {
		if err := rules.CheckCRLNumber(c); err != nil {
			return err
		}
	}
	return r.db.writeBy(ctx, "record CRLs", by, pki.MayAdminister, at, func(ctx context.Context, tx *writeTx) error {
		for _, c := range crls {
			if err := tx.putCRL(ctx, c); err != nil {
				return err
			}
			if err := tx.append(ctx, rules.CRLEntry(c, by, at)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (tx *writeTx) putCRL(ctx context.Context, c crl.CRL) error {
	id, err := tx.issuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	if !c.Delta {
		if err := crlindex.PackAnew(ctx, tx.Tx, id, c.Partition, c.ThisUpdate); err != nil {
			return err
		}
	}
	return tx.insertCRL(ctx, id, c)
}

// insertCRL writes the row of a CRL, unless the CRL on record for its scope has the same or a greater number.
func (tx *writeTx) insertCRL(ctx context.Context, id int64, c crl.CRL) error {
	var baseNumber, baseUpdate, basePosition any
	if c.Base.Number != nil {
		baseNumber, baseUpdate = c.Base.Number.FillBytes(make([]byte, rules.CRLNumberSize)), engine.Millis(c.Base.ThisUpdate)
		basePosition = int64(c.Base.Position) //nolint:gosec // an id
	}
	result, err := tx.ExecContext(ctx, `
		INSERT INTO crls (issuer, crl_partition, delta, number, this_update, next_update, position, base_number, base_update, base_position,
		                  digest, size, entries, der)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (issuer, crl_partition, delta) DO UPDATE SET number = excluded.number, this_update = excluded.this_update,
		    next_update = excluded.next_update, position = excluded.position, base_number = excluded.base_number,
		    base_update = excluded.base_update, base_position = excluded.base_position, digest = excluded.digest, size = excluded.size,
		    entries = excluded.entries, der = excluded.der
		WHERE excluded.number > crls.number`,
		id, c.Partition, c.Delta, c.Number.FillBytes(make([]byte, rules.CRLNumberSize)), engine.Millis(c.ThisUpdate), engine.Millis(c.NextUpdate),
		int64(c.Position), baseNumber, baseUpdate, basePosition, c.SHA256[:], c.Size, c.Entries, c.DER) //nolint:gosec // an id
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n == 0 {
		return rules.OldCRL(c)
	}
	return err
}

// CRLs returns the newest CRL of every scope that has one.
func (r *Revocation) CRLs(ctx context.Context) ([]crl.CRL, error) {
	var all []crl.CRL
	err := r.db.file.Read(ctx, "read the CRLs", func(ctx context.Context, tx *sql.Tx) error {
		rows := engine.Query(ctx, tx, `
			SELECT i.issuer, c.crl_partition, c.delta, c.number, c.this_update, c.next_update, c.position, c.base_number, c.base_update, c.base_position,
			       c.digest, c.size, c.entries, c.der
			FROM crls c JOIN issuers i ON i.id = c.issuer ORDER BY c.issuer, c.crl_partition, c.delta`)
		return rows.Each(func(rows *sql.Rows) error {
			c, err := scanCRL(rows)
			all = append(all, c)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func scanCRL(row engine.Scanner) (crl.CRL, error) {
	var c crl.CRL
	var issuer, number, baseNumber, digest []byte
	var this, next int64
	var baseUpdate, basePosition sql.NullInt64
	err := row.Scan(&issuer, &c.Partition, &c.Delta, &number, &this, &next, &c.Position, &baseNumber, &baseUpdate, &basePosition,
		&digest, &c.Size, &c.Entries, &c.DER)
	if err != nil {
		return crl.CRL{}, err
	}
	c.Number, c.ThisUpdate, c.NextUpdate = new(big.Int).SetBytes(number), engine.FromMillis(this), engine.FromMillis(next)
	if baseNumber != nil {
		c.Base = crl.Base{
			Number: new(big.Int).SetBytes(baseNumber), ThisUpdate: engine.FromMillis(baseUpdate.Int64), Position: uint64(basePosition.Int64), //nolint:gosec // an id
		}
	}
	copy(c.SHA256[:], digest)
	c.Issuer, err = pki.IssuerIDFromBytes(issuer)
	return c, err
}

// PutPoints records distribution points.
func (r *Revocation) PutPoints(ctx context.Context, points []crl.Point, at time.Time) error {
	return r.db.write(ctx, "record distribution points", func(ctx context.Context, tx *writeTx) error {
		var added []crl.Point
		for _, p := range points {
			isNew, err := tx.putPoint(ctx, p)
			if err != nil {
				return err
			}
			if isNew {
				added = append(added, p)
			}
		}
		for _, e := range rules.PointsEntries(added, at) {
			if err := tx.append(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// putPoint records a distribution point, and reports whether it is new.
func (tx *writeTx) putPoint(ctx context.Context, p crl.Point) (bool, error) {
	id, err := tx.issuer(ctx, p.Issuer)
	if err != nil {
		return false, err
	}
	result, err := tx.ExecContext(ctx, `INSERT INTO crl_points (issuer, crl_partition, url, delta_url) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		id, p.Partition, p.URL, p.DeltaURL)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// Points returns every distribution point on record.
func (r *Revocation) Points(ctx context.Context) ([]crl.Point, error) {
	var all []crl.Point
	err := r.db.file.Read(ctx, "read the distribution points", func(ctx context.Context, tx *sql.Tx) error {
		rows := engine.Query(ctx, tx, `
			SELECT i.issuer, p.crl_partition, p.url, p.delta_url FROM crl_points p JOIN issuers i ON i.id = p.issuer ORDER BY p.id`)
		return rows.Each(func(rows *sql.Rows) error {
			var issuer []byte
			var p crl.Point
			if err := rows.Scan(&issuer, &p.Partition, &p.URL, &p.DeltaURL); err != nil {
				return err
			}
			var err error
			p.Issuer, err = pki.IssuerIDFromBytes(issuer)
			all = append(all, p)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// View implements crl.Store.
func (r *Revocation) View(ctx context.Context, issuer pki.IssuerID, read func(crl.View) error) error {
	return r.db.crls.View(ctx, issuer, read)
}

// Compact implements crl.Store.
func (r *Revocation) Compact(ctx context.Context, issuer pki.IssuerID) error {
	return r.db.crls.Compact(ctx, issuer)
}
