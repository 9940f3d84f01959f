package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// CreateToken records a new token, which is neither bound nor spent.
func (r *RA) CreateToken(ctx context.Context, t ra.Token) (ra.Token, error) {
	made := t
	need := rules.RegistrationPermission(t.Identity)
	err := r.db.writeOnce(ctx, "record a token", t.CreatedBy, need, t.CreatedAt, func(ctx context.Context, tx *writeTx) (rules.Outcome, error) {
		made = t
		return rules.Outcome{Token: t.ID}, tx.createToken(ctx, &made)
	}, func(ctx context.Context, tx *writeTx, have rules.Outcome) error {
		var err error
		made, err = tx.replaceToken(ctx, have.Token, t)
		return err
	})
	if err != nil {
		return ra.Token{}, err
	}
	return made, nil
}

// createToken records a token with its log entry.
func (tx *writeTx) createToken(ctx context.Context, t *ra.Token) error {
	var err error
	if t.Pattern == "" {
		err = tx.callers.CheckLabelsOf(ctx, tx, t.CreatedBy, t.Identity)
	} else {
		err = tx.callers.CheckLabels(t.CreatedBy, t.Labels)
	}
	if err != nil {
		return err
	}
	if err := rules.CheckLabels(t.Labels); err != nil {
		return err
	}
	if err := tx.insertToken(ctx, *t); err != nil {
		return err
	}
	return tx.append(ctx, rules.TokenCreatedEntry(t))
}

// replaceToken revokes the token that an earlier request created, and records a replacement.
func (tx *writeTx) replaceToken(ctx context.Context, first pki.TokenID, next ra.Token) (ra.Token, error) {
	lost, err := readToken(ctx, tx, first)
	if err != nil {
		return ra.Token{}, err
	}
	var id ra.Identity // zero for a token with a pattern that is not bound
	if !lost.Identity.IsZero() {
		if id, err = readIdentity(ctx, tx, lost.Identity); err != nil {
			return ra.Token{}, err
		}
	}
	if next, err = rules.ReplaceToken(lost, next, id.Revision); err != nil {
		return ra.Token{}, err
	}
	if _, err := tx.revokeToken(ctx, rules.TokenReplacement(&lost, &next)); err != nil {
		return ra.Token{}, err
	}
	if err := tx.createToken(ctx, &next); err != nil {
		return ra.Token{}, err
	}
	return next, tx.ExecOne(ctx, replaceRequestToken, next.ID.Bytes(), next.CreatedBy.Caller().Identity.String(), next.CreatedBy.Request().ID.Bytes())
}

// replaceRequestToken records another token for a request of a caller. Few of many requests have created a token, so no
// index has the tokens.
const replaceRequestToken = `
	UPDATE operator_requests SET token = ? WHERE caller = (SELECT id FROM identities WHERE spiffe_id = ?) AND request = ?`

func (tx *writeTx) insertToken(ctx context.Context, t ra.Token) error {
	var identity sql.NullInt64
	if t.Pattern == "" {
		err := tx.QueryRow(ctx, `SELECT id FROM identities WHERE spiffe_id = ?`, t.Identity.String()).Scan(&identity)
		if errors.Is(err, sql.ErrNoRows) {
			return rules.NoIdentity(t.Identity)
		}
		if err != nil {
			return err
		}
	}
	limits, err := column.EncodeTokenLimits(t)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `
			INSERT INTO tokens (token, identity, revision, profile, expires_at, replaces, created_by, created_at,
			                    pattern, kind, labels, networks, required_key, creator, creator_certificate, era)
			SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, m.id, ?, `+nextEra+` FROM (SELECT (SELECT id FROM identities WHERE spiffe_id = ?) AS id) m
			WHERE TRUE ON CONFLICT (token) DO NOTHING`,
		t.ID.Bytes(), identity, int64(t.IdentityRevision), t.Profile, engine.Millis(t.ExpiresAt), t.Replace, t.CreatedBy.String(), engine.Millis(t.CreatedAt), //nolint:gosec // generations count up from 1
		limits.Pattern, limits.Kind, limits.Labels, limits.Networks, limits.RequiredKey,
		column.EncodeRef(t.CreatedBy.Caller().Certificate), t.CreatedBy.Caller().Identity.String())
	if err == nil && n == 0 {
		return rules.TokenExists(t.ID)
	}
	return err
}

