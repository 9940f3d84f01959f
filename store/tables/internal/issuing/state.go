package issuing

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
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/recovery"
)

// SelectState selects an identity, the certificate to renew, the certificate that was issued for the request
// ID, the state of the key, and the identity of the caller. It needs one more column, the number of unexpired
// certificates (see Unexpired).
const SelectState = `
	WITH q AS MATERIALIZED (SELECT ` + QueryColumns + `, ?8 AS caller)
	SELECT ` + column.Identity + `, ` + callerColumns + `,
	       p.id, p.state, p.reason, p.revoked_at, p.version, p.superseded_by, p.issued_at, p.not_after, p.key = q.key, p.profile, s.id, s.rest, ` + bulk.AnyOpen + `,
	       a.id, a.serial, (SELECT issuer FROM issuers WHERE id = a.issuer), a.key, ak.rest, a.issued_at, a.not_after, a.der, ` + KeyColumns + `, `

// FromState is the rest of the statement that begins with SelectState.
const FromState = `
	FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id
	LEFT JOIN identities o ON o.spiffe_id = q.caller
	LEFT JOIN certificates p ON p.serial = q.serial AND /*+*/p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	LEFT JOIN keys s ON s.id = p.successor
	LEFT JOIN certificates a ON /*+*/a.identity = n.id AND a.request = q.request
	LEFT JOIN keys ak ON ak.id = a.key
	LEFT JOIN keys k ON k.id = q.key`

// QueryColumns are the parameters of a query, in the order of the arguments. Statements put them into a table of their own.
// Otherwise SQLite would plan a join on the arguments again whenever they change (sqlite3VdbeSetVarmask), which takes several
// times as long as running the statement. PostgreSQL needs the types.
const QueryColumns = `?1 AS spiffe_id, CAST(?2 AS BLOB) AS serial, CAST(?3 AS BLOB) AS issuer, CAST(?4 AS BLOB) AS request,
	CAST(?5 AS BIGINT) AS key, CAST(?6 AS BLOB) AS hash, CAST(?7 AS BIGINT) AS at`

// QueryArguments returns the arguments of QueryColumns.
func QueryArguments(id pki.SPIFFEID, predecessor pki.CertRef, request pki.RequestID, key pki.KeyHash, at time.Time) []any {
	return []any{id.String(), column.Optional(predecessor.Serial), column.Optional(predecessor.Issuer), column.Optional(request), column.KeyID(key), key.Bytes(), engine.Millis(at)}
}

// Unexpired selects how many certificates of the identity n, in any state, expire later than q.at: without an order those
// that no account has ordered, and otherwise those that accounts have. It stops at most, and at the maximum of the order.
// These are part of the text: a LIMIT by a parameter would be planned again for each value. acmetable counts those of orders
// with the same names.
func Unexpired(most int, order pki.Order) string {
	ordered := `IS NULL`
	if !order.IsZero() {
		most, ordered = order.MaxUnexpired, `IS NOT NULL`
	}
	if most == 0 {
		return `0`
	}
	return `(SELECT count(*) FROM (SELECT 1 FROM certificates u INDEXED BY certificates_by_identity
		WHERE u.identity = n.id AND u.not_after > q.at AND u.account ` + ordered + ` LIMIT ` + strconv.Itoa(most) + `) m)`
}

// callerColumns selects the state, roles and labels of the identity o of the caller. They are zero if it is not
// registered.
const callerColumns = `coalesce(o.state, 0), coalesce(o.roles, 0), o.labels`

// selectUnregistered selects what a query needs about the caller and the key if its identity is not registered.
const selectUnregistered = `
	WITH q AS MATERIALIZED (SELECT CAST(?1 AS BIGINT) AS key, CAST(?2 AS BLOB) AS hash, ?3 AS caller)
	SELECT ` + callerColumns + `, ` + bulk.AnyOpen + `, ` + KeyColumns + `
	FROM q LEFT JOIN identities o ON o.spiffe_id = q.caller LEFT JOIN keys k ON k.id = q.key`

