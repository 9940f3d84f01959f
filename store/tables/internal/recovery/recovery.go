// Package recovery reads the records that a recovery depends on. It writes nothing.
package recovery

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// reader reads the records of one recovery. A recovery is rare, so it runs several statements.
type reader struct {
	from engine.Querier
	id   pki.SPIFFEID
	row  int64 // of the identity
	open bulk.Open
}

// Statements that read what a recovery depends on.
const (
	// selectIdentity selects an identity and its newest certificate. The index has the IDs of all its certificates,
	// so that no certificate is read.
	selectIdentity = `
		SELECT n.id, n.state, n.recoveries, EXISTS (SELECT 1 FROM keys WHERE id = ?2),
		       (SELECT coalesce(max(c.id), 0) FROM certificates c INDEXED BY certificates_by_identity WHERE c.identity = n.id)
		FROM identities n WHERE n.spiffe_id = ?1`
	selectCertificate = `
		SELECT c.id, i.issuer, c.serial, c.not_after, c.state, c.reason, c.version, c.revoked_at, c.superseded_by IS NOT NULL,
		       c.key, c.successor, k.compromised_at IS NOT NULL
		FROM certificates c JOIN issuers i ON i.id = c.issuer JOIN keys k ON k.id = c.key `
)

// row is a row of selectCertificate.
type row struct {
	rules.RecoveryCertificate
	id, key   int64
	successor sql.NullInt64
}

// Read reads the records that a recovery of an identity with a new key depends on.
func Read(
	ctx context.Context, from engine.Querier, id pki.SPIFFEID, want pki.Recovery, key pki.KeyHash, at time.Time,
) (rules.Recovery, error) {
	var on rules.Recovery
	r := reader{from: from, id: id}
	var newestRow int64
	err := from.QueryRow(ctx, selectIdentity, id.String(), column.KeyID(key)).
		Scan(&r.row, &on.State, &on.Count, &on.KeyKnown, &newestRow)
	if err != nil || newestRow == 0 {
		return on, err
	}
	if r.open, err = bulk.ReadOpen(ctx, from); err != nil {
		return on, err
	}
	newest, err := r.certificate(ctx, `WHERE c.id = ?`, newestRow)
	if err != nil {
		return on, err
	}
	on.Newest = newest.RecoveryCertificate
	proven, err := r.certificate(ctx, `WHERE c.serial = ? AND i.issuer = ? AND c.identity = ?`,
		want.Certificate.Serial.Bytes(), want.Certificate.Issuer.Bytes(), r.row)
	if errors.Is(err, sql.ErrNoRows) {
		return on, nil
	}
	if err != nil {
		return on, err
	}
	on.Proven, on.Precedes = proven.RecoveryCertificate, proven.successor.Valid && proven.successor.Int64 == newest.key
	if on.OtherGood, err = r.otherGood(ctx, proven.id, at); err != nil {
		return on, err
	}
	earliest := proven.NotAfter
	if newest.NotAfter.Before(earliest) {
		earliest = newest.NotAfter
	}
	if on.Check(id, want, at) == nil { // if it is refused already, the many bulk revocations need not be read
		on.Missed, err = bulk.Missed(ctx, from, earliest, proven.id, newest.id)
	}
	return on, err
}

// certificate reads the certificate that a condition selects, with its effective status.
func (r *reader) certificate(ctx context.Context, where string, args ...any) (row, error) {
	var c row
	var issuer, serial []byte
	var notAfter int64
	var revokedAt sql.NullInt64
	err := r.from.QueryRow(ctx, selectCertificate+where, args...).Scan(
		&c.id, &issuer, &serial, &notAfter, &c.Status.State, &c.Status.Reason, &c.Status.Version, &revokedAt, &c.Superseded,
		&c.key, &c.successor, &c.Compromised)
	if err != nil {
		return c, err
	}
	c.NotAfter, c.Status.RevokedAt, c.Renewed = engine.FromMillis(notAfter), engine.RestoreMillis(revokedAt), c.successor.Valid
	if c.Ref, err = column.ParseRef(issuer, serial); err != nil || r.open.IsEmpty() {
		return c, err
	}
	masks, err := r.open.Masks(ctx, r.from, []int64{c.id})
	if err != nil {
		return c, err
	}
	c.Status = r.open.Status(c.Status, masks[c.id])
	compromised, err := r.open.Compromises(ctx, r.from, c.key, r.row)
	c.Compromised = c.Compromised || compromised
	return c, err
}

// otherGood reports whether the identity has a good certificate, other than the proven one, that expires later than at.
func (r *reader) otherGood(ctx context.Context, proven int64, at time.Time) (bool, error) {
	all, err := bulk.CertificatesOf(ctx, r.from, r.id, at)
	for _, c := range all {
		if c.ID != proven && c.Status.State == pki.Good && engine.Millis(c.NotAfter) > engine.Millis(at) {
			return true, err
		}
	}
	return false, err
}
