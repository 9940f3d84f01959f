package sqlite

import (
	"context"
	"database/sql"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/translog"
)

// crlNumberSize is the longest CRL number in octets (RFC 5280 §5.2.3).
const crlNumberSize = 20

// TakeNumber takes the next CRL number of an issuer: above all it has taken, and above every CRL on record.
func (r *Revocation) TakeNumber(ctx context.Context, issuer pki.IssuerID) (*big.Int, error) {
	number := new(big.Int)
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
		number.Add(number.SetBytes(last), big.NewInt(1))
		if !fitsCRLNumber(number) {
			return pki.Refuse(pki.RuleCRL, "install a new generation of the CA", "the CRL numbers of %s are used up", issuer.Short())
		}
		_, err = tx.ExecContext(ctx, `
			INSERT INTO crl_numbers (issuer, taken) VALUES (?, ?) ON CONFLICT (issuer) DO UPDATE SET taken = excluded.taken`,
			id, number.FillBytes(make([]byte, crlNumberSize)))
		return err
	})
	if err != nil {
		return nil, err
	}
	return number, nil
}

func fitsCRLNumber(n *big.Int) bool { return n != nil && n.Sign() >= 0 && n.BitLen() < 8*crlNumberSize }

// PutCRLs records CRLs in place of the last ones of their scopes.
func (r *Revocation) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, at time.Time) error {
	for _, c := range crls {
		if !fitsCRLNumber(c.Number) {
			return pki.Refuse(pki.RuleCRL, "number it with at most 20 octets (RFC 5280 section 5.2.3)", "the CRL number %v is not one", c.Number)
		}
	}
	return r.db.writeBy(ctx, "record CRLs", by, at, func(ctx context.Context, tx *writeTx) error {
		for _, c := range crls {
			if err := tx.putCRL(ctx, c); err != nil {
				return err
			}
			if err := tx.append(ctx, crlEntry(c, by, at)); err != nil {
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
		if err := tx.packAnew(ctx, id, c); err != nil {
			return err
		}
	}
	var baseNumber, baseUpdate, basePosition any
	if c.Base.Number != nil {
		baseNumber, baseUpdate = c.Base.Number.FillBytes(make([]byte, crlNumberSize)), millis(c.Base.ThisUpdate)
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
		id, c.Partition, c.Delta, c.Number.FillBytes(make([]byte, crlNumberSize)), millis(c.ThisUpdate), millis(c.NextUpdate),
		int64(c.Position), baseNumber, baseUpdate, basePosition, c.SHA256[:], c.Size, c.Entries, c.DER) //nolint:gosec // an id
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n == 0 {
		return pki.Refuse(pki.RuleCRL, "publish a newer one", "CRL %v of %s is not above the one on record",
			c.Number, strings.TrimSuffix(c.Scope().Path(), ".crl"))
	}
	return err
}

// packAnew has an issuer's changes packed once more where a CRL is from before the one in whose place it comes, since the
// clock was set back: packing may have dropped what ends in between.
func (tx *writeTx) packAnew(ctx context.Context, issuer int64, c crl.CRL) error {
	_, err := tx.ExecContext(ctx, `
		UPDATE crl_packed SET position = 0 WHERE issuer = ?1 AND EXISTS (
		    SELECT 1 FROM certificates WHERE not_after >= ?3
		      AND not_after < (SELECT this_update FROM crls WHERE issuer = ?1 AND crl_partition = ?2 AND delta = 0))`,
		issuer, c.Partition, millis(c.ThisUpdate))
	return err
}

// crlEntry says of which scope a CRL is, unless it is the full one.
func crlEntry(c crl.CRL, by pki.Actor, at time.Time) translog.Entry {
	facts := map[string]string{"issuer": c.Issuer.String(), "number": c.Number.String()}
	if c.Partition != 0 {
		facts["partition"] = strconv.Itoa(int(c.Partition))
	}
	if c.Delta {
		facts["base"] = c.Base.Number.String()
	}
	return translog.Entry{Time: at, Actor: by, Action: translog.CRLPublished, Outcome: translog.Done, Facts: facts}
}

// CRLs returns the newest CRL of every scope that has one.
func (r *Revocation) CRLs(ctx context.Context) ([]crl.CRL, error) {
	var all []crl.CRL
	err := r.db.read(ctx, "read the CRLs", func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `
			SELECT i.issuer, c.crl_partition, c.delta, c.number, c.this_update, c.next_update, c.position, c.base_number, c.base_update, c.base_position,
			       c.digest, c.size, c.entries, c.der
			FROM crls c JOIN issuers i ON i.id = c.issuer ORDER BY c.issuer, c.crl_partition, c.delta`)
		return each(rows, err, func(rows *sql.Rows) error {
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

func scanCRL(row scanner) (crl.CRL, error) {
	var c crl.CRL
	var issuer, number, baseNumber, digest []byte
	var this, next int64
	var baseUpdate, basePosition sql.NullInt64
	err := row.Scan(&issuer, &c.Partition, &c.Delta, &number, &this, &next, &c.Position, &baseNumber, &baseUpdate, &basePosition,
		&digest, &c.Size, &c.Entries, &c.DER)
	if err != nil {
		return crl.CRL{}, err
	}
	c.Number, c.ThisUpdate, c.NextUpdate = new(big.Int).SetBytes(number), fromMillis(this), fromMillis(next)
	if baseNumber != nil {
		c.Base = crl.Base{
			Number: new(big.Int).SetBytes(baseNumber), ThisUpdate: fromMillis(baseUpdate.Int64), Position: uint64(basePosition.Int64), //nolint:gosec // an id
		}
	}
	copy(c.SHA256[:], digest)
	c.Issuer, err = pki.IssuerIDFromBytes(issuer)
	return c, err
}

// PutPoints records distribution points.
func (r *Revocation) PutPoints(ctx context.Context, points []crl.Point) error {
	return r.db.write(ctx, "record distribution points", func(ctx context.Context, tx *writeTx) error {
		for _, p := range points {
			id, err := tx.issuer(ctx, p.Issuer)
			if err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO crl_points (issuer, crl_partition, url, delta_url) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
				id, p.Partition, p.URL, p.DeltaURL)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Points returns every distribution point on record.
func (r *Revocation) Points(ctx context.Context) ([]crl.Point, error) {
	var all []crl.Point
	err := r.db.read(ctx, "read the distribution points", func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `
			SELECT i.issuer, p.crl_partition, p.url, p.delta_url FROM crl_points p JOIN issuers i ON i.id = p.issuer ORDER BY p.id`)
		return each(rows, err, func(rows *sql.Rows) error {
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
