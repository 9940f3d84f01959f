// Package crlshare has the records of the newest CRLs, and passes CRLs between servers that share a store: it has the leases
// that say which server signs the CRLs of a CA, and the bytes of CRLs. It also passes requests for the certificates of OCSP
// delegates to that server.
package crlshare

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"io"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
)

// chunkSize is the size of the pieces in which the bytes of CRLs are stored, each in a transaction of its own.
const chunkSize = 256 << 10

// Exchange is the view of one process. It implements crl.Exchange. It is safe for concurrent use.
type Exchange struct {
	db     engine.DB
	holder [16]byte // ID of the process in leases
}

// New returns an Exchange with an ID of its own. It is nil if no other process can have the database open.
func New(db engine.DB) *Exchange {
	if db.IsExclusive() {
		return nil
	}
	x := &Exchange{db: db}
	_, _ = rand.Read(x.holder[:]) // never fails
	return x
}

// runs is the condition that a lease in crl_leases has not ended.
func (x *Exchange) runs() string { return engine.Runs(x.db, `crl_leases.until`, crl.LeaseTime) }

// Lead implements crl.Exchange. The lease is extended when half of it has passed.
func (x *Exchange) Lead(ctx context.Context, issuer pki.IssuerID) (leads bool, err error) {
	const what = "lead the CRLs of a CA"
	var hasOther bool
	now, lease := x.db.Now(), crl.LeaseTime.Milliseconds()
	err = x.db.Look(ctx, what, func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `
			SELECT EXISTS (SELECT 1 FROM crl_leases JOIN issuers i ON i.id = crl_leases.issuer
			       WHERE i.issuer = ?1 AND holder = ?2 AND until >= `+now+` + ?3 AND `+x.runs()+`),
			       EXISTS (SELECT 1 FROM crl_leases JOIN issuers i ON i.id = crl_leases.issuer WHERE i.issuer = ?1 AND holder <> ?2 AND `+x.runs()+`)`,
			issuer.Bytes(), x.holder[:], lease/2).Scan(&leads, &hasOther)
	})
	if err != nil || leads || hasOther {
		return leads, err
	}
	err = x.db.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		id, err := issuerID(ctx, tx, issuer)
		if err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `
			INSERT INTO crl_leases (issuer, holder, until) VALUES (?, ?, `+now+` + ?)
			ON CONFLICT (issuer) DO UPDATE SET holder = excluded.holder, until = excluded.until
			WHERE crl_leases.holder = excluded.holder OR NOT `+x.runs(), id, x.holder[:], lease)
		leads = n == 1
		return err
	})
	return leads && err == nil, err
}

