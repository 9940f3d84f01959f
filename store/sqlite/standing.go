package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// selectStanding finds an identity (?1), with what is asked about it: the certificate to renew (?2, ?3), the certificate
// that a request (?4) was answered with, and what is against a key (?5).
const selectStanding = `
	SELECT ` + identityColumns + `,
	       p.state, p.reason, p.revoked_at, p.version, p.successor,
	       a.serial, (SELECT issuer FROM issuers WHERE id = a.issuer), a.key_hash, a.not_after, a.der, ` + againstKey + `
	FROM identities n
	LEFT JOIN certificates p ON p.serial = ?2 AND p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = ?3)
	LEFT JOIN certificates a ON a.identity = n.id AND a.request = ?4
	WHERE n.spiffe_id = ?1`

// againstKey says what keeps an identity n from having a key (?5) certified: that it was compromised, is a CA's, or is
// certified for another identity.
const againstKey = `
	EXISTS (SELECT 1 FROM compromised_keys WHERE key_hash = ?5),
	EXISTS (SELECT 1 FROM ca_certificates WHERE key_hash = ?5),
	EXISTS (SELECT 1 FROM certificates WHERE substr(key_hash, 1, 8) = substr(?5, 1, 8) AND key_hash = ?5 AND identity <> n.id)`

// Standing answers a question in one statement, which sees one state of the store.
func (r *RA) Standing(ctx context.Context, q ra.Question) (ra.Standing, error) {
	var st ra.Standing
	err := r.db.look(ctx, "read how a request stands", func(ctx context.Context, conn *sql.Conn) error {
		row := conn.QueryRowContext(ctx, selectStanding, q.Identity.String(), optional(q.Predecessor.Serial),
			optional(q.Predecessor.Issuer), optional(q.Request), q.Key.Bytes())
		var err error
		if st, err = scanStanding(row, q); errors.Is(err, sql.ErrNoRows) {
			return noIdentity(q.Identity)
		}
		return err
	})
	return st, err
}

func scanStanding(row scanner, q ra.Question) (ra.Standing, error) {
	var st ra.Standing
	var id identityRow
	var state, reason, revokedAt, version, answerEnd sql.NullInt64
	var successor, answerSerial, answerIssuer, answerKey, der []byte
	var against objections
	err := row.Scan(append(id.columns(), &state, &reason, &revokedAt, &version, &successor,
		&answerSerial, &answerIssuer, &answerKey, &answerEnd, &der, &against.compromised, &against.reserved, &against.foreign)...)
	if err != nil {
		return st, err
	}
	if st.Identity, err = id.identity(); err != nil {
		return st, err
	}
	st.Key = against.refusal()
	if !q.Predecessor.IsZero() {
		if !state.Valid {
			return st, noPredecessor(q.Predecessor.Serial)
		}
		st.Predecessor.Status = statusOf(state.Int64, reason.Int64, version.Int64, revokedAt)
		if st.Predecessor.Successor, err = restore(successor, pki.KeyHashFromBytes); err != nil {
			return st, err
		}
	}
	if answerSerial == nil {
		return st, nil
	}
	st.Answer = &ra.Answer{Certificate: ca.Certificate{DER: der, NotAfter: fromMillis(answerEnd.Int64)}}
	if st.Answer.Certificate.Ref, err = parseRef(answerIssuer, answerSerial); err != nil {
		return st, err
	}
	st.Answer.Key, err = pki.KeyHashFromBytes(answerKey)
	return st, err
}

func statusOf(state, reason, version int64, revokedAt sql.NullInt64) pki.Status {
	s := pki.Status{State: pki.State(state), Reason: pki.Reason(reason), Version: uint64(version)} //nolint:gosec // as the table's checks have them
	if revokedAt.Valid {
		s.RevokedAt = fromMillis(revokedAt.Int64)
	}
	return s
}
