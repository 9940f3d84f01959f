package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// CreateToken records a new token, bound to nothing and not spent.
func (r *RA) CreateToken(ctx context.Context, t ra.Token) error {
	return r.db.writeBy(ctx, "record a token", t.CreatedBy, t.CreatedAt, func(ctx context.Context, tx *writeTx) error {
		if err := tx.insertToken(ctx, t); err != nil {
			return err
		}
		return tx.append(ctx, rules.TokenCreatedEntry(&t))
	})
}

func (tx *writeTx) insertToken(ctx context.Context, t ra.Token) error {
	var identity int64
	err := tx.QueryRowContext(ctx, `SELECT id FROM identities WHERE spiffe_id = ?`, t.Identity.String()).Scan(&identity)
	if errors.Is(err, sql.ErrNoRows) {
		return rules.NoIdentity(t.Identity)
	}
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
			INSERT INTO tokens (token, identity, generation, profile, expires_at, replaces, created_by, created_at, maker, made_with, era)
			SELECT ?, ?, ?, ?, ?, ?, ?, ?, m.id, ?, `+nextEra+` FROM (SELECT (SELECT id FROM identities WHERE spiffe_id = ?) AS id) m`,
		t.ID.Bytes(), identity, int64(t.IdentityRevision), t.Profile, engine.Millis(t.ExpiresAt), t.Replace, t.CreatedBy.String(), engine.Millis(t.CreatedAt), //nolint:gosec // generations count up from 1
		encodeRef(t.CreatedBy.Caller().Certificate), t.CreatedBy.Caller().Identity.String())
	if engine.IsDuplicate(err) {
		return rules.TokenExists(t.ID)
	}
	return err
}

const bindToken = `UPDATE tokens SET request = ?, key_hash = ? WHERE token = ? AND request IS NULL`

// Token returns the record of a token.
func (r *RA) Token(ctx context.Context, id pki.TokenID) (ra.Token, error) {
	var t ra.Token
	err := r.db.file.Look(ctx, "read a token", func(ctx context.Context, conn *sql.Conn) error {
		var err error
		t, err = readToken(ctx, conn, id)
		return err
	})
	return t, err
}

// BindToken binds a token that is bound to nothing yet, and returns its record.
func (r *RA) BindToken(ctx context.Context, id pki.TokenID, request pki.RequestID, key pki.KeyHash, at time.Time) (ra.Token, error) {
	var t ra.Token
	err := r.db.write(ctx, "bind a token", func(ctx context.Context, tx *writeTx) error {
		var err error
		t, err = readToken(ctx, tx, id)
		if err != nil {
			return err
		}
		var bound bool
		if t, bound, err = rules.BindToken(t, request, key); err != nil || !bound {
			return err
		}
		if err := tx.ExecOne(ctx, bindToken, request.Bytes(), key.Bytes(), id.Bytes()); err != nil {
			return err
		}
		return tx.append(ctx, rules.TokenBoundEntry(&t, at))
	})
	if err != nil {
		return ra.Token{}, err
	}
	return t, nil
}

const tokenColumns = `
	t.id, t.token, (SELECT spiffe_id FROM identities WHERE id = t.identity), t.generation, t.profile, t.expires_at, t.replaces, t.created_by, t.created_at,
	t.request, t.key_hash, t.spent, t.made_with, CASE t.spent WHEN 0 THEN ` + whyRevoked + ` END`

func readToken(ctx context.Context, from engine.Querier, id pki.TokenID) (ra.Token, error) {
	t, _, err := scanToken(from.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM tokens t WHERE t.token = ?`, id.Bytes()))
	if errors.Is(err, sql.ErrNoRows) {
		return ra.Token{}, rules.NoToken(id)
	}
	return t, err
}

// scanToken reads a row that begins with tokenColumns, and its id.
func scanToken(row engine.Scanner, more ...any) (ra.Token, int64, error) {
	var t ra.Token
	var identity, by string
	var id, expires, created int64
	var token, request, key, madeWith []byte
	var revoked sql.NullString
	err := row.Scan(append([]any{&id, &token, &identity, &t.IdentityRevision, &t.Profile, &expires, &t.Replace, &by, &created, &request, &key, &t.Spent,
		&madeWith, &revoked}, more...)...)
	if err != nil {
		return ra.Token{}, 0, err
	}
	t.ExpiresAt, t.CreatedAt, t.CreatedBy, t.RevokedBecause = engine.FromMillis(expires), engine.FromMillis(created), pki.ActorFromText(by), revoked.String
	if t.ID, err = pki.TokenIDFromBytes(token); err != nil {
		return ra.Token{}, 0, err
	}
	if t.Identity, err = pki.ParseSPIFFEID(identity); err != nil {
		return ra.Token{}, 0, err
	}
	if t.CreatorCertificate, err = decodeRef(madeWith); err != nil {
		return ra.Token{}, 0, err
	}
	if t.Request, err = restore(request, pki.RequestIDFromBytes); err != nil {
		return ra.Token{}, 0, err
	}
	t.Key, err = restore(key, pki.KeyHashFromBytes)
	return t, id, err
}

// tokenState is rules.TokenState for tokens t of identities n, at a time.
const tokenState = `
	CASE WHEN t.spent THEN 'spent' WHEN ` + whyRevoked + ` IS NOT NULL THEN 'revoked' WHEN t.expires_at <= ? THEN 'expired'
	     WHEN t.generation <> n.generation THEN 'stale' ELSE 'open' END`

// Tokens returns a page of tokens, the newest first.
func (r *RA) Tokens(ctx context.Context, sel ra.TokenSelection, at time.Time, from ra.Cursor, limit int) ([]ra.ListedToken, ra.Cursor, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	if from == 0 {
		from = 1<<63 - 1
	}
	var q clause
	q.add(`SELECT `+tokenColumns+`, `+tokenState+` AS token_state FROM tokens t JOIN identities n ON n.id = t.identity WHERE t.id <= ?`, engine.Millis(at), int64(from))
	if !sel.CreatedBy.IsZero() {
		q.add(` AND t.maker = (SELECT id FROM identities WHERE spiffe_id = ?)`, sel.CreatedBy.String())
	}
	if !sel.Identity.IsZero() {
		q.add(` AND t.identity = (SELECT id FROM identities WHERE spiffe_id = ?)`, sel.Identity.String())
	}
	if sel.State != "" {
		q.add(` AND token_state = ?`, string(sel.State))
	}
	q.add(` ORDER BY t.id DESC LIMIT ?`, limit+1)
	var page []ra.ListedToken
	var next ra.Cursor
	err := r.db.file.ReadMany(ctx, "list tokens", func(ctx context.Context, tx *sql.Tx) error {
		rows := engine.Query(ctx, tx, q.text.String(), q.args...)
		return rows.Each(func(rows *sql.Rows) error {
			var t ra.ListedToken
			var id int64
			var err error
			t.Token, id, err = scanToken(rows, &t.State)
			if len(page) == limit {
				next = ra.Cursor(id)
				return err
			}
			page = append(page, t)
			return err
		})
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}
