package column

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
)

// TokenLimits holds the columns that say for what a token can be used. Most tokens have NULL in all of them.
type TokenLimits struct {
	Pattern, Labels, Networks sql.NullString
	Kind                      sql.NullInt64
	RequiredKey               []byte
}

func (l *TokenLimits) targets() []any {
	return []any{&l.Pattern, &l.Kind, &l.Labels, &l.Networks, &l.RequiredKey}
}

// EncodeTokenLimits returns the columns of a token.
func EncodeTokenLimits(t ra.Token) (TokenLimits, error) {
	var l TokenLimits
	if !t.RequiredKey.IsZero() {
		l.RequiredKey = t.RequiredKey.Bytes()
	}
	if len(t.Networks) > 0 {
		text, err := json.Marshal(t.Networks)
		if err != nil {
			return l, fmt.Errorf("encode the networks of token %s: %w", t.ID, err)
		}
		l.Networks = sql.NullString{String: string(text), Valid: true}
	}
	if t.Pattern == "" {
		return l, nil
	}
	text, err := json.Marshal(t.Labels)
	if err != nil {
		return l, fmt.Errorf("encode the labels of token %s: %w", t.ID, err)
	}
	l.Pattern, l.Labels = sql.NullString{String: t.Pattern, Valid: true}, sql.NullString{String: string(text), Valid: true}
	l.Kind = sql.NullInt64{Int64: int64(t.Kind), Valid: true}
	return l, nil
}

// decode sets the fields of a token to the columns that were read.
func (l *TokenLimits) decode(t *ra.Token) error {
	t.Pattern, t.Kind = l.Pattern.String, pki.Kind(l.Kind.Int64) //nolint:gosec // EncodeTokenLimits wrote it
	var err error
	if l.Labels.Valid {
		err = json.Unmarshal([]byte(l.Labels.String), &t.Labels)
	}
	if err == nil && l.Networks.Valid {
		err = json.Unmarshal([]byte(l.Networks.String), &t.Networks)
	}
	if err == nil {
		t.RequiredKey, err = Restore(l.RequiredKey, pki.KeyHashFromBytes)
	}
	return err
}

// ScanToken reads a row of tokens, and returns the token and its row ID. The row begins with the columns id, token, SPIFFE
// ID of the identity, revision, profile, expires_at, replaces, created_by, created_at, request, key_hash, spent, pattern,
// kind, labels, networks, required_key, creator_certificate, and why the token was revoked.
func ScanToken(row engine.Scanner, more ...any) (ra.Token, int64, error) {
	var t ra.Token
	var identity sql.NullString
	var by string
	var limits TokenLimits
	var id, expires, created int64
	var token, request, key, madeWith []byte
	var revoked sql.NullString
	err := row.Scan(slices.Concat(
		[]any{&id, &token, &identity, &t.IdentityRevision, &t.Profile, &expires, &t.Replace, &by, &created, &request, &key, &t.Spent},
		limits.targets(), []any{&madeWith, &revoked}, more)...)
	if err != nil {
		return ra.Token{}, 0, err
	}
	t.ExpiresAt, t.CreatedAt, t.CreatedBy, t.RevokedBecause = engine.FromMillis(expires), engine.FromMillis(created), pki.ActorFromText(by), revoked.String
	if t.ID, err = pki.TokenIDFromBytes(token); err != nil {
		return ra.Token{}, 0, err
	}
	if identity.Valid { // a token with a pattern has none before it is bound
		if t.Identity, err = pki.ParseSPIFFEID(identity.String); err != nil {
			return ra.Token{}, 0, err
		}
	}
	if err := limits.decode(&t); err != nil {
		return ra.Token{}, 0, err
	}
	if t.CreatorCertificate, err = DecodeRef(madeWith); err != nil {
		return ra.Token{}, 0, err
	}
	if t.Request, err = Restore(request, pki.RequestIDFromBytes); err != nil {
		return ra.Token{}, 0, err
	}
	t.Key, err = Restore(key, pki.KeyHashFromBytes)
	return t, id, err
}
