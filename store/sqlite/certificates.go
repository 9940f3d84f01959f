package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

const selectCertificate = `
	SELECT c.id, i.issuer, c.serial, n.spiffe_id, c.profile, c.key, k.rest, c.issued_at, c.not_before, c.not_after,
	       c.state, c.reason, c.revoked_at, c.invalid_since, c.version, c.der, c.request, s.id, s.rest
	FROM certificates c JOIN issuers i ON i.id = c.issuer LEFT JOIN identities n ON n.id = c.identity
	LEFT JOIN keys k ON k.id = c.key LEFT JOIN keys s ON s.id = c.successor `

// Certificate returns the record of one certificate.
func (r *RA) Certificate(ctx context.Context, ref pki.CertRef) (ra.Certificate, error) {
	return r.certificate(ctx, rules.NoCertificate(ref.Serial), `WHERE c.serial = ? AND i.issuer = ?`, ref.Serial.Bytes(), ref.Issuer.Bytes())
}

// CertificateBySerial finds a certificate without naming its issuer.
func (r *RA) CertificateBySerial(ctx context.Context, serial pki.Serial) (ra.Certificate, error) {
	return r.certificate(ctx, rules.NoCertificate(serial), `WHERE c.serial = ?`, serial.Bytes())
}

func (r *RA) certificate(ctx context.Context, missing *pki.Refusal, where string, args ...any) (ra.Certificate, error) {
	var c ra.Certificate
	err := r.db.file.Read(ctx, "read a certificate", func(ctx context.Context, tx *sql.Tx) error {
		found, id, err := scanCertificate(tx.QueryRowContext(ctx, selectCertificate+where, args...))
		if errors.Is(err, sql.ErrNoRows) {
			return missing
		}
		if err != nil {
			return err
		}
		page := []ra.Certificate{found}
		err = addSets(ctx, tx, page, []int64{id})
		c = page[0]
		return err
	})
	return c, err
}

// Of one identity, those it has are found and sorted: the plus signs keep SQLite from walking through those of all.
const (
	pageOfAll = `WHERE c.id <= ? ORDER BY c.id DESC LIMIT ?`
	pageOfOne = `WHERE +c.id <= ? AND c.identity = (SELECT id FROM identities WHERE spiffe_id = ?) ORDER BY +c.id DESC LIMIT ?`
)

// Certificates returns a page of certificates, the newest first.
func (r *RA) Certificates(ctx context.Context, identity pki.SPIFFEID, from ra.Cursor, limit int) ([]ra.Certificate, ra.Cursor, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	if from == 0 {
		from = 1<<63 - 1
	}
	where, args := pageOfAll, []any{int64(from), limit + 1}
	if !identity.IsZero() {
		where, args = pageOfOne, []any{int64(from), identity.String(), limit + 1}
	}
	var page []ra.Certificate
	var next ra.Cursor
	err := r.db.file.Read(ctx, "list certificates", func(ctx context.Context, tx *sql.Tx) error {
		rows := engine.Query(ctx, tx, selectCertificate+where, args...)
		var ids []int64
		err := rows.Each(func(rows *sql.Rows) error {
			c, id, err := scanCertificate(rows)
			if len(page) == limit {
				next = ra.Cursor(id)
				return err
			}
			page, ids = append(page, c), append(ids, id)
			return err
		})
		if err != nil {
			return err
		}
		return addSets(ctx, tx, page, ids)
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}

// addSets adds to certificates what sets of revocations say whose records are to follow.
func addSets(ctx context.Context, tx *sql.Tx, page []ra.Certificate, ids []int64) error {
	open, err := readOpenSets(ctx, tx)
	if err != nil || open.none() || len(page) == 0 {
		return err
	}
	masks, err := open.masks(ctx, tx, ids)
	for i, id := range ids {
		c := &page[i]
		c.InvalidSince = open.orders.InvalidSince(c.Status, masks[id], c.InvalidSince)
		c.Status = open.orders.Status(c.Status, masks[id])
	}
	return err
}

// scanCertificate reads a row of selectCertificate, and its id.
func scanCertificate(row engine.Scanner) (ra.Certificate, int64, error) {
	var c ra.Certificate
	var id, issuedAt, notAfter int64
	var issuer, serial, request []byte
	var key, successor storedKey
	var identity, profile sql.NullString
	var notBefore, revokedAt, since sql.NullInt64
	err := row.Scan(&id, &issuer, &serial, &identity, &profile, &key.id, &key.rest, &issuedAt, &notBefore, &notAfter,
		&c.Status.State, &c.Status.Reason, &revokedAt, &since, &c.Status.Version, &c.DER, &request, &successor.id, &successor.rest)
	if err != nil {
		return ra.Certificate{}, 0, err
	}
	c.Delivered, c.Profile, c.NotAfter = identity.Valid, profile.String, engine.FromMillis(notAfter)
	c.IssuedAt = engine.FromMillis(issuedAt)
	if notBefore.Valid {
		c.NotBefore = engine.FromMillis(notBefore.Int64)
	}
	c.Status.RevokedAt, c.InvalidSince = engine.RestoreMillis(revokedAt), engine.RestoreMillis(since)
	if c.Ref, err = parseRef(issuer, serial); err != nil {
		return ra.Certificate{}, 0, err
	}
	if identity.Valid {
		if c.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return ra.Certificate{}, 0, err
		}
	}
	if c.KeyHash, err = key.hash(); err != nil {
		return ra.Certificate{}, 0, err
	}
	if c.RequestID, err = restore(request, pki.RequestIDFromBytes); err != nil {
		return ra.Certificate{}, 0, err
	}
	c.Successor, err = successor.hash()
	return c, id, err
}

func parseRef(issuer, serial []byte) (pki.CertRef, error) {
	i, err := pki.IssuerIDFromBytes(issuer)
	if err != nil {
		return pki.CertRef{}, err
	}
	s, err := pki.SerialFromBytes(serial)
	return pki.CertRef{Issuer: i, Serial: s}, err
}