// Led implements crl.Exchange.
func (x *Exchange) Led(ctx context.Context) (led []pki.IssuerID, err error) {
	err = x.db.Look(ctx, "read which CRLs are led", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `SELECT i.issuer FROM crl_leases JOIN issuers i ON i.id = crl_leases.issuer WHERE `+x.runs())
		return rows.Each(func(row engine.Scanner) error {
			var issuer []byte
			if err := row.Scan(&issuer); err != nil {
				return err
			}
			id, err := pki.IssuerIDFromBytes(issuer)
			led = append(led, id)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return led, nil
}

// Yield implements crl.Exchange.
func (x *Exchange) Yield(ctx context.Context, issuer pki.IssuerID) error {
	return x.db.Write(ctx, "end the lease of the CRLs of a CA", func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM crl_leases WHERE issuer = (SELECT id FROM issuers WHERE issuer = ?) AND holder = ?`,
			issuer.Bytes(), x.holder[:])
		return err
	})
}

// Replace refuses a CRL if another server leads its issuer, or has removed its bytes, and removes the bytes of older CRLs. The
// caller records the CRL in the same transaction. A former leader cannot do so even if it has not noticed that its lease has ended. Without other
// servers, Replace of a nil Exchange does nothing.
func (x *Exchange) Replace(ctx context.Context, tx *engine.Tx, issuer int64, c crl.CRL) error {
	if x == nil {
		return nil
	}
	if err := x.checkLead(ctx, tx, issuer, c); err != nil {
		return err
	}
	if err := x.checkBytes(ctx, tx, issuer, c); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `DELETE FROM crl_chunks WHERE issuer = ? AND crl_partition = ? AND delta = ? AND number < ?`,
		issuer, c.Partition, c.Delta, numberBytes(c.Number))
	return err
}

// checkLead refuses a CRL if another server leads its issuer. A server that stood still leads no longer once another one has
// taken the lease. A CRL that was signed elsewhere is refused while any other server leads.
func (x *Exchange) checkLead(ctx context.Context, tx *engine.Tx, issuer int64, c crl.CRL) error {
	condition := ``
	if c.DER != nil {
		condition = ` AND ` + x.runs()
	}
	var is bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM crl_leases WHERE issuer = ? AND holder <> ?`+condition+`)`, issuer, x.holder[:]).Scan(&is)
	if err == nil && is {
		return rules.ForeignCRL(c)
	}
	return err
}

// checkBytes refuses a CRL of the leader whose bytes the store does not have. If the server stood still after it had stored
// them, another leader may have removed them, and ended its lease before it recorded a CRL.
func (x *Exchange) checkBytes(ctx context.Context, tx *engine.Tx, issuer int64, c crl.CRL) error {
	if c.DER != nil {
		return nil
	}
	var lacks bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT 1 FROM crl_leases WHERE issuer = ?1 AND holder = ?2) AND ?3 <> (
			SELECT coalesce(sum(length(data)), 0) FROM crl_chunks WHERE issuer = ?1 AND crl_partition = ?4 AND delta = ?5 AND number = ?6)`,
		issuer, x.holder[:], c.Size, c.Partition, c.Delta, numberBytes(c.Number)).Scan(&lacks)
	if err == nil && lacks {
		return rules.CRLWithoutBytes(c)
	}
	return err
}

// PutFile implements crl.Exchange. It pauses after each piece, so that other writers proceed.
func (x *Exchange) PutFile(ctx context.Context, c crl.CRL, file io.Reader) error {
	const what = "store a CRL for other servers"
	piece := make([]byte, chunkSize)
	for n := 0; ; n++ {
		size, err := io.ReadFull(file, piece)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		var took time.Duration
		err = x.db.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
			begun := time.Now()
			defer func() { took = time.Since(begun) }()
			return x.putPiece(ctx, tx, c, n, piece[:size])
		})
		if err != nil {
			return err
		}
		timer := time.NewTimer(took)
		select {
		case <-ctx.Done():
			timer.Stop()
			return x.db.Fail(what, ctx.Err())
		case <-timer.C:
		}
	}
}

// putPiece stores a piece of a CRL. Before the first one, it removes those of earlier attempts.
func (x *Exchange) putPiece(ctx context.Context, tx *engine.Tx, c crl.CRL, n int, data []byte) error {
	id, err := issuerID(ctx, tx, c.Issuer)
	if err != nil {
		return err
	}
	if err := x.checkLead(ctx, tx, id, c); err != nil {
		return err
	}
	if n == 0 {
		_, err := tx.Exec(ctx, `
			DELETE FROM crl_chunks WHERE issuer = ?1 AND crl_partition = ?2 AND delta = ?3
			  AND NOT EXISTS (SELECT 1 FROM crls WHERE issuer = ?1 AND crl_partition = ?2 AND delta = ?3 AND number = crl_chunks.number)`,
			id, c.Partition, c.Delta)
		if err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO crl_chunks (issuer, crl_partition, delta, number, n, data) VALUES (?, ?, ?, ?, ?, ?)`,
		id, c.Partition, c.Delta, numberBytes(c.Number), n, data)
	return err
}

// CopyFile implements crl.Exchange. It has one piece in memory.
func (x *Exchange) CopyFile(ctx context.Context, c crl.CRL, w io.Writer) error {
	return x.db.ReadMany(ctx, "read a CRL", func(ctx context.Context, tx engine.Querier) error {
		for n := 0; ; n++ {
			var data []byte
			err := tx.QueryRow(ctx, `
				SELECT c.der FROM crls c JOIN issuers i ON i.id = c.issuer
				WHERE i.issuer = ?1 AND c.crl_partition = ?2 AND c.delta = ?3 AND c.number = ?4 AND c.der IS NOT NULL AND ?5 = 0
				UNION ALL
				SELECT p.data FROM crl_chunks p JOIN issuers i ON i.id = p.issuer
				WHERE i.issuer = ?1 AND p.crl_partition = ?2 AND p.delta = ?3 AND p.number = ?4 AND p.n = ?5`,
				c.Issuer.Bytes(), c.Partition, c.Delta, numberBytes(c.Number), n).Scan(&data)
			if errors.Is(err, sql.ErrNoRows) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := w.Write(data); err != nil {
				return err
			}
		}
	})
}

// issuerID returns the row ID of an issuer, which it inserts at the first use.
func issuerID(ctx context.Context, tx *engine.Tx, issuer pki.IssuerID) (id int64, err error) {
	err = tx.QueryRow(ctx, `SELECT id FROM issuers WHERE issuer = ?`, issuer.Bytes()).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return tx.Insert(ctx, `INSERT INTO issuers (issuer) VALUES (?)`, issuer.Bytes())
	}
	return id, err
}

// numberBytes encodes a CRL number.
func numberBytes(n *big.Int) []byte { return n.FillBytes(make([]byte, rules.CRLNumberSize)) }
