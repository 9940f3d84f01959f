package tables

import (
	"context"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/crlindex"
	"github.com/brevet-pki/brevet/store/tables/internal/crlshare"
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
		err = tx.QueryRow(ctx, `
			SELECT (SELECT n FROM (SELECT taken AS n FROM crl_numbers WHERE issuer = ?1 UNION ALL SELECT number FROM crls WHERE issuer = ?1) t
			        ORDER BY n DESC LIMIT 1)`,
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
	_, err := tx.Exec(ctx, `
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
			if err := r.putCRL(ctx, tx, c); err != nil {
				return err
			}
			if err := tx.append(ctx, rules.CRLEntry(c, by, at)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *Revocation) putCRL(ctx context.Context, tx *writeTx, c crl.CRL) error {
	id, err := tx.issuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	if err := r.db.exchange.Replace(ctx, tx.Tx, id, c); err != nil {
		return err
	}
	if !c.Delta {
		if err := crlindex.PackAnew(ctx, tx.Tx, id, c.Partition, c.ThisUpdate); err != nil {
			return err
		}
	}
	return crlshare.Put(ctx, tx.Tx, id, c)
}

// CRLs returns the newest CRL of every scope that has one.
func (r *Revocation) CRLs(ctx context.Context) ([]crl.CRL, error) {
	return crlshare.Read(ctx, r.db.file, `c.der`)
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
	n, err := tx.Exec(ctx, `INSERT INTO crl_points (issuer, crl_partition, url, delta_url) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		id, p.Partition, p.URL, p.DeltaURL)
	return n > 0, err
}

// Points returns every distribution point on record.
func (r *Revocation) Points(ctx context.Context) ([]crl.Point, error) {
	var all []crl.Point
	err := r.db.file.Read(ctx, "read the distribution points", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT i.issuer, p.crl_partition, p.url, p.delta_url FROM crl_points p JOIN issuers i ON i.id = p.issuer ORDER BY p.id`)
		return rows.Each(func(rows engine.Scanner) error {
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

// Delegates returns the view for requests for the certificates of OCSP delegates. It needs PostgreSQL.
func (db *DB) Delegates() *crlshare.Exchange { return db.exchange }

// Exchange returns the view for CRLs that servers pass to each other. It is nil if no other process can have the store open.
func (db *DB) Exchange() crl.Exchange {
	if db.exchange == nil {
		return nil
	}
	return db.exchange
}
