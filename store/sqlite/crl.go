package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"iter"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// crlNumberSize is the longest CRL number in octets (RFC 5280 §5.2.3).
const crlNumberSize = 20

// TakeNumber takes the next CRL number of an issuer: above all it has taken, and above the CRL on record.
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

// Revoked yields every certificate of the issuer that is revoked or on hold and not expired at the given time, in the
// order of serial numbers, the never-released ones included.
func (r *Revocation) Revoked(ctx context.Context, issuer pki.IssuerID, notExpiredAt time.Time) iter.Seq2[revocation.Entry, error] {
	return func(yield func(revocation.Entry, error) bool) {
		err := r.db.read(ctx, "read what is revoked", func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, `
				SELECT serial, revoked_at, reason FROM certificates
				WHERE issuer = (SELECT id FROM issuers WHERE issuer = ?) AND state <> 1 AND not_after >= ? ORDER BY serial`,
				issuer.Bytes(), millis(notExpiredAt))
			return each(rows, err, func(rows *sql.Rows) error {
				var serial []byte
				var at int64
				var e revocation.Entry
				if err := rows.Scan(&serial, &at, &e.Reason); err != nil {
					return err
				}
				var err error
				if e.Serial, err = pki.SerialFromBytes(serial); err != nil {
					return err
				}
				e.RevokedAt = fromMillis(at)
				if !yield(e, nil) {
					return errStopped
				}
				return nil
			})
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(revocation.Entry{}, err)
		}
	}
}

// errStopped ends a read whose consumer has seen enough.
var errStopped = errors.New("stopped")

// PutCRL records a CRL in place of the issuer's last one.
func (r *Revocation) PutCRL(ctx context.Context, c revocation.CRL, by pki.Actor, at time.Time) error {
	if !fitsCRLNumber(c.Number) {
		return pki.Refuse(pki.RuleCRL, "number it with at most 20 octets (RFC 5280 section 5.2.3)", "the CRL number %v is not one", c.Number)
	}
	number := c.Number.FillBytes(make([]byte, crlNumberSize))
	return r.db.write(ctx, "record a CRL", func(ctx context.Context, tx *writeTx) error {
		id, err := tx.issuer(ctx, c.Issuer)
		if err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, `
			INSERT INTO crls (issuer, number, this_update, next_update, der) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, this_update = excluded.this_update,
			    next_update = excluded.next_update, der = excluded.der
			WHERE excluded.number > crls.number`,
			id, number, millis(c.ThisUpdate), millis(c.NextUpdate), c.DER)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		if n == 0 {
			return pki.Refuse(pki.RuleCRL, "publish a newer one", "CRL %v of %s is not above the one on record", c.Number, c.Issuer.Short())
		}
		return tx.append(ctx, translog.Entry{
			Time: at, Actor: by, Action: translog.CRLPublished, Outcome: translog.Done,
			Facts: map[string]string{"issuer": c.Issuer.String(), "number": c.Number.String()},
		})
	})
}

// CRLs returns the newest CRL of every issuer that has one.
func (r *Revocation) CRLs(ctx context.Context) ([]revocation.CRL, error) {
	var all []revocation.CRL
	err := r.db.read(ctx, "read the CRLs", func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `
			SELECT i.issuer, c.number, c.this_update, c.next_update, c.der FROM crls c JOIN issuers i ON i.id = c.issuer ORDER BY i.id`)
		return each(rows, err, func(rows *sql.Rows) error {
			var issuer, number []byte
			var this, next int64
			var c revocation.CRL
			if err := rows.Scan(&issuer, &number, &this, &next, &c.DER); err != nil {
				return err
			}
			c.Number, c.ThisUpdate, c.NextUpdate = new(big.Int).SetBytes(number), fromMillis(this), fromMillis(next)
			var err error
			c.Issuer, err = pki.IssuerIDFromBytes(issuer)
			all = append(all, c)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