// bindToken binds a token. A token with a pattern also gets the identity, in its current revision.
//
//nolint:gosec // no secret
const bindToken = `
	UPDATE tokens SET request = ?, key_hash = ?, identity = coalesce(identity, (SELECT id FROM identities WHERE spiffe_id = ?)),
	       revision = CASE WHEN identity IS NULL THEN (SELECT revision FROM identities WHERE spiffe_id = ?) ELSE revision END
	WHERE token = ? AND request IS NULL`

func (tx *writeTx) bindToken(ctx context.Context, id pki.TokenID, request pki.RequestID, key pki.KeyHash, identity pki.SPIFFEID) error {
	return tx.ExecOne(ctx, bindToken, request.Bytes(), key.Bytes(), identity.String(), identity.String(), id.Bytes())
}

// Token returns the record of a token.
func (r *RA) Token(ctx context.Context, id pki.TokenID) (ra.Token, error) {
	var t ra.Token
	err := r.db.file.Look(ctx, "read a token", func(ctx context.Context, q engine.Querier) error {
		var err error
		t, err = readToken(ctx, q, id)
		return err
	})
	return t, err
}

// BindToken binds a token if it is not bound yet, and returns its record.
func (r *RA) BindToken(ctx context.Context, id pki.TokenID, b ra.Binding) (ra.Token, error) {
	var t ra.Token
	err := r.db.write(ctx, "bind a token", func(ctx context.Context, tx *writeTx) error {
		var err error
		t, err = readToken(ctx, tx, id)
		if err != nil {
			return err
		}
		claimed, err := tx.claimed(ctx, t, b)
		if err != nil {
			return err
		}
		var bound bool
		if t, bound, err = rules.BindToken(t, b, claimed); err != nil || !bound {
			return err
		}
		if b.Register != nil {
			if _, err := tx.register(ctx, *b.Register, pki.ActorToken(id)); err != nil {
				return err
			}
		}
		if err := tx.bindToken(ctx, id, b.Request, b.Key, t.Identity); err != nil {
			return err
		}
		return tx.append(ctx, rules.TokenBoundEntry(&t, b.At))
	})
	if err != nil {
		return ra.Token{}, err
	}
	return t, nil
}

// claimed returns the record of the identity that a token with a pattern is to be bound to. It returns nil if the identity
// is not registered, and for other tokens.
func (tx *writeTx) claimed(ctx context.Context, t ra.Token, b ra.Binding) (*ra.Identity, error) {
	if t.Pattern == "" {
		return nil, nil //nolint:nilnil // no record is needed
	}
	id, err := readIdentity(ctx, tx, b.Identity.ID)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleIdentity {
		return nil, nil //nolint:nilnil // there is no record
	}
	return &id, err
}

// tokenColumns are the columns that column.ScanToken reads.
const tokenColumns = `
	t.id, t.token, (SELECT spiffe_id FROM identities WHERE id = t.identity), t.revision, t.profile, t.expires_at, t.replaces, t.created_by, t.created_at,
	t.request, t.key_hash, t.spent, t.pattern, t.kind, t.labels, t.networks, t.required_key, t.creator_certificate, CASE t.spent WHEN 0 THEN ` + whyRevoked + ` END`

func readToken(ctx context.Context, from engine.Querier, id pki.TokenID) (ra.Token, error) {
	t, _, err := column.ScanToken(from.QueryRow(ctx, `SELECT `+tokenColumns+` FROM tokens t WHERE t.token = ?`, id.Bytes()))
	if errors.Is(err, sql.ErrNoRows) {
		return ra.Token{}, rules.NoToken(id)
	}
	return t, err
}

