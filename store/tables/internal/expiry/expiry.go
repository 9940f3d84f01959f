// Package expiry removes the records of expired certificates, tokens, requests and nonces that are no longer needed.
package expiry

import (
	"context"
	"database/sql"
	"time"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/retention"
)

// KeepOrders is the time for which an order without a certificate is kept after it has expired.
const KeepOrders = 24 * time.Hour

// Remove removes records that expired before a time, in one step. It does not wait for that time with orders without a
// certificate and HMAC keys of external keys, which no record in the log refers to: it removes them depending on now. Both
// times are in milliseconds. The caller appends the log entry.
func Remove(ctx context.Context, tx *engine.Tx, s retention.Step, before, now int64) (retention.Expired, error) {
	var removed retention.Expired
	if err := removeExpired(ctx, tx, s, before, &removed); err != nil {
		return removed, err
	}
	if err := RemoveTokens(ctx, tx, s.Limit, before, &removed); err != nil {
		return removed, err
	}
	abandoned := now - KeepOrders.Milliseconds()
	for _, r := range []struct {
		statement string
		before    int64
	}{
		{deleteRequests, before},
		{DeleteNonces, before},
		{DeleteAuthorizations, before},
		{DeleteOrders, before},
		{DeleteAbandonedAuthorizations, abandoned},
		{DeleteAbandonedOrders, abandoned},
		{EraseExternalKeys, now},
	} {
		more, err := removeUnlogged(ctx, tx, r.statement, s.Limit, r.before)
		if err != nil {
			return removed, err
		}
		removed.More = removed.More || more
	}
	return removed, nil
}

// removeExpired reads the next certificates that expired before a time, and deletes those that are no longer needed.
func removeExpired(ctx context.Context, tx *engine.Tx, s retention.Step, before int64, removed *retention.Expired) error {
	last, read, err := endOfStep(ctx, tx, s, before)
	if err != nil || read == 0 {
		return err
	}
	removed.Next, removed.More = last, read == s.Limit
	return RemoveCertificates(ctx, tx, s.After, last, removed)
}

// RemoveCertificates deletes the certificates between after (exclusive) and last (inclusive) that are no longer needed, with
// their keys.
func RemoveCertificates(ctx context.Context, tx *engine.Tx, after, last retention.Position, removed *retention.Expired) error {
	var keys []int64
	rows := engine.Query(ctx, tx, DeleteExpired, engine.Millis(after.NotAfter), after.Row, engine.Millis(last.NotAfter), last.Row)
	err := rows.Each(func(rows engine.Scanner) error {
		var key, successor sql.NullInt64
		if err := rows.Scan(&key, &successor); err != nil {
			return err
		}
		for _, k := range []sql.NullInt64{key, successor} {
			if k.Valid {
				keys = append(keys, k.Int64)
			}
		}
		removed.Certificates++
		return nil
	})
	for i := 0; i < len(keys) && err == nil; i++ {
		var deleted bool
		if deleted, err = releaseKey(ctx, tx, keys[i]); deleted {
			removed.Keys++
		}
	}
	return err
}

// Statements of a step, and conditions for certificates that are no longer needed.
const (
	SelectExpired = `SELECT not_after, id FROM certificates WHERE not_after < ? AND (not_after, id) > (?, ?) ORDER BY not_after, id LIMIT ?`
	DeleteExpired = `
		DELETE FROM certificates WHERE (not_after, id) > (?, ?) AND (not_after, id) <= (?, ?)
		  AND (state = 1 OR ` + issuerRemoved + ` OR (` + listedFull + ` AND (` + listedPart + ` OR NOT ` + hasPart + `)))
		RETURNING key, successor`
	// True if the issuer was removed, so that it publishes no more CRLs.
	issuerRemoved = `EXISTS (SELECT 1 FROM ca_certificates a WHERE a.issuer = certificates.issuer AND a.state = 3)`
	// The next two are true if a full CRL of the issuer (partition 0), or of the certificate's partition, was published after
	// the certificate expired. The third is true if the partition has a distribution point.
	listedFull = `EXISTS (
		SELECT 1 FROM crls l WHERE l.issuer = certificates.issuer AND l.crl_partition = 0 AND l.delta = 0 AND l.this_update > not_after)`
	listedPart = `EXISTS (
		SELECT 1 FROM crls l WHERE l.issuer = certificates.issuer AND l.crl_partition = certificates.crl_partition AND l.delta = 0 AND l.this_update > not_after)`
	hasPart = `EXISTS (SELECT 1 FROM crl_points p WHERE p.issuer = certificates.issuer AND p.crl_partition = certificates.crl_partition)`

	DeleteTokens = `DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE expires_at < ? ORDER BY expires_at, id LIMIT ?)`
)

