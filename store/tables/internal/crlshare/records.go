package crlshare

import (
	"context"
	"database/sql"
	"math/big"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
)

// Put writes the row of a CRL, unless the CRL on record for its scope has the same or a greater number, or includes
// more log entries. Two servers may take numbers in one order, and read the statuses in the other. A CRL that was signed
// elsewhere includes no log entries. A replay does not know its DER.
func Put(ctx context.Context, tx *engine.Tx, issuer int64, c crl.CRL) error {
	var baseNumber, baseUpdate, basePosition any
	if c.Base.Number != nil {
		baseNumber, baseUpdate = numberBytes(c.Base.Number), engine.Millis(c.Base.ThisUpdate)
		basePosition = int64(c.Base.Position) //nolint:gosec // an id
	}
	n, err := tx.Exec(ctx, `
		INSERT INTO crls (issuer, crl_partition, delta, number, this_update, next_update, position, base_number, base_update, base_position,
		                  digest, size, entries, der)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (issuer, crl_partition, delta) DO UPDATE SET number = excluded.number, this_update = excluded.this_update,
		    next_update = excluded.next_update, position = excluded.position, base_number = excluded.base_number,
		    base_update = excluded.base_update, base_position = excluded.base_position, digest = excluded.digest, size = excluded.size,
		    entries = excluded.entries, der = excluded.der
		WHERE excluded.number > crls.number AND (excluded.position >= crls.position OR excluded.position = 0)`,
		issuer, c.Partition, c.Delta, numberBytes(c.Number), engine.Millis(c.ThisUpdate), engine.Millis(c.NextUpdate),
		int64(c.Position), baseNumber, baseUpdate, basePosition, c.SHA256[:], c.Size, c.Entries, c.DER) //nolint:gosec // an id
	if err == nil && n == 0 {
		return rules.OldCRL(c)
	}
	return err
}

// Read returns the newest CRL of every scope, with an expression as their DER.
func Read(ctx context.Context, db engine.DB, der string) ([]crl.CRL, error) {
	var all []crl.CRL
	err := db.Read(ctx, "read the CRLs", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT i.issuer, c.crl_partition, c.delta, c.number, c.this_update, c.next_update, c.position, c.base_number, c.base_update, c.base_position,
			       c.digest, c.size, c.entries, `+der+`
			FROM crls c JOIN issuers i ON i.id = c.issuer ORDER BY c.issuer, c.crl_partition, c.delta`)
		return rows.Each(func(rows engine.Scanner) error {
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

// Newest implements crl.Exchange.
func (x *Exchange) Newest(ctx context.Context) ([]crl.CRL, error) { return Read(ctx, x.db, `NULL`) }
