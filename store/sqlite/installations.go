package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// Install records a CA certificate. One that is installed already with another key label is refused.
func (c *CA) Install(ctx context.Context, in ca.Installed, by pki.Actor) error {
	cert, err := x509.ParseCertificate(in.Certificate)
	if err != nil || !bytes.Equal(cert.Raw, in.Certificate) {
		return pki.Refuse(pki.RuleCertificate, "install one CA certificate in DER", "what is to be installed is not a certificate")
	}
	fingerprint := sha256.Sum256(in.Certificate)
	return c.db.writeBy(ctx, "install a CA certificate", by, in.At, func(ctx context.Context, tx *writeTx) error {
		var label string
		err := tx.QueryRowContext(ctx, `SELECT key_label FROM ca_certificates WHERE fingerprint = ?`, fingerprint[:]).Scan(&label)
		if err == nil && label != in.Key {
			return pki.Refuse(pki.RuleRequest, "leave it as it is", "the certificate of %s is installed with the key label %q", cert.Subject, label)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `
			INSERT INTO ca_certificates (fingerprint, key_hash, key_label, der, installed_at) VALUES (?, ?, ?, ?, ?)`,
			fingerprint[:], pki.HashSPKI(cert.RawSubjectPublicKeyInfo).Bytes(), in.Key, in.Certificate, millis(in.At))
		if err != nil {
			return err
		}
		facts := map[string]string{
			"subject": cert.Subject.String(), "issuer": pki.IssuerOf(cert).String(), "fingerprint": hex.EncodeToString(fingerprint[:]),
		}
		if in.Key != "" {
			facts["key"] = in.Key
		}
		return tx.append(ctx, translog.Entry{
			Time: in.At, Actor: by, Action: translog.CAInstalled, Outcome: translog.Done, Facts: facts,
		})
	})
}

// Installed returns the CA certificates in the order of their installation.
func (c *CA) Installed(ctx context.Context) ([]ca.Installed, error) {
	var all []ca.Installed
	err := c.db.read(ctx, "read the CA certificates", func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT der, key_label, installed_at FROM ca_certificates ORDER BY id`)
		return each(rows, err, func(rows *sql.Rows) error {
			var in ca.Installed
			var at int64
			err := rows.Scan(&in.Certificate, &in.Key, &at)
			in.At = fromMillis(at)
			all = append(all, in)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
