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

// selectStanding finds an identity, with what is asked about it: the certificate to renew, the certificate that a request
// was answered with, and what is on record of a key.
const selectStanding = `
	WITH q AS MATERIALIZED (SELECT ` + questionColumns + `)
	SELECT ` + identityColumns + `,
	       p.state, p.reason, p.revoked_at, p.version, p.superseded_by, s.id, s.rest,
	       a.id, a.serial, (SELECT issuer FROM issuers WHERE id = a.issuer), a.key, ak.rest, a.not_after, a.der, ` + keyColumns + `
	FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id
	LEFT JOIN certificates p ON p.serial = q.serial AND p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	LEFT JOIN keys s ON s.id = p.successor
	LEFT JOIN certificates a ON a.identity = n.id AND a.request = q.request
	LEFT JOIN keys ak ON ak.id = a.key
	LEFT JOIN keys k ON k.id = q.key`

// questionColumns are what is asked about, in the order of the arguments. Statements have them in a table of their own,
// because SQLite plans one that joins tables by its arguments anew each time that they change (sqlite3VdbeSetVarmask),
// which takes several times as long as running it.
const questionColumns = `?1 AS spiffe_id, ?2 AS serial, ?3 AS issuer, ?4 AS request, ?5 AS key, ?6 AS hash`

func questionOf(id pki.SPIFFEID, predecessor pki.CertRef, request pki.RequestID, key pki.KeyHash) []any {
	return []any{id.String(), optional(predecessor.Serial), optional(predecessor.Issuer), optional(request), keyID(key), key.Bytes()}
}

// Standing answers a question in one statement, which sees one state of the store.
func (r *RA) Standing(ctx context.Context, q ra.Question) (ra.Standing, error) {
	var st ra.Standing
	err := r.db.look(ctx, "read how a request stands", func(ctx context.Context, conn *sql.Conn) error {
		row := conn.QueryRowContext(ctx, selectStanding, questionOf(q.Identity, q.Predecessor, q.Request, q.Key)...)
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
	var state, reason, revokedAt, version, supersededBy, answer, answerEnd sql.NullInt64
	var answerSerial, answerIssuer, der []byte
	var successor, answerKey storedKey
	var key keyRow
	err := row.Scan(slices.Concat(id.columns(),
		[]any{&state, &reason, &revokedAt, &version, &supersededBy, &successor.id, &successor.rest,
			&answer, &answerSerial, &answerIssuer, &answerKey.id, &answerKey.rest, &answerEnd, &der}, key.columns())...)
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
		st.Predecessor.Superseded = supersededBy.Valid
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
	// Rows that left give their numbers to others, and so the key has to be that of the renewal.
	st.Answer.Supersedes = supersededBy.Valid && supersededBy == answer && successor.id == answerKey.id
	return st, err
}

func statusOf(state, reason, version int64, revokedAt sql.NullInt64) pki.Status {
	s := pki.Status{State: pki.State(state), Reason: pki.Reason(reason), Version: uint64(version)} //nolint:gosec // as the table's checks have them
	if revokedAt.Valid {
		s.RevokedAt = fromMillis(revokedAt.Int64)
	}
	return s
}
