// Package installed reads the installed CA certificates.
package installed

import (
	"context"
	"crypto/x509"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
)

// Row is a row of ca_certificates.
type Row struct {
	rules.Installation
	ID, Issuer int64 // the IDs of the row and of its issuer
}

// All returns the installed CAs in the order of their installation, including removed ones.
func All(ctx context.Context, from engine.Querier) ([]ca.InstalledCA, error) {
	rows, err := where(ctx, from, `TRUE`)
	if err != nil {
		return nil, err
	}
	var all []ca.InstalledCA
	for _, r := range rows {
		all = append(all, r.InstalledCA)
	}
	return all, nil
}

// Of returns the row of the CA with an identifier, and reports whether there is one.
func Of(ctx context.Context, from engine.Querier, id pki.IssuerID) (Row, bool, error) {
	all, err := where(ctx, from, `issuer = (SELECT id FROM issuers WHERE issuer = ?)`, id.Bytes())
	if err != nil || len(all) == 0 {
		return Row{}, false, err
	}
	return all[0], true, nil
}

// where returns the CAs that match a condition, in the order of their installation.
func where(ctx context.Context, from engine.Querier, condition string, args ...any) ([]Row, error) {
	var all []Row
	rows := engine.Query(ctx, from,
		`SELECT id, issuer, der, key_label, installed_at, state FROM ca_certificates WHERE `+condition+` ORDER BY id`, args...)
	err := rows.Each(func(rows engine.Scanner) error {
		var r Row
		var at int64
		err := rows.Scan(&r.ID, &r.Issuer, &r.Certificate, &r.Key, &at, &r.State)
		if err == nil {
			r.Parsed, err = x509.ParseCertificate(r.Certificate)
		}
		r.At = engine.FromMillis(at)
		all = append(all, r)
		return err
	})
	return all, err
}

// Others returns the CAs that were not removed, except the one in the row with an ID. Without such a row it returns all.
func Others(ctx context.Context, from engine.Querier, id int64) ([]rules.Installation, error) {
	rows, err := where(ctx, from, `state <> ? AND id <> ?`, ca.Removed, id)
	others := make([]rules.Installation, len(rows))
	for i := range rows {
		others[i] = rows[i].Installation
	}
	return others, err
}