// State reads a consistent snapshot, usually with one statement. It needs a few more if the identity is not
// registered, if a bulk revocation is open, and for the evidence of an enrollment.
func State(ctx context.Context, file engine.DB, q ra.IssuanceQuery) (st ra.IssuanceState, err error) {
	const what = "read the state of an issuance"
	if needsOneRow(q) {
		var row issuanceRow
		found, err := file.Find(ctx, what, stateQuery(q), stateArguments(q), row.columns()...)
		if err != nil {
			return ra.IssuanceState{}, err
		}
		if found && !row.revoking {
			if err = row.caller.decode(); err == nil {
				st, err = row.state(ctx, nil, q)
			}
			return st, file.Fail(what, err)
		}
	}
	var row issuanceRow
	err = file.Look(ctx, what, func(ctx context.Context, from engine.Querier) error {
		if err := row.read(ctx, from, q); err != nil {
			return err
		}
		st, err = row.state(ctx, from, q)
		return err
	})
	return st, err
}

// needsOneRow reports whether the row of an identity that is registered is all that the state needs, unless a bulk
// revocation is open.
func needsOneRow(q ra.IssuanceQuery) bool {
	return q.Order.IsZero() && q.Subject.IsZero() && len(q.Nonces) == 0 && q.Recovery.IsZero()
}

// state returns the state, and reads what the row does not have. It returns the state of the caller and the key together with
// the refusal of an identity that is not registered.
func (r *issuanceRow) state(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) (st ra.IssuanceState, err error) {
	if r.id.ID != 0 {
		if st.Identity, err = r.id.Identity(); err != nil {
			return ra.IssuanceState{}, err
		}
	}
	st.Caller, st.KeyRefusal = r.caller.identity, r.key.State(q.Key, r.id.ID).Check()
	if !q.Order.IsZero() {
		st.OrdersUnexpired = r.unexpired
		if st.OrderRefusal, r.unexpired, err = acmetable.Refusal(ctx, from, q.Order, q.At, q.MaxUnexpired); err != nil {
			return ra.IssuanceState{}, err
		}
	}
	if st.SubjectRefusal, st.NonceRefusal, err = checkEvidence(ctx, from, q, st.Identity.Subject); err != nil {
		return ra.IssuanceState{}, err
	}
	if !q.Recovery.IsZero() {
		have, err := recovery.Read(ctx, from, q.Identity, q.Recovery, q.Key, q.At)
		if err != nil {
			return ra.IssuanceState{}, err
		}
		st.Recovery = ra.RecoveryState{Newest: have.Newest.Ref, Refusal: have.Check(q.Identity, q.Recovery, q.At)}
	}
	if r.id.ID == 0 {
		return st, rules.NoIdentity(q.Identity)
	}
	err = r.complete(&st, q)
	return st, err
}

