package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// Install records a CA certificate. It takes the place of one that is installed for the same subject and key, and is
// refused if that one has another key label.
func (c *CA) Install(ctx context.Context, in ca.Installed, by pki.Actor) error {
	cert, err := x509.ParseCertificate(in.Certificate)
	if err != nil || !bytes.Equal(cert.Raw, in.Certificate) {
		return pki.Refuse(pki.RuleCertificate, "install one CA certificate in DER", "what is to be installed is not a certificate")
	}
	return c.db.writeBy(ctx, "install a CA certificate", by, in.At, func(ctx context.Context, tx *writeTx) error {
		before, err := installedFor(ctx, tx, cert)
		switch {
		case err != nil:
			return err
		case before == nil:
			err = insertInstalled(ctx, tx, in, cert)
		case before.label != in.Key:
			return pki.Refuse(pki.RuleRequest, "leave it as it is", "the certificate of %s is installed with the key label %q", cert.Subject, before.label)
		case bytes.Equal(before.der, in.Certificate):
			return nil
		default:
			_, err = tx.ExecContext(ctx, `UPDATE ca_certificates SET fingerprint = ?, der = ?, installed_at = ? WHERE id = ?`,
				fingerprintOf(in), in.Certificate, millis(in.At), before.id)
		}
		if err != nil {
			return err
		}
		return tx.append(ctx, translog.Entry{
			Time: in.At, Actor: by, Action: translog.CAInstalled, Outcome: translog.Done, Facts: installationFacts(in, cert),
		})
	})
}

func installationFacts(in ca.Installed, cert *x509.Certificate) map[string]string {
	facts := map[string]string{
		"subject": cert.Subject.String(), "issuer": pki.IssuerOf(cert).String(), "fingerprint": hex.EncodeToString(fingerprintOf(in)),
	}
	if in.Key != "" {
		facts["key"] = in.Key
	}
	return facts
}

// installedRow is a row of ca_certificates.
type installedRow struct {
	id    int64
	label string
	der   []byte
}

// installedFor returns the row of a certificate with the same subject and key, or nil.
func installedFor(ctx context.Context, tx *writeTx, cert *x509.Certificate) (*installedRow, error) {
	var found *installedRow
	rows, err := tx.QueryContext(ctx, `SELECT id, key_label, der FROM ca_certificates WHERE key_hash = ?`, pki.HashSPKI(cert.RawSubjectPublicKeyInfo).Bytes())
	err = each(rows, err, func(rows *sql.Rows) error {
		var r installedRow
		if err := rows.Scan(&r.id, &r.label, &r.der); err != nil {
			return err
		}
		other, err := x509.ParseCertificate(r.der)
		if err == nil && bytes.Equal(other.RawSubject, cert.RawSubject) {
			found = &r
		}
		return err
	})
	return found, err
}

func insertInstalled(ctx context.Context, tx *writeTx, in ca.Installed, cert *x509.Certificate) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO ca_certificates (fingerprint, key_hash, key_label, der, installed_at) VALUES (?, ?, ?, ?, ?)`,
		fingerprintOf(in), pki.HashSPKI(cert.RawSubjectPublicKeyInfo).Bytes(), in.Key, in.Certificate, millis(in.At))
	return err
}

func fingerprintOf(in ca.Installed) []byte {
	sum := sha256.Sum256(in.Certificate)
	return sum[:]
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
