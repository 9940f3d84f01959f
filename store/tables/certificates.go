package tables

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
)

const selectCertificate = `
	SELECT c.id, i.issuer, c.serial, n.spiffe_id, c.profile, c.key, k.rest, c.issued_at, c.not_before, c.not_after,
	       c.state, c.reason, c.revoked_at, c.invalid_since, c.version, c.der, c.request, s.id, s.rest
	FROM certificates c JOIN issuers i ON i.id = c.issuer LEFT JOIN identities n ON n.id = c.identity
	LEFT JOIN keys k ON k.id = c.key LEFT JOIN keys s ON s.id = c.successor `

// Certificate returns the record of one certificate.
func (r *RA) Certificate(ctx context.Context, ref pki.CertRef) (ra.Certificate, error) {
	return r.certificate(ctx, rules.NoCertificate(ref.Serial), `WHERE c.serial = `+engine.Blob+` AND i.issuer = `+engine.Blob, ref.Serial.Bytes(), ref.Issuer.Bytes())
}

// CertificateBySerial returns the record of the certificate with a serial number, of any issuing CA.
func (r *RA) CertificateBySerial(ctx context.Context, serial pki.Serial) (ra.Certificate, error) {
	return r.certificate(ctx, rules.NoCertificate(serial), `WHERE c.serial = `+engine.Blob, serial.Bytes())
}

func (r *RA) certificate(ctx context.Context, missing *pki.Refusal, where string, args ...any) (ra.Certificate, error) {
	var c ra.Certificate
	err := r.db.file.Look(ctx, "read a certificate", func(ctx context.Context, from engine.Querier) error {
		found, id, err := scanCertificate(from.QueryRow(ctx, selectCertificate+where, args...))
		if errors.Is(err, sql.ErrNoRows) {
			return missing
		}
		if err != nil {
			return err
		}
		page := []ra.Certificate{found}
		err = applyOpenBulk(ctx, from, page, []int64{id})
		c = page[0]
		return err
	})
	return c, err
}

// Certificates returns a page of certificates, newest first.
func (r *RA) Certificates(ctx context.Context, f ra.CertificateFilter, after ra.CertificatePosition, limit int) ([]ra.Certificate, ra.CertificatePosition, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, ra.CertificatePosition{}, err
	}
	var page []ra.Certificate
	var next ra.CertificatePosition
	err := r.db.file.ReadMany(ctx, "list certificates", func(ctx context.Context, tx engine.Querier) error {
		open, err := bulk.ReadOpen(ctx, tx)
		if err != nil {
			return err
		}
		var q engine.Clause
		if err := selectCertificates(ctx, tx, &q, open, f, after); err != nil {
			return err
		}
		var ids []int64
		ids, next, err = readPage(ctx, tx, &q, limit, func(rows engine.Scanner) (listedRow[ra.CertificatePosition], error) {
			return scanCertificatePosition(rows, open, f.States)
		})
		if err != nil {
			return err
		}
		page, err = readCertificates(ctx, tx, ids)
		return err
	})
	if err != nil {
		return nil, ra.CertificatePosition{}, err
	}
	return page, next, nil
}

// selectCertificates adds the query for readPage. If an identity has at most ra.MaxLooked certificates on record, the query
// finds those of the identity and sorts them. Otherwise it reads all certificates in the order of the list.
func selectCertificates(ctx context.Context, tx engine.Querier, q *engine.Clause, open bulk.Open, f ra.CertificateFilter, after ra.CertificatePosition) error {
	var selected bulk.Row
	selected.Selection, selected.Action, selected.Mark = f.Selection, revocation.Revoke, 1<<63-1
	if err := selected.CheckNamed(ctx, tx); err != nil {
		return err
	}
	q.Add(`SELECT c.id, c.issued_at, c.serial, c.state, c.reason, c.revoked_at, c.version, `)
	open.AddMask(q)
	q.Add(`, (`)
	matchCertificate(q, &selected, f)
	if err := addFromListed(ctx, tx, q, &selected); err != nil {
		return err
	}
	if !f.IssuedFrom.IsZero() {
		q.Add(` AND c.issued_at >= ?`, engine.CeilMillis(f.IssuedFrom))
	}
	if !f.IssuedUntil.IsZero() {
		q.Add(` AND c.issued_at < ?`, engine.CeilMillis(f.IssuedUntil))
	}
	if !after.IsZero() {
		at := engine.Millis(after.IssuedAt)
		q.Add(` AND c.issued_at <= ? AND (c.issued_at, c.serial) < (?, ?)`, at, at, after.Serial.Bytes())
	}
	q.Add(` ORDER BY c.issued_at DESC, c.serial DESC LIMIT ?`, ra.MaxLooked+1)
	return nil
}

// addFromListed ends the match of the query of a list, and adds the index that it reads.
func addFromListed(ctx context.Context, tx engine.Querier, q *engine.Clause, selected *bulk.Row) error {
	if !selected.OfOneIdentity() {
		q.Add(`) FROM certificates c INDEXED BY certificates_by_issue WHERE TRUE`)
		return nil
	}
	id, first, err := selected.Owner(ctx, tx)
	if err != nil {
		return err
	}
	if first.ID != 0 {
		line, err := bulk.BoundedLineage(ctx, tx, first)
		if err != nil {
			return err
		}
		list, err := column.IDs(slices.Collect(maps.Keys(line)))
		if err != nil {
			return err
		}
		q.Add(`) FROM json_each(?) j CROSS JOIN certificates c ON c.id = j.value WHERE TRUE`, list)
		return nil
	}
	large, err := bulk.IsLarge(ctx, tx, id, 0)
	if large {
		q.Add(`) FROM certificates c INDEXED BY certificates_by_issue WHERE TRUE`)
	} else {
		q.Add(`) FROM certificates c INDEXED BY certificates_by_identity WHERE c.identity = (SELECT id FROM identities WHERE spiffe_id = ?)`, id.String())
	}
	return err
}

