package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// guarded is what a guard has found, by row: what consume changes. Zero stands for nothing to change.
type guarded struct {
	identity    int64
	token       int64
	predecessor int64 // which gets a successor
	supersedes  int64 // the predecessor too, with its next status
	superseded  pki.StatusChange
}

// names is how often certificates will name the key: the new one, and the one that it renews.
func (g guarded) names() int {
	if g.predecessor != 0 {
		return 2
	}
	return 1
}

// selectGuarded finds the identity of a record, with what is on record about the certificate that it renews, the request
// that it answers, and its key.
const selectGuarded = `
	WITH q AS MATERIALIZED (SELECT ` + questionColumns + `)
	SELECT n.id, n.state, n.generation, p.id, p.state, p.successor, p.superseded_by, p.version, p.not_before, p.not_after,
	       EXISTS (SELECT 1 FROM certificates WHERE identity = n.id AND request = q.request), ` + anyOpen + `, ` + keyColumns + `
	FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id
	LEFT JOIN certificates p ON p.serial = q.serial AND p.identity = n.id AND p.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	LEFT JOIN keys k ON k.id = q.key`

// found is what selectGuarded selects.
type found struct {
	identity, generation                     int64
	state                                    pki.IdentityState
	predecessor, predecessorState, successor sql.NullInt64
	supersededBy, version                    sql.NullInt64 // of the predecessor
	notBefore, notAfter                      sql.NullInt64 // of the predecessor
	answered, revoking                       bool
	key                                      keyRow
}

func (f *found) columns() []any {
	return append([]any{&f.identity, &f.state, &f.generation, &f.predecessor, &f.predecessorState, &f.successor, &f.supersededBy, &f.version, &f.notBefore, &f.notAfter,
		&f.answered, &f.revoking}, f.key.columns()...)
}

// checkGuard reads whether everything still holds that was true when the certificate was decided. What does not is a
// *pki.Refusal.
func (tx *writeTx) checkGuard(ctx context.Context, r ca.Record, at time.Time) (guarded, error) {
	var g guarded
	if r.RequestID.IsZero() {
		return g, pki.Refuse(pki.RuleRequest, "ask again with a request ID", "the certificate answers no request")
	}
	if r.Guard.Key != r.KeyHash {
		return g, pki.Refuse(pki.RuleRequest, "ask again", "the certificate was decided for another key")
	}
	var f found
	row := tx.QueryRowContext(ctx, selectGuarded, questionOf(r.Identity, r.Guard.Predecessor, r.RequestID, r.Guard.Key)...)
	err := row.Scan(f.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		return g, noIdentity(r.Identity)
	}
	if err != nil {
		return g, err
	}
	if err := f.checkIdentity(r); err != nil {
		return g, err
	}
	if f.revoking {
		if err := f.addSets(ctx, tx, r.Guard.Key); err != nil {
			return g, err
		}
	}
	g.identity = f.identity
	if !r.Guard.Token.IsZero() {
		if g.token, err = tx.checkToken(ctx, r, g.identity, at); err != nil {
			return g, err
		}
	}
	if !r.Guard.Predecessor.IsZero() {
		if err := f.checkPredecessor(r.Guard); err != nil {
			return g, err
		}
		if renews(r) {
			if err := r.Actor.Caller().Authorize(f.callerState(), at); err != nil {
				return g, err
			}
		}
		if !f.successor.Valid {
			g.predecessor = f.predecessor.Int64
		}
		if r.Guard.Supersedes {
			g.supersedes, g.superseded = f.predecessor.Int64, f.supersede(r.Guard.Predecessor, at)
		}
	}
	if refusal := f.key.against(r.Guard.Key, g.identity); refusal != nil {
		return g, refusal
	}
	return g, tx.checkUnexpired(ctx, r, g.identity, at)
}

// checkIdentity holds the identity against the guard; it has to be registered also where no guard asks for it. A repeated
// request comes first: its caller needs to hear that the answer is on record, not that answering it has changed the
// identity.
func (f *found) checkIdentity(r ca.Record) error {
	if f.answered {
		return pki.Refuse(pki.RuleRequestReused, "ask again for the certificate on record, or draw a new request ID for another one",
			"the request ID was answered with a certificate before")
	}
	if r.Guard.Identity.IsZero() && !r.Guard.Enrolls {
		return nil
	}
	if r.Guard.Identity != r.Identity {
		return pki.Refuse(pki.RuleIdentity, "ask again", "the certificate of %s was decided for %s", r.Identity, r.Guard.Identity)
	}
	if f.state != pki.Registered && f.state != pki.Enrolled {
		return pki.Refuse(pki.RuleIdentityState, "ask an operator", "%s is %s", r.Identity, f.state)
	}
	if uint64(f.generation) != r.Guard.Generation { //nolint:gosec // generations count up from 1
		return pki.Refuse(pki.RuleChanged, "ask again", "%s changed while the request was under way", r.Identity)
	}
	return nil
}

// supersede is the status of the predecessor once it is revoked.
func (f *found) supersede(ref pki.CertRef, at time.Time) pki.StatusChange {
	return pki.StatusChange{Ref: ref, NotAfter: engine.FromMillis(f.notAfter.Int64), Status: pki.Status{
		State: pki.Revoked, Reason: pki.Superseded, RevokedAt: at.Truncate(time.Second),
		Version: uint64(f.version.Int64) + 1, //nolint:gosec // versions count up from 1
	}}
}

