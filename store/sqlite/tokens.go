package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

// CreateToken records a new token, bound to nothing and not spent.
func (r *RA) CreateToken(ctx context.Context, t ra.Token) error {
	return r.db.writeBy(ctx, "record a token", t.CreatedBy, t.CreatedAt, func(ctx context.Context, tx *writeTx) error {
		var identity int64
		err := tx.QueryRowContext(ctx, `SELECT id FROM identities WHERE spiffe_id = ?`, t.Identity.String()).Scan(&identity)
		if errors.Is(err, sql.ErrNoRows) {
			return noIdentity(t.Identity)
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `
			INSERT INTO tokens (token, identity, generation, profile, expires_at, replaces, created_by, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			t.ID.Bytes(), identity, int64(t.Generation), t.Profile, millis(t.ExpiresAt), t.Replace, t.CreatedBy.String(), millis(t.CreatedAt)) //nolint:gosec // generations count up from 1
		if isDuplicate(err) {
			return pki.Refuse(pki.RuleRequest, "draw a new secret", "the token %s is on record already", t.ID)
		}
		if err != nil {
			return err
		}
		facts := map[string]string{"token": t.ID.String(), "profile": t.Profile, "expires": t.ExpiresAt.UTC().Format(time.RFC3339)}
		if t.Replace {
			facts["replace"] = "true"
		}
		return tx.append(ctx, translog.Entry{
			Time: t.CreatedAt, Actor: t.CreatedBy, Action: translog.TokenCreated, Outcome: translog.Done, Identity: t.Identity, Facts: facts,
		})
	})
}

// Token returns the record of a token.
func (r *RA) Token(ctx context.Context, id pki.TokenID) (ra.Token, error) {
	var t ra.Token
	err := r.db.look(ctx, "read a token", func(ctx context.Context, conn *sql.Conn) error {
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
		if err != nil || !t.Request.IsZero() {
			return err
		}
		t.Request, t.Key = request, key
		err = tx.execOne(ctx, `UPDATE tokens SET request = ?, key_hash = ? WHERE token = ? AND request IS NULL`,
			request.Bytes(), key.Bytes(), id.Bytes())
		if err != nil {
			return err
		}
		return tx.append(ctx, translog.Entry{
			Time: at, Actor: pki.ActorToken(id), Action: translog.TokenBound, Outcome: translog.Done, Identity: t.Identity,
			Facts: map[string]string{"token": id.String(), "request": request.String(), "key": key.String()},
		})
	})
	if err != nil {
		return ra.Token{}, err
	}
	return t, nil
}

func readToken(ctx context.Context, from querier, id pki.TokenID) (ra.Token, error) {
	t := ra.Token{ID: id}
	var identity, by string
	var expires, created int64
	var request, key []byte
	err := from.QueryRowContext(ctx, `
		SELECT (SELECT spiffe_id FROM identities WHERE id = identity), generation, profile, expires_at, replaces, created_by, created_at,
		       request, key_hash, spent
		FROM tokens WHERE token = ?`, id.Bytes()).
		Scan(&identity, &t.Generation, &t.Profile, &expires, &t.Replace, &by, &created, &request, &key, &t.Spent)
	if errors.Is(err, sql.ErrNoRows) {
		return ra.Token{}, pki.Refuse(pki.RuleNotFound, "make a new token (brevet token create)", "there is no token %s", id)
	}
	if err != nil {
		return ra.Token{}, err
	}
	t.ExpiresAt, t.CreatedAt, t.CreatedBy = fromMillis(expires), fromMillis(created), pki.ActorFromText(by)
	if t.Identity, err = pki.ParseSPIFFEID(identity); err != nil {
		return ra.Token{}, err
	}
	if t.Request, err = restore(request, pki.RequestIDFromBytes); err != nil {
		return ra.Token{}, err
	}
	t.Key, err = restore(key, pki.KeyHashFromBytes)
	return t, err
}
