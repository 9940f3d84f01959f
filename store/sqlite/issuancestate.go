package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/recovery"
)

// selectIssuanceState selects an identity, the certificate to renew, the certificate that was issued for the request ID, the
// state of the key, and that of the caller. It needs one more column, the number of unexpired certificates (see unexpired).
const selectIssuanceState = `
	WITH q AS MATERIALIZED (SELECT ` + queryColumns + `, ?8 AS caller)
	SELECT ` + identityColumns + `, ` + callerColumn + `,
	       p.id, p.state, p.reason, p.revoked_at, p.version, p.superseded_by, p.issued_at, p.not_after, s.id, s.rest, ` + bulk.AnyOpen + `,
	       a.id, a.serial, (SELECT issuer FROM issuers WHERE id = a.issuer), a.key, ak.rest, a.issued_at, a.not_after, a.der, ` + keyColumns + `, `

// fromIssuanceState is the rest of the statement that begins with selectIssuanceState.
const fromIssuanceState = `
	FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id
	LEFT JOIN certificates p ON p.serial = q.serial AND p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	LEFT JOIN keys s ON s.id = p.successor
	LEFT JOIN certificates a ON a.identity = n.id AND a.request = q.request
	LEFT JOIN keys ak ON ak.id = a.key
	LEFT JOIN keys k ON k.id = q.key`

// queryColumns are the parameters of a query, in the order of the arguments. Statements put them into a table of their own.
// Otherwise SQLite would plan a join on the arguments again whenever they change (sqlite3VdbeSetVarmask), which takes several
// times as long as running the statement.
const queryColumns = `?1 AS spiffe_id, ?2 AS serial, ?3 AS issuer, ?4 AS request, ?5 AS key, ?6 AS hash, ?7 AS at`

func queryArguments(id pki.SPIFFEID, predecessor pki.CertRef, request pki.RequestID, key pki.KeyHash, at time.Time) []any {
	return []any{id.String(), column.Optional(predecessor.Serial), column.Optional(predecessor.Issuer), column.Optional(request), column.KeyID(key), key.Bytes(), engine.Millis(at)}
}

// unexpired selects how many certificates of the identity n, in any state, expire later than q.at. It stops at most, which is
// part of the text: a LIMIT by a parameter would be planned again for each value.
func unexpired(most int) string {
	if most == 0 {
		return `0`
	}
	return `(SELECT count(*) FROM (SELECT 1 FROM certificates u INDEXED BY certificates_by_identity
		WHERE u.identity = n.id AND u.not_after > q.at LIMIT ` + strconv.Itoa(most) + `))`
}

// callerColumn selects the state of the identity q.caller, and zero if it is not registered.
const callerColumn = `coalesce((SELECT state FROM identities WHERE spiffe_id = q.caller), 0)`

// IssuanceState reads a consistent snapshot in one statement. While a bulk revocation is open, it needs a few statements, in
// one transaction. If the identity is not registered, another statement reads the state of the caller.
func (r *RA) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	const what = "read the state of an issuance"
	var row issuanceRow
	err := r.db.file.Look(ctx, what, func(ctx context.Context, conn *sql.Conn) error { return row.read(ctx, conn, q) })
	if err == nil && row.revoking {
		err = r.db.file.Read(ctx, what, func(ctx context.Context, tx *sql.Tx) error {
			row = issuanceRow{}
			if err := row.read(ctx, tx, q); err != nil {
				return err
			}
			return row.applyOpenBulk(ctx, tx, q)
		})
	}
	if err != nil {
		return ra.IssuanceState{Caller: row.caller}, err
	}
	st, err := row.issuanceState(q)
	if err == nil && len(q.Nonces) > 0 {
		err = r.db.file.Look(ctx, what, func(ctx context.Context, conn *sql.Conn) error {
			used, err := nonceUsed(ctx, conn, q.Nonces)
			st.NonceRefusal = rules.CheckNonces(q.Nonces, used, q.At)
			return err
		})
	}
	if err == nil && !q.Recovery.IsZero() {
		err = r.db.file.Read(ctx, what, func(ctx context.Context, tx *sql.Tx) error {
			have, err := recovery.Read(ctx, tx, q.Identity, q.Recovery, q.Key, q.At)
			st.Recovery = ra.RecoveryState{Newest: have.Newest.Ref, Refusal: have.Check(q.Identity, q.Recovery, q.At)}
			return err
		})
	}
	return st, engine.Fail(what, err)
}

