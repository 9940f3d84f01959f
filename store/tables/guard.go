package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/store/tables/internal/recovery"
)

// guarded is the result of checkGuard: the rows that consume changes, and how.
type guarded struct {
	identity    int64
	token       int64 // zero for none
	predecessor int64 // zero for none
	recoveries  int   // of the identity in a row, before this certificate
	effects     rules.Effects
}

// selectGuarded selects the identity of a record, the certificate that it renews, the certificate that was issued for the
// same request ID, its key, and whether its serial number is taken. PostgreSQL would execute EXISTS for a certificate with all
// certificates, to look up many rows in the result.
const selectGuarded = `
	WITH q AS MATERIALIZED (SELECT ` + issuing.QueryColumns + `, CAST(?8 AS BLOB) AS fresh)
	SELECT n.id, n.state, n.revision, n.recoveries, p.id, p.state, p.reason, p.successor, p.superseded_by, p.version, p.not_before, p.not_after,
	       coalesce((SELECT 1 FROM certificates WHERE /*+*/identity = n.id AND request = q.request), 0), ` + bulk.AnyOpen + `, ` + issuing.KeyColumns + `,
	       coalesce((SELECT 1 FROM certificates WHERE serial = q.fresh), 0), `

// fromGuarded is the rest of the statement that begins with selectGuarded. The number of unexpired certificates comes between.
const fromGuarded = `
	FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id
	LEFT JOIN certificates p ON p.serial = q.serial AND /*+*/p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	LEFT JOIN keys k ON k.id = q.key`

// found is a row of selectGuarded.
type found struct {
	identity                                              int64
	predecessor, predecessorState, predecessorReason      sql.NullInt64
	successor, supersededBy, version, notBefore, notAfter sql.NullInt64 // of the predecessor
	revoking                                              bool
	recoveries                                            int
	key                                                   issuing.KeyRow
	serialTaken                                           bool
	rules.Issuance
}

func (f *found) columns() []any {
	return append([]any{
		&f.identity, &f.State, &f.Revision, &f.recoveries, &f.predecessor, &f.predecessorState, &f.predecessorReason,
		&f.successor, &f.supersededBy, &f.version, &f.notBefore, &f.notAfter, &f.Answered, &f.revoking,
	}, append(f.key.Columns(), &f.serialTaken, &f.Unexpired)...)
}

// checkGuard checks the guard of r against the row f, and reads what else it depends on. It returns the rows to change, or
// the *pki.Refusal of the record.
func (tx *writeTx) checkGuard(ctx context.Context, f *found, r *ca.Record, at time.Time) (guarded, error) {
	if refusal := rules.CheckRecord(r); refusal != nil {
		return guarded{}, refusal
	}
	token, err := f.complete(ctx, tx, r, at)
	if err != nil {
		return guarded{}, err
	}
	effects, refusal := f.Check(r, at)
	if refusal != nil {
		return guarded{}, refusal
	}
	return guarded{f.identity, token, f.predecessor.Int64, f.recoveries, effects}, nil
}

// complete fills in the issuance of the row, and reads what the row does not have. It returns the row ID of the token.
func (f *found) complete(ctx context.Context, tx *writeTx, r *ca.Record, at time.Time) (token int64, err error) {
	if !f.Registered {
		return 0, nil
	}
	if f.predecessor.Valid {
		f.Predecessor = rules.Predecessor{
			Found: true, NotBefore: engine.FromMillis(f.notBefore.Int64), NotAfter: engine.FromMillis(f.notAfter.Int64),
			Status:  column.DecodeStatus(f.predecessorState.Int64, f.predecessorReason.Int64, f.version.Int64, sql.NullInt64{}),
			Renewed: f.successor.Valid, SameKey: f.successor.Int64 == column.KeyID(r.Guard.Key),
			Superseded: f.supersededBy.Valid,
		}
	}
	if f.revoking {
		if err := f.applyOpenBulk(ctx, tx, r.Guard.Key); err != nil {
			return 0, err
		}
	}
	f.Key = f.key.State(r.Guard.Key, f.identity)
	if err := f.readEvidence(ctx, tx, &r.Guard, r.Identity); err != nil {
		return 0, err
	}
	if !r.Guard.Order.IsZero() {
		f.OrdersUnexpired = f.Unexpired
		if f.Order, f.Unexpired, err = acmetable.ReadGuarded(ctx, tx, r.Guard.Order, at, r.Guard.MaxUnexpired); err != nil {
			return 0, err
		}
	}
	if !r.Guard.Recovery.IsZero() {
		if f.Recovery, err = recovery.Read(ctx, tx, r.Identity, r.Guard.Recovery, r.Guard.Key, at); err != nil {
			return 0, err
		}
	}
	if !r.Guard.Token.IsZero() {
		token, err = f.readToken(ctx, tx, r.Guard.Token)
	}
	return token, err
}

// selectSubject selects the subject of an identity. Renewals do not run it.
const selectSubject = `SELECT subject FROM identities WHERE id = ?`

