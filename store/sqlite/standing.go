package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// selectStanding finds an identity (?1), with what is asked about it: the certificate to renew (?2, ?3), the certificate
// that a request (?4) was answered with, and what is on record of a key (?5, ?6).
const selectStanding = `
	SELECT ` + identityColumns + `,
	       p.state, p.reason, p.revoked_at, p.version, s.id, s.rest,
	       a.serial, (SELECT issuer FROM issuers WHERE id = a.issuer), a.key, ak.rest, a.not_after, a.der, ` + keyColumns + `
	FROM identities n
	LEFT JOIN certificates p ON p.serial = ?2 AND p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = ?3)
	LEFT JOIN keys s ON s.id = p.successor
	LEFT JOIN certificates a ON a.identity = n.id AND a.request = ?4
	LEFT JOIN keys ak ON ak.id = a.key
	LEFT JOIN keys k ON k.id = ?5
	WHERE n.spiffe_id = ?1`

// Standing answers a question in one statement, which sees one state of the store.
func (r *RA) Standing(ctx context.Context, q ra.Question) (ra.Standing, error) {
	var st ra.Standing
	err := r.db.look(ctx, "read how a request stands", func(ctx context.Context, conn *sql.Conn) error {
		row := conn.QueryRowContext(ctx, selectStanding, q.Identity.String(), optional(q.Predecessor.Serial),
			optional(q.Predecessor.Issuer), optional(q.Request), keyID(q.Key), q.Key.Bytes())
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
	var answerSerial, answerIssuer, der []byte
	var successor, answerKey storedKey
	var key keyRow
	err := row.Scan(slices.Concat(id.columns(),
		[]any{&state, &reason, &revokedAt, &version, &successor.id, &successor.rest,
			&answerSerial, &answerIssuer, &answerKey.id, &answerKey.rest, &answerEnd, &der}, key.columns())...)
	if err != nil {
		return st, err
	}
	if st.Identity, err = id.identity(); err != nil {
		return st, err
	}
	st.Key = key.against(q.Key, id.id)
	if !q.Predecessor.IsZero() {
		if !state.Valid {
			return st, noPredecessor(q.Predecessor.Serial)
		}
		st.Predecessor.Status = statusOf(state.Int64, reason.Int64, version.Int64, revokedAt)
		if st.Predecessor.Successor, err = successor.hash(); err != nil {
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
	st.Answer.Key, err = answerKey.hash()
	return st, err
}

func statusOf(state, reason, version int64, revokedAt sql.NullInt64) pki.Status {
	s := pki.Status{State: pki.State(state), Reason: pki.Reason(reason), Version: uint64(version)} //nolint:gosec // as the table's checks have them
	if revokedAt.Valid {
		s.RevokedAt = fromMillis(revokedAt.Int64)
	}
	return s
}