// endOfStep returns the position at which a step ends, and the number of certificates in it.
func endOfStep(ctx context.Context, tx *engine.Tx, s retention.Step, before int64) (last retention.Position, read int, err error) {
	rows := engine.Query(ctx, tx, SelectExpired, before, engine.Millis(s.After.NotAfter), s.After.Row, s.Limit)
	err = rows.Each(func(rows engine.Scanner) error {
		var notAfter int64
		if err := rows.Scan(&notAfter, &last.Row); err != nil {
			return err
		}
		last.NotAfter = engine.FromMillis(notAfter)
		read++
		return nil
	})
	return last, read, err
}

// RemoveTokens deletes up to limit tokens that expired before a time in milliseconds.
func RemoveTokens(ctx context.Context, tx *engine.Tx, limit int, before int64, removed *retention.Expired) error {
	n, err := tx.Exec(ctx, DeleteTokens, before, limit)
	removed.Tokens = int(n)
	removed.More = removed.More || removed.Tokens == limit
	return err
}

// releaseKey decrements the number of certificates that refer to a key. A key without certificates is deleted, unless it is
// compromised, because a compromised key must never be certified again.
func releaseKey(ctx context.Context, tx *engine.Tx, key int64) (deleted bool, err error) {
	n, err := tx.Exec(ctx, `DELETE FROM keys WHERE id = ? AND uses = 1 AND compromised_at IS NULL`, key)
	if err != nil || n == 1 {
		return n == 1, err
	}
	return false, tx.ExecOne(ctx, `UPDATE keys SET uses = uses - 1 WHERE id = ?`, key)
}

// Statements that delete requests that were made before a time, and nonces that expired before it.
const (
	deleteRequests = `
		DELETE FROM operator_requests
		WHERE id IN (SELECT id FROM operator_requests WHERE made_at < ? ORDER BY made_at LIMIT ?)`
	DeleteNonces = `
		DELETE FROM nonces WHERE (expires_at, nonce) IN (
			SELECT expires_at, nonce FROM nonces WHERE expires_at < ? ORDER BY expires_at, nonce LIMIT ?)`
)

// Statements that delete the orders of ACME whose certificate expired before a time, and those without a certificate that
// expired before a time, after their authorizations. The last one erases the HMAC keys of unused external keys that expired.
const (
	DeleteAuthorizations          = deleteAuthorizations + certificateExpired + ` LIMIT ?)`
	DeleteOrders                  = deleteOrders + certificateExpired + withoutAuthorizations + ` LIMIT ?)`
	DeleteAbandonedAuthorizations = deleteAuthorizations + orderExpired + ` LIMIT ?)`
	DeleteAbandonedOrders         = deleteOrders + orderExpired + withoutAuthorizations + ` LIMIT ?)`

	deleteAuthorizations = `
		DELETE FROM acme_authorizations WHERE id IN (
			SELECT z.id FROM acme_orders o JOIN acme_authorizations z ON z.acme_order = o.id WHERE `
	deleteOrders          = `DELETE FROM acme_orders WHERE id IN (SELECT o.id FROM acme_orders o WHERE `
	certificateExpired    = `o.certificate IS NOT NULL AND o.not_after < ?`
	orderExpired          = `o.certificate IS NULL AND o.expires_at < ?`
	withoutAuthorizations = ` AND NOT EXISTS (SELECT 1 FROM acme_authorizations z WHERE z.acme_order = o.id)`

	EraseExternalKeys = `
		UPDATE acme_external_keys SET sealed = NULL WHERE id IN (
			SELECT id FROM acme_external_keys WHERE sealed IS NOT NULL AND expires_at < ? LIMIT ?)`
)

// removeUnlogged deletes up to limit records that are not in the log, and reports whether it reached the limit.
func removeUnlogged(
	ctx context.Context, tx *engine.Tx, statement string, limit int, before int64,
) (more bool, err error) {
	n, err := tx.Exec(ctx, statement, before, limit)
	return n == int64(limit), err
}