// addSets adds what sets of revocations say whose records are to follow.
func (f *found) addSets(ctx context.Context, q engine.Querier, key pki.KeyHash) error {
	open, err := readOpenSets(ctx, q)
	if err != nil {
		return err
	}
	if f.predecessor.Valid {
		masks, err := open.masks(ctx, q, []int64{f.predecessor.Int64})
		if err != nil {
			return err
		}
		st := open.apply(statusOf(f.predecessorState.Int64, 0, f.version.Int64, sql.NullInt64{}), masks[f.predecessor.Int64])
		f.predecessorState.Int64, f.version.Int64 = int64(st.State), int64(st.Version) //nolint:gosec // as the table has it
	}
	return f.key.addSets(ctx, q, open, key)
}

// checkPredecessor has a clone be one, also where the renewal with the other key has revoked the predecessor.
func (f *found) checkPredecessor(g pki.Guard) error {
	if !f.predecessor.Valid {
		return noPredecessor(g.Predecessor.Serial)
	}
	state := pki.State(f.predecessorState.Int64) //nolint:gosec // 1 to 3, as the table has it
	if f.successor.Valid && f.successor.Int64 != keyID(g.Key) && (state == pki.Good || f.supersededBy.Valid) {
		return pki.Refuse(pki.RuleClone, "find out who holds a copy of the credential, then enroll again",
			"certificate %s was renewed before, with another key", g.Predecessor.Serial)
	}
	if state != pki.Good {
		return pki.Refuse(pki.RuleRevoked, "ask an operator: a held certificate can be released, a revoked one needs a new enrollment",
			"the certificate to renew, %s, is %s", g.Predecessor.Serial, state)
	}
	if f.successor.Valid && !g.Renewed {
		return pki.Refuse(pki.RuleChanged, "ask again", "certificate %s was renewed while the request was under way", g.Predecessor.Serial)
	}
	return nil
}

// callerState is what is on record of a caller that renews, whose certificate checkPredecessor has found to be good.
func (f *found) callerState() pki.CallerState {
	return pki.CallerState{
		NotBefore: engine.FromMillis(f.notBefore.Int64), NotAfter: engine.FromMillis(f.notAfter.Int64), Status: pki.Status{State: pki.Good}, Identity: f.state,
	}
}

// checkUnexpired counts the certificates of an identity that gets one more.
func (tx *writeTx) checkUnexpired(ctx context.Context, r ca.Record, identity int64, at time.Time) error {
	most := r.Guard.MaxUnexpired
	if most == 0 {
		return nil
	}
	n, err := countUnexpired(ctx, tx, identity, at, most)
	if err == nil && n >= most {
		err = pki.Refuse(pki.RuleUnexpired, "wait until some have ended, or raise max_unexpired of the profile",
			"%s has %d certificates that have not ended", r.Identity, n)
	}
	return err
}

// checkToken does not say which of its conditions failed: what the caller may know of a token is that it does not serve, or that
// it was revoked.
func (tx *writeTx) checkToken(ctx context.Context, r ca.Record, identity int64, at time.Time) (int64, error) {
	var id, owner, expires int64
	var spent bool
	var request, key []byte
	var revoked sql.NullString
	row := tx.QueryRowContext(ctx, `SELECT t.id, t.identity, t.expires_at, t.spent, t.request, t.key_hash, `+whyRevoked+` FROM tokens t WHERE t.token = ?`,
		r.Guard.Token.Bytes())
	err := row.Scan(&id, &owner, &expires, &spent, &request, &key, &revoked)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	if err != nil || spent || engine.Millis(at) >= expires || owner != identity {
		return 0, pki.Refuse(pki.RuleToken, "ask an operator for a new token", "the enrollment token is unknown, expired or spent")
	}
	if err := (ra.Token{Revoked: revoked.String}).CheckRevoked(); err != nil {
		return 0, err
	}
	if string(request) != string(r.RequestID.Bytes()) || string(key) != string(r.KeyHash.Bytes()) {
		return 0, pki.Refuse(pki.RuleTokenBound, "repeat the first request, or ask an operator for a new token",
			"the enrollment token is bound to another request or key")
	}
	return id, nil
}

// consume uses up what a guard has found, for the certificate in a row. It is the same transaction that found it, so nothing
// can have changed.
func (tx *writeTx) consume(ctx context.Context, guard pki.Guard, g guarded, certificate int64) error {
	if guard.Enrolls {
		if err := tx.ExecOne(ctx, `UPDATE identities SET state = 2, generation = generation + 1 WHERE id = ?`, g.identity); err != nil {
			return err
		}
	}
	if g.token != 0 {
		if err := tx.ExecOne(ctx, `UPDATE tokens SET spent = 1 WHERE id = ?`, g.token); err != nil {
			return err
		}
	}
	if g.supersedes != 0 {
		s := g.superseded.Status
		return tx.ExecOne(ctx, `
			UPDATE certificates SET successor = ?, superseded_by = ?, state = ?, reason = ?, revoked_at = ?, version = ?, changed = (`+nextEntry+`)
			WHERE id = ?`,
			keyID(guard.Key), certificate, s.State, s.Reason, engine.Millis(s.RevokedAt), s.Version, g.supersedes)
	}
	if g.predecessor != 0 {
		return tx.ExecOne(ctx, `UPDATE certificates SET successor = ? WHERE id = ?`, keyID(guard.Key), g.predecessor)
	}
	return nil
}

func noIdentity(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleIdentity, "register it first (brevet identity create)", "there is no identity %s", id)
}

func noPredecessor(serial pki.Serial) *pki.Refusal {
	return pki.Refuse(pki.RulePredecessor, "enroll with a new token", "the certificate to renew, %s, is not on record", serial)
}