// issuanceRow is a row of selectIssuanceState.
type issuanceRow struct {
	id                                       identityRow
	caller                                   pki.IdentityState
	unexpired                                int
	predecessor                              sql.NullInt64
	state, reason, revokedAt, version        sql.NullInt64
	supersededBy                             sql.NullInt64
	predecessorIssuedAt, predecessorNotAfter sql.NullInt64
	successor                                storedKey
	revoking                                 bool
	priorRow                                 sql.NullInt64
	priorSerial, priorIssuer, priorDER       []byte
	priorKey                                 storedKey
	priorIssuedAt, priorNotAfter             sql.NullInt64
	key                                      keyRow
}

func (r *issuanceRow) read(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) error {
	row := from.QueryRowContext(ctx, selectIssuanceState+unexpired(q.MaxUnexpired)+fromIssuanceState,
		append(queryArguments(q.Identity, q.Predecessor, q.Request, q.Key, q.At), q.Caller.String())...)
	err := row.Scan(slices.Concat(r.id.columns(),
		[]any{&r.caller, &r.predecessor, &r.state, &r.reason, &r.revokedAt, &r.version, &r.supersededBy, &r.predecessorIssuedAt, &r.predecessorNotAfter, &r.successor.id, &r.successor.rest, &r.revoking,
			&r.priorRow, &r.priorSerial, &r.priorIssuer, &r.priorKey.id, &r.priorKey.rest, &r.priorIssuedAt, &r.priorNotAfter, &r.priorDER}, r.key.columns(), []any{&r.unexpired})...)
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	row = from.QueryRowContext(ctx, `SELECT `+callerColumn+` FROM (SELECT ? AS caller) q`, q.Caller.String())
	if err := row.Scan(&r.caller); err != nil {
		return err
	}
	return rules.NoIdentity(q.Identity)
}

// applyOpenBulk applies the open bulk revocations.
func (r *issuanceRow) applyOpenBulk(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) error {
	open, err := bulk.ReadOpen(ctx, from)
	if err != nil {
		return err
	}
	if r.predecessor.Valid {
		masks, err := open.Masks(ctx, from, []int64{r.predecessor.Int64})
		if err != nil {
			return err
		}
		before := statusOf(r.state.Int64, r.reason.Int64, r.version.Int64, r.revokedAt)
		if st := open.Status(before, masks[r.predecessor.Int64]); st != before {
			r.state.Int64, r.reason.Int64, r.version.Int64 = int64(st.State), int64(st.Reason), int64(st.Version) //nolint:gosec // checked by the table
			r.revokedAt = sql.NullInt64{Int64: engine.Millis(st.RevokedAt), Valid: st.State != pki.Good}
		}
	}
	return r.key.applyOpenBulk(ctx, from, open, q.Key)
}

func (r *issuanceRow) issuanceState(q ra.IssuanceQuery) (ra.IssuanceState, error) {
	var st ra.IssuanceState
	var err error
	if st.Identity, err = r.id.identity(); err != nil {
		return st, err
	}
	st.KeyRefusal = r.key.state(q.Key, r.id.id).Check()
	st.Caller, st.Unexpired = r.caller, r.unexpired
	if !q.Predecessor.IsZero() {
		if !r.state.Valid {
			return st, rules.NoPredecessor(q.Predecessor)
		}
		st.Predecessor.Status = statusOf(r.state.Int64, r.reason.Int64, r.version.Int64, r.revokedAt)
		st.Predecessor.IssuedAt = engine.FromMillis(r.predecessorIssuedAt.Int64)
		st.Predecessor.NotAfter, st.Predecessor.Superseded = engine.FromMillis(r.predecessorNotAfter.Int64), r.supersededBy.Valid
		if st.Predecessor.Successor, err = r.successor.hash(); err != nil {
			return st, err
		}
	}
	if r.priorSerial == nil {
		return st, nil
	}
	st.Prior = &ra.PriorIssuance{Certificate: ca.Certificate{
		DER: r.priorDER, IssuedAt: engine.FromMillis(r.priorIssuedAt.Int64), NotAfter: engine.FromMillis(r.priorNotAfter.Int64),
	}}
	if st.Prior.Certificate.Ref, err = column.ParseRef(r.priorIssuer, r.priorSerial); err != nil {
		return st, err
	}
	st.Prior.Key, err = r.priorKey.hash()
	// SQLite reuses the IDs of deleted rows, so the key must be that of the renewal.
	st.Prior.Supersedes = r.supersededBy.Valid && r.supersededBy == r.priorRow && r.successor.id == r.priorKey.id
	return st, err
}

func statusOf(state, reason, version int64, revokedAt sql.NullInt64) pki.Status {
	s := pki.Status{State: pki.State(state), Reason: pki.Reason(reason), Version: uint64(version)} //nolint:gosec // checked by the table
	if revokedAt.Valid {
		s.RevokedAt = engine.FromMillis(revokedAt.Int64)
	}
	return s
}
