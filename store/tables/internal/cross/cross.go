// Package cross stores cross-certificates.
package cross

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
)

// Row is a row of cross_certificates.
type Row struct {
	Signer, Subject pki.IssuerID // two installed roots
	Fingerprint     []byte       // SHA-256 of the certificate
	DER             []byte
	At              time.Time
}

// Put records a cross-certificate. It replaces the one of the same signer and subject, and reports whether it changed
// something.
func Put(ctx context.Context, tx *engine.Tx, r Row) (changed bool, err error) {
	err = tx.QueryRow(ctx, `
		INSERT INTO cross_certificates (signer, subject, fingerprint, der, installed_at)
		SELECT s.id, o.id, ?, ?, ? FROM issuers s, issuers o WHERE s.issuer = ? AND o.issuer = ?
		ON CONFLICT (signer, subject) DO UPDATE
		SET fingerprint = excluded.fingerprint, der = excluded.der, installed_at = excluded.installed_at
		WHERE cross_certificates.fingerprint <> excluded.fingerprint
		RETURNING TRUE`,
		r.Fingerprint, r.DER, engine.Millis(r.At), r.Signer.Bytes(), r.Subject.Bytes()).Scan(&changed)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return changed, err
}

// All returns the cross-certificates in the order of their installation.
func All(ctx context.Context, from engine.Querier) ([]ca.CrossCertificate, error) {
	var all []ca.CrossCertificate
	rows := engine.Query(ctx, from, `SELECT der, installed_at FROM cross_certificates ORDER BY id`)
	err := rows.Each(func(rows engine.Scanner) error {
		var c ca.CrossCertificate
		var at int64
		err := rows.Scan(&c.Certificate, &at)
		c.At = engine.FromMillis(at)
		all = append(all, c)
		return err
	})
	return all, err
}
