package tables

import (
	"context"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/cross"
	"github.com/brevet-pki/brevet/store/tables/internal/installed"
	"github.com/brevet-pki/brevet/translog"
)

// Install records a CA certificate. It replaces the installed certificate with the same subject and key. If that one has
// another key label or was removed, Install refuses.
func (c *CA) Install(ctx context.Context, in ca.InstalledCA, by pki.Actor) error {
	cert, err := rules.ParseInstallation(in)
	if err != nil {
		return err
	}
	return c.db.writeBy(ctx, "install a CA certificate", by, pki.MayAdminister, in.At, func(ctx context.Context, tx *writeTx) error {
		before, found, err := installed.Of(ctx, tx, pki.IssuerOf(cert.Parsed))
		if err != nil {
			return err
		}
		if !found {
			err = insertInstalled(ctx, tx, cert)
		} else {
			var differs bool
			if differs, err = cert.CheckReplace(before.Installation); err != nil || !differs {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE ca_certificates SET fingerprint = ?, der = ?, installed_at = ? WHERE id = ?`,
				cert.Fingerprint(), in.Certificate, engine.Millis(in.At), before.ID)
		}
		if err != nil {
			return err
		}
		return tx.append(ctx, cert.Entry(translog.CAInstalled, by, in.At))
	})
}

func insertInstalled(ctx context.Context, tx *writeTx, in rules.Installation) error {
	issuer, err := tx.issuer(ctx, pki.IssuerOf(in.Parsed))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO ca_certificates (issuer, fingerprint, key_hash, key_label, der, installed_at, state) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		issuer, in.Fingerprint(), pki.HashSPKI(in.Parsed.RawSubjectPublicKeyInfo).Bytes(), in.Key, in.Certificate, engine.Millis(in.At), ca.Active)
	return err
}

// Installed returns the CA certificates in the order of their installation.
func (c *CA) Installed(ctx context.Context) (all []ca.InstalledCA, err error) {
	err = c.db.file.Read(ctx, "read the CA certificates", func(ctx context.Context, tx engine.Querier) (err error) {
		all, err = installed.All(ctx, tx)
		return err
	})
	return all, err
}

// InstallCross records a cross-certificate.
func (c *CA) InstallCross(ctx context.Context, in ca.CrossCertificate, by pki.Actor) error {
	return c.db.writeBy(ctx, "install a cross-certificate", by, pki.MayAdminister, in.At, func(ctx context.Context, tx *writeTx) error {
		others, err := installed.Others(ctx, tx, 0)
		if err != nil {
			return err
		}
		cert, err := rules.ParseCross(in, others)
		if err != nil {
			return err
		}
		changed, err := cross.Put(ctx, tx.Tx, cross.Row{
			Signer: cert.Signer, Subject: pki.IssuerOf(cert.Parsed), Fingerprint: cert.Fingerprint(), DER: in.Certificate, At: in.At,
		})
		if err != nil || !changed {
			return err
		}
		return tx.append(ctx, cert.Entry(translog.CAInstalled, by, in.At))
	})
}

// CrossCertificates returns the cross-certificates in the order of their installation.
func (c *CA) CrossCertificates(ctx context.Context) (all []ca.CrossCertificate, err error) {
	err = c.db.file.Read(ctx, "read the cross-certificates", func(ctx context.Context, tx engine.Querier) (err error) {
		all, err = cross.All(ctx, tx)
		return err
	})
	return all, err
}

// ReadInstalled returns the installed CAs in the order of their installation, for a program that has not opened the store.
func ReadInstalled(ctx context.Context, from engine.Querier) ([]ca.InstalledCA, error) {
	return installed.All(ctx, from)
}
