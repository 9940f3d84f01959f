package tables

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// maxRenewed is the maximum number of certificates of a key that Renewed reads to find a good one.
const maxRenewed = 16

// renewedFrom selects the certificates of an identity and a key that were recorded after another certificate, newest first.
const renewedFrom = selectCertificate + `
	WHERE c.id IN (
		SELECT e.id FROM certificates e INDEXED BY certificates_by_identity
		WHERE e.identity = (SELECT id FROM identities WHERE spiffe_id = ?1) AND e.not_after > ?2 AND e.key = ?3
		  AND +e.id > (SELECT p.id FROM certificates p JOIN issuers i ON i.id = p.issuer WHERE p.serial = ?4 AND i.issuer = ?5)
		ORDER BY +e.id DESC LIMIT ?6)
	ORDER BY +c.id DESC`

// Renewed returns the newest good renewal of a predecessor with the same key, or nil.
func (r *RA) Renewed(ctx context.Context, q ra.IssuanceQuery, at time.Time) (*ra.PriorIssuance, error) {
	var page []ra.Certificate
	err := r.db.file.Read(ctx, "look for the renewal of a certificate", func(ctx context.Context, tx engine.Querier) error {
		var ids []int64
		rows := engine.Query(ctx, tx, renewedFrom, q.Identity.String(), engine.Millis(at), column.KeyID(q.Key),
			q.Predecessor.Serial.Bytes(), q.Predecessor.Issuer.Bytes(), maxRenewed)
		err := rows.Each(func(rows engine.Scanner) error {
			c, id, err := scanCertificate(rows)
			page, ids = append(page, c), append(ids, id)
			return err
		})
		if err != nil {
			return err
		}
		return applyOpenBulk(ctx, tx, page, ids)
	})
	if err != nil {
		return nil, err
	}
	for _, c := range page {
		if c.Status.State == pki.Good && c.KeyHash == q.Key {
			return &ra.PriorIssuance{Certificate: ca.Certificate{Ref: c.Ref, DER: c.DER, IssuedAt: c.IssuedAt, NotAfter: c.NotAfter}, Key: c.KeyHash}, nil
		}
	}
	return nil, nil //nolint:nilnil // ra.IssuanceStore defines nil as none
}