// tokenState is an SQL expression for rules.TokenState of a token t of the identity n, at a time.
const tokenState = `
	CASE WHEN t.spent = 1 THEN 'spent' WHEN ` + whyRevoked + ` IS NOT NULL THEN 'revoked' WHEN t.expires_at <= ? THEN 'expired'
	     WHEN t.revision <> n.revision THEN 'stale' ELSE 'open' END`

// Tokens returns a page of tokens, newest first.
func (r *RA) Tokens(ctx context.Context, f ra.TokenFilter, at time.Time, after ra.TokenPosition, limit int) ([]ra.ListedToken, ra.TokenPosition, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, ra.TokenPosition{}, err
	}
	var page []ra.ListedToken
	var next ra.TokenPosition
	err := r.db.file.ReadMany(ctx, "list tokens", func(ctx context.Context, tx engine.Querier) error {
		page = nil
		var q engine.Clause
		selectTokens(&q, f, at, after)
		var ids []int64
		var err error
		ids, next, err = readPage(ctx, tx, &q, limit, scanTokenPosition)
		if err != nil {
			return err
		}
		list, err := column.IDs(ids)
		if err != nil {
			return err
		}
		rows := engine.Query(ctx, tx, `
			SELECT `+tokenColumns+`, `+tokenState+` FROM tokens t LEFT JOIN identities n ON n.id = t.identity
			WHERE t.id IN (SELECT value FROM json_each(?)) ORDER BY t.created_at DESC, t.token DESC`, engine.Millis(at), list)
		return rows.Each(func(rows engine.Scanner) error {
			var t ra.ListedToken
			var err error
			t.Token, _, err = column.ScanToken(rows, &t.State)
			page = append(page, t)
			return err
		})
	})
	if err != nil {
		return nil, ra.TokenPosition{}, err
	}
	return page, next, nil
}

// selectTokens adds the query for readPage. An identity has few tokens, so they are found by its index and sorted.
func selectTokens(q *engine.Clause, f ra.TokenFilter, at time.Time, after ra.TokenPosition) {
	q.Add(`SELECT t.id, t.created_at, t.token, (TRUE`)
	if len(f.States) > 0 {
		q.Add(` AND `+tokenState, engine.Millis(at))
		in(q, f.States)
	}
	if !f.CreatedBy.IsZero() {
		q.Add(` AND t.creator IS NOT DISTINCT FROM (SELECT id FROM identities WHERE spiffe_id = ?)`, f.CreatedBy.String())
	}
	if f.Identity.IsZero() {
		q.Add(`) FROM tokens t INDEXED BY tokens_by_creation LEFT JOIN identities n ON n.id = t.identity WHERE TRUE`)
	} else {
		q.Add(`) FROM tokens t INDEXED BY tokens_by_identity CROSS JOIN identities n ON n.id = t.identity
			WHERE t.identity = (SELECT id FROM identities WHERE spiffe_id = ?)`, f.Identity.String())
	}
	if !after.IsZero() {
		q.Add(` AND t.created_at <= ? AND (t.created_at, t.token) < (?, ?)`, engine.Millis(after.CreatedAt), engine.Millis(after.CreatedAt), after.ID.Bytes())
	}
	if !f.CreatedFrom.IsZero() {
		q.Add(` AND t.created_at >= ?`, engine.CeilMillis(f.CreatedFrom))
	}
	if !f.CreatedUntil.IsZero() {
		q.Add(` AND t.created_at < ?`, engine.CeilMillis(f.CreatedUntil))
	}
	q.Add(` ORDER BY t.created_at DESC, t.token DESC LIMIT ?`, ra.MaxLooked+1)
}

func scanTokenPosition(rows engine.Scanner) (listedRow[ra.TokenPosition], error) {
	var f listedRow[ra.TokenPosition]
	var created int64
	var token []byte
	if err := rows.Scan(&f.id, &created, &token, &f.matches); err != nil {
		return f, err
	}
	var err error
	f.place.CreatedAt = engine.FromMillis(created)
	f.place.ID, err = pki.TokenIDFromBytes(token)
	return f, err
}
