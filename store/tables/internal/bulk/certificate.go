package bulk

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// Certificate is a certificate whose status a change may concern, with its row ID and that of its key. Its status has the open
// bulk revocations applied. The key is NULL if the certificate was never delivered.
type Certificate struct {
	rules.Certificate
	ID  int64
	Key sql.NullInt64
}

const selectCertificates = `
	SELECT c.id, i.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.invalid_since, c.version, c.key, n.spiffe_id, n.state
	FROM certificates c JOIN issuers i ON i.id = c.issuer LEFT JOIN identities n ON n.id = c.identity `

// ReadCertificate returns one certificate, or a refusal if it is not on record.
func ReadCertificate(ctx context.Context, q engine.Querier, ref pki.CertRef) (Certificate, error) {
	all, err := queryCertificates(ctx, q, `WHERE c.serial = ? AND i.issuer = ?`, ref.Serial.Bytes(), ref.Issuer.Bytes())
	if err == nil && len(all) == 0 {
		err = rules.NoCertificate(ref.Serial)
	}
	if err != nil {
		return Certificate{}, err
	}
	return all[0], nil
}

// CertificatesOf returns the certificates of an identity that expire at a time or later.
func CertificatesOf(ctx context.Context, q engine.Querier, id pki.SPIFFEID, from time.Time) ([]Certificate, error) {
	return queryCertificates(ctx, q, `WHERE c.identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND c.not_after >= ? ORDER BY c.id`,
		id.String(), engine.Millis(from))
}

// CertificatesOfKey returns the certificates of a key that expire at a time or later, except for the one with the row ID but.
func CertificatesOfKey(ctx context.Context, q engine.Querier, key, but int64, from time.Time) ([]Certificate, error) {
	return queryCertificates(ctx, q, `
		WHERE c.identity = (SELECT identity FROM keys WHERE id = ?1) AND c.key = ?1 AND c.id <> ?2 AND c.not_after >= ?3 ORDER BY c.id`,
		key, but, engine.Millis(from))
}

func queryCertificates(ctx context.Context, q engine.Querier, where string, args ...any) ([]Certificate, error) {
	var all []Certificate
	var ids []int64
	rows := engine.Query(ctx, q, selectCertificates+where, args...)
	err := rows.Each(func(rows engine.Scanner) error {
		c, err := scanCertificate(rows)
		all, ids = append(all, c), append(ids, c.ID)
		return err
	})
	if err != nil || len(all) == 0 {
		return all, err
	}
	open, err := ReadOpen(ctx, q)
	if err != nil || open.IsEmpty() {
		return all, err
	}
	masks, err := open.Masks(ctx, q, ids)
	for i := range all {
		c := &all[i]
		c.InvalidSince = open.InvalidSince(c.Status, masks[c.ID], c.InvalidSince)
		c.Status = open.Status(c.Status, masks[c.ID])
	}
	return all, err
}

func scanCertificate(row engine.Scanner) (Certificate, error) {
	var c Certificate
	var issuer, serial []byte
	var notAfter int64
	var revokedAt, since, state sql.NullInt64
	var identity sql.NullString
	err := row.Scan(&c.ID, &issuer, &serial, &notAfter, &c.Status.State, &c.Status.Reason, &revokedAt, &since, &c.Status.Version,
		&c.Key, &identity, &state)
	if err != nil {
		return Certificate{}, err
	}
	c.NotAfter, c.Delivered = engine.FromMillis(notAfter), c.Key.Valid
	c.Status.RevokedAt, c.InvalidSince = engine.RestoreMillis(revokedAt), engine.RestoreMillis(since)
	if identity.Valid {
		c.IdentityState = pki.IdentityState(state.Int64) //nolint:gosec // 1 to 4, as the table has it
		if c.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return Certificate{}, err
		}
	}
	c.Ref, err = column.ParseRef(issuer, serial)
	return c, err
}

// Key is a key that was certified.
type Key struct {
	Identity    pki.SPIFFEID
	Compromised bool
}

// ReadKey returns a key, or a refusal if it was never certified.
func ReadKey(ctx context.Context, q engine.Querier, key pki.KeyHash) (Key, error) {
	var k Key
	var identity string
	row := q.QueryRow(ctx, `
		SELECT n.spiffe_id, k.compromised_at IS NOT NULL FROM keys k JOIN identities n ON n.id = k.identity WHERE k.id = ? AND k.rest = ?`,
		column.KeyID(key), column.KeyRest(key))
	err := row.Scan(&identity, &k.Compromised)
	if errors.Is(err, sql.ErrNoRows) {
		return k, rules.NoKey(key)
	}
	if err == nil {
		k.Identity, err = pki.ParseSPIFFEID(identity)
	}
	return k, err
}
