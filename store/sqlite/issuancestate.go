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
	"github.com/brevet-pki/brevet/store/sqlite/internal/acmetable"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/recovery"
)

// selectIssuanceState selects an identity, the certificate to renew, the certificate that was issued for the request
// ID, the state of the key, and the identity of the caller. It needs one more column, the number of unexpired
// certificates (see unexpired).
const selectIssuanceState = `
	WITH q AS MATERIALIZED (SELECT ` + queryColumns + `, ?8 AS caller)
	SELECT ` + column.Identity + `, ` + callerColumns + `,
	       p.id, p.state, p.reason, p.revoked_at, p.version, p.superseded_by, p.issued_at, p.not_after, p.key = q.key, p.profile, s.id, s.rest, ` + bulk.AnyOpen + `,
	       a.id, a.serial, (SELECT issuer FROM issuers WHERE id = a.issuer), a.key, ak.rest, a.issued_at, a.not_after, a.der, ` + keyColumns + `, `

// fromIssuanceState is the rest of the statement that begins with selectIssuanceState.
const fromIssuanceState = `
	FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id
	LEFT JOIN identities o ON o.spiffe_id = q.caller
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
// part of the text: a LIMIT by a parameter would be planned again for each value. For an order, acmetable counts.
func unexpired(most int, order pki.Order) string {
	if most == 0 || !order.IsZero() {
		return `0`
	}
	return `(SELECT count(*) FROM (SELECT 1 FROM certificates u INDEXED BY certificates_by_identity
		WHERE u.identity = n.id AND u.not_after > q.at LIMIT ` + strconv.Itoa(most) + `))`
}

// callerColumns selects the state, roles and labels of the identity o of the caller. They are zero if it is not
// registered.
const callerColumns = `coalesce(o.state, 0), coalesce(o.roles, 0), o.labels`

// selectUnregistered selects what a query needs about the caller and the key if its identity is not registered.
const selectUnregistered = `
	WITH q AS MATERIALIZED (SELECT ?1 AS key, ?2 AS hash, ?3 AS caller)
	SELECT ` + callerColumns + `, ` + bulk.AnyOpen + `, ` + keyColumns + `
	FROM q LEFT JOIN identities o ON o.spiffe_id = q.caller LEFT JOIN keys k ON k.id = q.key`

// IssuanceState reads a consistent snapshot, usually with one statement. It needs a few more if the identity is not
// registered, if a bulk revocation is open, and for the evidence of an enrollment.
func (r *RA) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (st ra.IssuanceState, err error) {
	const what = "read the state of an issuance"
	var row issuanceRow
	err = r.db.file.Look(ctx, what, func(ctx context.Context, from engine.Querier) error {
		if err := row.read(ctx, from, q); err != nil {
			return err
		}
		if row.id.ID != 0 {
			if st.Identity, err = row.id.Identity(); err != nil {
				return err
			}
		}
		st.Caller, st.KeyRefusal = row.caller.identity, row.key.state(q.Key, row.id.ID).Check()
		if !q.Order.IsZero() {
			if st.OrderRefusal, row.unexpired, err = acmetable.Refusal(ctx, from, q.Order, q.At, q.MaxUnexpired); err != nil {
				return err
			}
		}
		if st.SubjectRefusal, st.NonceRefusal, err = checkEvidence(ctx, from, q, st.Identity.Subject); err != nil || q.Recovery.IsZero() {
			return err
		}
		have, err := recovery.Read(ctx, from, q.Identity, q.Recovery, q.Key, q.At)
		st.Recovery = ra.RecoveryState{Newest: have.Newest.Ref, Refusal: have.Check(q.Identity, q.Recovery, q.At)}
		return err
	})
	switch {
	case err != nil:
		return ra.IssuanceState{}, err
	case row.id.ID == 0:
		return st, rules.NoIdentity(q.Identity)
	}
	err = row.complete(&st, q)
	return st, engine.Fail(what, err)
}

// checkEvidence returns the refusals of the subject and of the nonces in a query. The identity is tied to the subject
// have, which no other identity can have.
func checkEvidence(
	ctx context.Context, from engine.Querier, q ra.IssuanceQuery, have pki.EvidenceSubject,
) (subject, nonces *pki.Refusal, err error) {
	var holder pki.SPIFFEID
	if have.IsZero() && !q.Subject.IsZero() {
		if holder, err = readHolder(ctx, from, q.Subject, q.Identity); err != nil {
			return nil, nil, err
		}
	}
	used, err := nonceUsed(ctx, from, q.Nonces)
	return rules.CheckSubject(q.Identity, have, q.Subject, holder), rules.CheckNonces(q.Nonces, used, q.At), err
}

// callerRow holds callerColumns.
type callerRow struct {
	identity pki.CallerIdentity
	labels   []byte
}

func (r *callerRow) columns() []any { return []any{&r.identity.State, &r.identity.Roles, &r.labels} }

func (r *callerRow) decode() (err error) {
	r.identity.Labels, err = column.DecodeLabels(r.labels)
	return err
}

// issuanceRow is a row of selectIssuanceState.
type issuanceRow struct {
	id                                       column.IdentityRow
	caller                                   callerRow
	unexpired                                int
	predecessor                              sql.NullInt64
	state, reason, revokedAt, version        sql.NullInt64
	supersededBy                             sql.NullInt64
	predecessorIssuedAt, predecessorNotAfter sql.NullInt64
	sameKey                                  sql.NullBool
	profile                                  sql.NullString
	successor                                storedKey
	revoking                                 bool
	priorRow                                 sql.NullInt64
	priorSerial, priorIssuer, priorDER       []byte
	priorKey                                 storedKey
	priorIssuedAt, priorNotAfter             sql.NullInt64
	key                                      keyRow
}

// read reads the row, and applies the open bulk revocations. If the identity is not registered, it reads only the caller
// and the key, and the ID stays zero.
func (r *issuanceRow) read(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) error {
	if err := r.readRow(ctx, from, q); err != nil || !r.revoking {
		return err
	}
	return r.applyOpenBulk(ctx, from, q)
}

func (r *issuanceRow) readRow(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) error {
	row := from.QueryRowContext(ctx, selectIssuanceState+unexpired(q.MaxUnexpired, q.Order)+fromIssuanceState,
		append(queryArguments(q.Identity, q.Predecessor, q.Request, q.Key, q.At), q.Caller.String())...)
	err := row.Scan(slices.Concat(r.id.Columns(),
		r.caller.columns(), []any{&r.predecessor, &r.state, &r.reason, &r.revokedAt, &r.version, &r.supersededBy, &r.predecessorIssuedAt, &r.predecessorNotAfter, &r.sameKey, &r.profile, &r.successor.id, &r.successor.rest, &r.revoking,
			&r.priorRow, &r.priorSerial, &r.priorIssuer, &r.priorKey.id, &r.priorKey.rest, &r.priorIssuedAt, &r.priorNotAfter, &r.priorDER}, r.key.columns(), []any{&r.unexpired})...)
	if errors.Is(err, sql.ErrNoRows) {
		row = from.QueryRowContext(ctx, selectUnregistered, column.KeyID(q.Key), q.Key.Bytes(), q.Caller.String())
		err = row.Scan(slices.Concat(r.caller.columns(), []any{&r.revoking}, r.key.columns())...)
	}
	if err != nil {
		return err
	}
	return r.caller.decode()
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
		before := column.DecodeStatus(r.state.Int64, r.reason.Int64, r.version.Int64, r.revokedAt)
		if st := open.Status(before, masks[r.predecessor.Int64]); st != before {
			r.state.Int64, r.reason.Int64, r.version.Int64 = int64(st.State), int64(st.Reason), int64(st.Version) //nolint:gosec // checked by the table
			r.revokedAt = sql.NullInt64{Int64: engine.Millis(st.RevokedAt), Valid: st.State != pki.Good}
		}
	}
	return r.key.applyOpenBulk(ctx, from, open, q.Key)
}

// complete adds the predecessor, the prior certificate and the number of unexpired ones to the state.
func (r *issuanceRow) complete(st *ra.IssuanceState, q ra.IssuanceQuery) error {
	var err error
	st.Unexpired = r.unexpired
	if !q.Predecessor.IsZero() {
		if !r.state.Valid {
			return rules.NoPredecessor(q.Predecessor)
		}
		st.Predecessor.Status = column.DecodeStatus(r.state.Int64, r.reason.Int64, r.version.Int64, r.revokedAt)
		st.Predecessor.IssuedAt = engine.FromMillis(r.predecessorIssuedAt.Int64)
		st.Predecessor.NotAfter, st.Predecessor.Superseded = engine.FromMillis(r.predecessorNotAfter.Int64), r.supersededBy.Valid
		st.Predecessor.SameKey, st.Predecessor.Profile = r.sameKey.Bool, r.profile.String
		if st.Predecessor.Successor, err = r.successor.hash(); err != nil {
			return err
		}
	}
	if r.priorSerial == nil {
		return nil
	}
	st.Prior = &ra.PriorIssuance{Certificate: ca.Certificate{
		DER: r.priorDER, IssuedAt: engine.FromMillis(r.priorIssuedAt.Int64), NotAfter: engine.FromMillis(r.priorNotAfter.Int64),
	}}
	if st.Prior.Certificate.Ref, err = column.ParseRef(r.priorIssuer, r.priorSerial); err != nil {
		return err
	}
	st.Prior.Key, err = r.priorKey.hash()
	// SQLite reuses the IDs of deleted rows, so the key must be that of the renewal.
	st.Prior.Supersedes = r.supersededBy.Valid && r.supersededBy == r.priorRow && r.successor.id == r.priorKey.id
	return err
}