// checkEvidence returns the refusals of the subject and of the nonces in a query. The identity is tied to the subject
// have, which no other identity can have.
func checkEvidence(
	ctx context.Context, from engine.Querier, q ra.IssuanceQuery, have pki.EvidenceSubject,
) (subject, nonces *pki.Refusal, err error) {
	var holder pki.SPIFFEID
	if have.IsZero() && !q.Subject.IsZero() {
		if holder, err = ReadHolder(ctx, from, q.Subject, q.Identity); err != nil {
			return nil, nil, err
		}
	}
	used, err := NonceUsed(ctx, from, q.Nonces)
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

// issuanceRow is a row of SelectState.
type issuanceRow struct {
	id                                       column.IdentityRow
	caller                                   callerRow
	unexpired                                int
	predecessor                              sql.NullInt64
	predecessorState                         sql.NullInt64
	reason, revokedAt, version               sql.NullInt64 // of the predecessor
	supersededBy                             sql.NullInt64
	predecessorIssuedAt, predecessorNotAfter sql.NullInt64
	sameKey                                  sql.NullBool
	profile                                  sql.NullString
	successor                                StoredKey
	revoking                                 bool
	priorRow                                 sql.NullInt64
	priorSerial, priorIssuer, priorDER       []byte
	priorKey                                 StoredKey
	priorIssuedAt, priorNotAfter             sql.NullInt64
	key                                      KeyRow
}

// read reads the row, and applies the open bulk revocations. If the identity is not registered, it reads only the caller
// and the key, and the ID stays zero.
func (r *issuanceRow) read(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) error {
	if err := r.readRow(ctx, from, q); err != nil || !r.revoking {
		return err
	}
	return r.applyOpenBulk(ctx, from, q)
}

func (r *issuanceRow) columns() []any {
	return slices.Concat(r.id.Columns(), r.caller.columns(), []any{
		&r.predecessor, &r.predecessorState, &r.reason, &r.revokedAt, &r.version, &r.supersededBy, &r.predecessorIssuedAt,
		&r.predecessorNotAfter, &r.sameKey, &r.profile, &r.successor.ID, &r.successor.Rest, &r.revoking, &r.priorRow, &r.priorSerial,
		&r.priorIssuer, &r.priorKey.ID, &r.priorKey.Rest, &r.priorIssuedAt, &r.priorNotAfter, &r.priorDER,
	}, r.key.Columns(), []any{&r.unexpired})
}

// stateQuery returns the query for a row.
func stateQuery(q ra.IssuanceQuery) string {
	return SelectState + Unexpired(q.MaxUnexpired, q.Order) + FromState
}

// stateArguments returns the arguments of stateQuery.
func stateArguments(q ra.IssuanceQuery) []any {
	return append(QueryArguments(q.Identity, q.Predecessor, q.Request, q.Key, q.At), q.Caller.String())
}

func (r *issuanceRow) readRow(ctx context.Context, from engine.Querier, q ra.IssuanceQuery) error {
	row := from.QueryRow(ctx, stateQuery(q), stateArguments(q)...)
	err := row.Scan(r.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		row = from.QueryRow(ctx, selectUnregistered, column.KeyID(q.Key), q.Key.Bytes(), q.Caller.String())
		err = row.Scan(slices.Concat(r.caller.columns(), []any{&r.revoking}, r.key.Columns())...)
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
		before := column.DecodeStatus(r.predecessorState.Int64, r.reason.Int64, r.version.Int64, r.revokedAt)
		if st := open.Status(before, masks[r.predecessor.Int64]); st != before {
			r.predecessorState.Int64, r.reason.Int64, r.version.Int64 = int64(st.State), int64(st.Reason), int64(st.Version) //nolint:gosec // checked by the table
			r.revokedAt = sql.NullInt64{Int64: engine.Millis(st.RevokedAt), Valid: st.State != pki.Good}
		}
	}
	return r.key.ApplyOpenBulk(ctx, from, open, q.Key)
}

// complete adds the predecessor, the prior certificate and the number of unexpired ones to the state.
func (r *issuanceRow) complete(st *ra.IssuanceState, q ra.IssuanceQuery) error {
	var err error
	st.Unexpired = r.unexpired
	if !q.Predecessor.IsZero() {
		if !r.predecessorState.Valid {
			return rules.NoPredecessor(q.Predecessor)
		}
		st.Predecessor.Status = column.DecodeStatus(r.predecessorState.Int64, r.reason.Int64, r.version.Int64, r.revokedAt)
		st.Predecessor.IssuedAt = engine.FromMillis(r.predecessorIssuedAt.Int64)
		st.Predecessor.NotAfter, st.Predecessor.Superseded = engine.FromMillis(r.predecessorNotAfter.Int64), r.supersededBy.Valid
		st.Predecessor.SameKey, st.Predecessor.Profile = r.sameKey.Bool, r.profile.String
		if st.Predecessor.Successor, err = r.successor.Hash(); err != nil {
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
	st.Prior.Key, err = r.priorKey.Hash()
	// SQLite reuses the IDs of deleted rows, so the key must be that of the renewal.
	st.Prior.Supersedes = r.supersededBy.Valid && r.supersededBy == r.priorRow && r.successor.ID == r.priorKey.ID
	return err
}