// matchCertificate adds the condition that the certificate c matches the filter, except for its state.
func matchCertificate(q *engine.Clause, selected *bulk.Row, f ra.CertificateFilter) {
	q.Add(`TRUE`)
	if !f.IsZero() {
		q.Add(` AND `)
		selected.AddIsSelected(q, "c", f.Label)
	}
	if !f.ExpiresFrom.IsZero() {
		q.Add(` AND +c.not_after >= ?`, engine.CeilMillis(f.ExpiresFrom))
	}
	if !f.ExpiresUntil.IsZero() {
		q.Add(` AND +c.not_after < ?`, engine.CeilMillis(f.ExpiresUntil))
	}
	if f.WithoutSuccessor {
		q.Add(` AND c.identity IS NOT NULL AND c.successor IS NULL`)
	}
	if !f.NotRenewedSince.IsZero() {
		q.Add(` AND c.identity IS NOT NULL`)
	}
	notRenewed(q, `c.identity`, f.NotRenewedSince)
}

// scanCertificatePosition reads a row of selectCertificates. It compares the effective state, with the open bulk revocations
// applied, with the filter.
func scanCertificatePosition(rows engine.Scanner, open bulk.Open, states []pki.State) (listedRow[ra.CertificatePosition], error) {
	var f listedRow[ra.CertificatePosition]
	var issued, state, reason, version int64
	var revokedAt sql.NullInt64
	var serial []byte
	var mask uint64
	if err := rows.Scan(&f.id, &issued, &serial, &state, &reason, &revokedAt, &version, &mask, &f.matches); err != nil {
		return f, err
	}
	if len(states) > 0 && f.matches {
		f.matches = slices.Contains(states, open.Status(column.DecodeStatus(state, reason, version, revokedAt), mask).State)
	}
	var err error
	f.place.IssuedAt = engine.FromMillis(issued)
	f.place.Serial, err = pki.SerialFromBytes(serial)
	return f, err
}

// readCertificates reads the certificates with the given row IDs, in the order of lists.
func readCertificates(ctx context.Context, tx engine.Querier, ids []int64) ([]ra.Certificate, error) {
	list, err := column.IDs(ids)
	if err != nil {
		return nil, err
	}
	var page []ra.Certificate
	ids = nil
	rows := engine.Query(ctx, tx, selectCertificate+`WHERE c.id IN (SELECT value FROM json_each(?)) ORDER BY c.issued_at DESC, c.serial DESC`, list)
	err = rows.Each(func(rows engine.Scanner) error {
		c, id, err := scanCertificate(rows)
		page, ids = append(page, c), append(ids, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return page, applyOpenBulk(ctx, tx, page, ids)
}

// applyOpenBulk applies the open bulk revocations to certificates.
func applyOpenBulk(ctx context.Context, from engine.Querier, page []ra.Certificate, ids []int64) error {
	open, err := bulk.ReadOpen(ctx, from)
	if err != nil || open.IsEmpty() || len(page) == 0 {
		return err
	}
	masks, err := open.Masks(ctx, from, ids)
	for i, id := range ids {
		c := &page[i]
		c.InvalidSince = open.InvalidSince(c.Status, masks[id], c.InvalidSince)
		c.Status = open.Status(c.Status, masks[id])
	}
	return err
}

// scanCertificate reads a row of selectCertificate, and returns the certificate and its row ID.
func scanCertificate(row engine.Scanner) (ra.Certificate, int64, error) {
	var c ra.Certificate
	var id, issuedAt, notAfter int64
	var issuer, serial, request []byte
	var key, successor issuing.StoredKey
	var identity, profile sql.NullString
	var notBefore, revokedAt, since sql.NullInt64
	err := row.Scan(&id, &issuer, &serial, &identity, &profile, &key.ID, &key.Rest, &issuedAt, &notBefore, &notAfter,
		&c.Status.State, &c.Status.Reason, &revokedAt, &since, &c.Status.Version, &c.DER, &request, &successor.ID, &successor.Rest)
	if err != nil {
		return ra.Certificate{}, 0, err
	}
	c.Delivered, c.Profile, c.NotAfter = identity.Valid, profile.String, engine.FromMillis(notAfter)
	c.IssuedAt = engine.FromMillis(issuedAt)
	if notBefore.Valid {
		c.NotBefore = engine.FromMillis(notBefore.Int64)
	}
	c.Status.RevokedAt, c.InvalidSince = engine.RestoreMillis(revokedAt), engine.RestoreMillis(since)
	if c.Ref, err = column.ParseRef(issuer, serial); err != nil {
		return ra.Certificate{}, 0, err
	}
	if identity.Valid {
		if c.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return ra.Certificate{}, 0, err
		}
	}
	if c.KeyHash, err = key.Hash(); err != nil {
		return ra.Certificate{}, 0, err
	}
	if c.RequestID, err = column.Restore(request, pki.RequestIDFromBytes); err != nil {
		return ra.Certificate{}, 0, err
	}
	c.Successor, err = successor.Hash()
	return c, id, err
}
