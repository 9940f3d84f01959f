package issuing

import (
	"context"
	"database/sql"
	"errors"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// SelectHolder selects the identity that a subject of evidence is tied to.
const SelectHolder = `SELECT spiffe_id FROM identities WHERE subject = ? AND spiffe_id <> ?`

// ReadHolder returns the identity other than id that a subject of evidence is tied to, and zero if there is none.
func ReadHolder(ctx context.Context, q engine.Querier, s pki.EvidenceSubject, id pki.SPIFFEID) (pki.SPIFFEID, error) {
	var holder string
	err := q.QueryRow(ctx, SelectHolder, column.EncodeSubject(s), id.String()).Scan(&holder)
	if errors.Is(err, sql.ErrNoRows) {
		return pki.SPIFFEID{}, nil
	}
	if err != nil {
		return pki.SPIFFEID{}, err
	}
	return pki.ParseSPIFFEID(holder)
}

// SelectNonce selects whether a nonce was consumed.
const SelectNonce = `SELECT EXISTS (SELECT 1 FROM nonces WHERE expires_at = ? AND nonce = ?)`

// NonceUsed reports whether one of the nonces was consumed.
func NonceUsed(ctx context.Context, q engine.Querier, nonces []pki.Nonce) (bool, error) {
	for _, n := range nonces {
		var used bool
		err := q.QueryRow(ctx, SelectNonce, engine.Millis(n.ExpiresAt), n.ID[:]).Scan(&used)
		if err != nil || used {
			return used, err
		}
	}
	return false, nil
}