// readEvidence reads the subjects and nonces that the guard depends on.
func (f *found) readEvidence(ctx context.Context, q engine.Querier, guard *pki.Guard, id pki.SPIFFEID) error {
	if !guard.Subject.IsZero() {
		var subject []byte
		err := q.QueryRow(ctx, selectSubject, f.identity).Scan(&subject)
		if err != nil {
			return err
		}
		if f.Subject, err = column.DecodeSubject(subject); err != nil {
			return err
		}
		if f.Holder, err = issuing.ReadHolder(ctx, q, guard.Subject, id); err != nil {
			return err
		}
	}
	var err error
	f.NonceUsed, err = issuing.NonceUsed(ctx, q, guard.Nonces)
	return err
}

// applyOpenBulk applies the open bulk revocations to the predecessor and the key.
func (f *found) applyOpenBulk(ctx context.Context, q engine.Querier, key pki.KeyHash) error {
	open, err := bulk.ReadOpen(ctx, q)
	if err != nil {
		return err
	}
	if f.predecessor.Valid {
		masks, err := open.Masks(ctx, q, []int64{f.predecessor.Int64})
		if err != nil {
			return err
		}
		f.Predecessor.Status = open.Status(f.Predecessor.Status, masks[f.predecessor.Int64])
	}
	return f.key.ApplyOpenBulk(ctx, q, open, key)
}

// readToken reads the token of the guard, if it was created for the identity, and returns its row ID.
func (f *found) readToken(ctx context.Context, q engine.Querier, id pki.TokenID) (int64, error) {
	var row, expires int64
	var owner sql.NullInt64
	var request, key, required []byte
	var revoked sql.NullString
	var t ra.Token
	err := q.QueryRow(ctx, `
		SELECT t.id, t.identity, t.expires_at, t.spent, t.request, t.key_hash, t.required_key, `+whyRevoked+` FROM tokens t WHERE t.token = ?`,
		id.Bytes()).Scan(&row, &owner, &expires, &t.Spent, &request, &key, &required, &revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if owner.Int64 != f.identity { // also if a token with a pattern is not bound
		return 0, nil
	}
	f.Token = &t
	t.ExpiresAt, t.RevokedBecause = engine.FromMillis(expires), revoked.String
	if t.Request, err = column.Restore(request, pki.RequestIDFromBytes); err != nil {
		return 0, err
	}
	if t.RequiredKey, err = column.Restore(required, pki.KeyHashFromBytes); err != nil {
		return 0, err
	}
	t.Key, err = column.Restore(key, pki.KeyHashFromBytes)
	return row, err
}

// consume makes the changes that follow from the guard of a new certificate: it enrolls the identity with its terms,
// ties it to the subject of its evidence, counts its recoveries, spends the token and the nonces, and records the
// successor. checkGuard ran in the same transaction, so its result still holds.
func (tx *writeTx) consume(ctx context.Context, guard *pki.Guard, g guarded, certificate int64) error {
	if guard.Enrolls {
		if err := tx.enroll(ctx, guard, g.identity); err != nil {
			return err
		}
	}
	if next := rules.NextRecoveries(guard, g.recoveries); next != g.recoveries {
		if err := tx.ExecOne(ctx, `UPDATE identities SET recoveries = ? WHERE id = ?`, next, g.identity); err != nil {
			return err
		}
	}
	for _, n := range guard.Nonces {
		_, err := tx.Exec(ctx, `INSERT INTO nonces (expires_at, nonce) VALUES (?, ?)`, engine.Millis(n.ExpiresAt), n.ID[:])
		if err != nil {
			return err
		}
	}
	if g.token != 0 {
		if err := tx.ExecOne(ctx, `UPDATE tokens SET spent = 1 WHERE id = ?`, g.token); err != nil {
			return err
		}
	}
	if s := g.effects.Superseded.Status; s.State != 0 && guard.LosesPredecessor() {
		return tx.ExecOne(ctx, `
			UPDATE certificates SET state = ?, reason = ?, revoked_at = ?, version = ?, changed = (`+logtable.NextIndex+`) WHERE id = ?`,
			s.State, s.Reason, engine.Millis(s.RevokedAt), s.Version, g.predecessor)
	} else if s.State != 0 {
		return tx.ExecOne(ctx, `
			UPDATE certificates SET successor = ?, superseded_by = ?, state = ?, reason = ?, revoked_at = ?, version = ?, changed = (`+logtable.NextIndex+`)
			WHERE id = ?`,
			column.KeyID(guard.Key), certificate, s.State, s.Reason, engine.Millis(s.RevokedAt), s.Version, g.predecessor)
	}
	if g.effects.Succeeds {
		return tx.ExecOne(ctx, setSuccessor, column.KeyID(guard.Key), g.predecessor)
	}
	return nil
}

// enroll enrolls an identity with the terms and the subject of the guard. It does not count the changed rows, because it does
// not wait for the statement. Exactly one changes: the condition is the primary key, and checkGuard has read the row in this
// transaction, which excludes other writes.
func (tx *writeTx) enroll(ctx context.Context, guard *pki.Guard, identity int64) error {
	terms, err := column.EncodeTerms(guard.Terms)
	if err != nil {
		return err
	}
	return tx.Later(ctx, `UPDATE identities SET state = ?, revision = revision + 1, subject = coalesce(?, subject), terms = ? WHERE id = ?`,
		pki.Enrolled, column.EncodeSubject(guard.Subject), terms, identity)
}

// setSuccessor records the key with which a certificate was renewed.
const setSuccessor = `UPDATE certificates SET successor = ? WHERE id = ?`
