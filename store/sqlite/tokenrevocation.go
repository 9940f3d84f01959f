package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/translog"
)

const (
	// whyRevoked selects why the token t was revoked, alone or with all that its maker had made; NULL where it was not.
	whyRevoked = `coalesce(t.revoked, (SELECT v.why FROM token_revocations v WHERE v.maker = t.maker AND v.era >= t.era ORDER BY v.era LIMIT 1))`
	// nextEra selects the era of what the maker m makes next.
	nextEra = `coalesce((SELECT max(v.era) + 1 FROM token_revocations v WHERE v.maker = m.id), 0)`
)

// RevokeTokens revokes one token, or all that an identity has made so far.
func (r *RA) RevokeTokens(ctx context.Context, v ra.TokenRevocation) (int, error) {
	var n int
	err := r.db.writeBy(ctx, "revoke tokens", v.By, v.At, func(ctx context.Context, tx *writeTx) error {
		var err error
		switch {
		case v.ID != "" && v.MadeBy.IsZero():
			n, err = tx.revokeToken(ctx, v)
		case v.ID == "" && !v.MadeBy.IsZero():
			if _, err = readIdentity(ctx, tx, v.MadeBy); err == nil {
				n, err = tx.revokeTokensOf(ctx, v.MadeBy, "an operator revoked all tokens of its maker", v)
			}
		default:
			err = pki.Refuse(pki.RuleRequest, "name one token, or the maker of tokens", "a revocation is of exactly one of them")
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// revokeToken revokes one token. One that was spent or revoked stays as it is. One that has expired by this server's clock is
// revoked too, since the clock may be ahead.
func (tx *writeTx) revokeToken(ctx context.Context, v ra.TokenRevocation) (int, error) {
	first, err := hex.DecodeString(v.ID)
	if err != nil || len(first) != 8 {
		return 0, pki.Refuse(pki.RuleRequest, "give the 16 hexadecimal digits that brevet token list prints", "%.80q names no token", v.ID)
	}
	last := append(slices.Clone(first), bytes.Repeat([]byte{0xff}, 24)...)
	t, id, err := scanToken(tx.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM tokens t WHERE t.token BETWEEN ? AND ?`, first, last))
	if errors.Is(err, sql.ErrNoRows) {
		return 0, pki.Refuse(pki.RuleNotFound, "look for it with brevet token list", "there is no token %s", v.ID)
	}
	if err != nil || t.Spent || t.Revoked != "" {
		return 0, err
	}
	if err := tx.ExecOne(ctx, `UPDATE tokens SET revoked = 'an operator revoked it' WHERE id = ?`, id); err != nil {
		return 0, err
	}
	n := 0
	if v.At.Before(t.ExpiresAt) {
		n = 1
	}
	return n, tx.append(ctx, tokensEntry(v, t.Identity, map[string]string{"token": t.ID.String()}))
}

// revokeTokensOf revokes what an identity has made since its tokens were last revoked, and returns how many of that could
// have been used by this server's clock.
func (tx *writeTx) revokeTokensOf(ctx context.Context, maker pki.SPIFFEID, why string, v ra.TokenRevocation) (int, error) {
	var row, era, next int64
	err := tx.QueryRowContext(ctx, `
		SELECT m.id, t.era, `+nextEra+` FROM identities m JOIN tokens t ON t.maker = m.id WHERE m.spiffe_id = ? ORDER BY t.id DESC LIMIT 1`,
		maker.String()).Scan(&row, &era, &next)
	if errors.Is(err, sql.ErrNoRows) || err == nil && era < next {
		return 0, nil // none, or none since then
	}
	if err != nil {
		return 0, err
	}
	var n int
	err = tx.QueryRowContext(ctx, `
		SELECT count(*) FROM (SELECT era, spent, revoked, expires_at FROM tokens WHERE maker = ? ORDER BY id DESC LIMIT ?)
		WHERE era = ? AND spent = 0 AND revoked IS NULL AND expires_at > ?`,
		row, ra.MaxTokensCounted, era, engine.Millis(v.At)).Scan(&n)
	if err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO token_revocations (maker, era, why) VALUES (?, ?, ?)`, row, next, why); err != nil {
		return 0, err
	}
	return n, tx.append(ctx, tokensEntry(v, maker, map[string]string{"made_by": maker.String(), "tokens": strconv.Itoa(n), "cause": why}))
}

func tokensEntry(v ra.TokenRevocation, id pki.SPIFFEID, facts map[string]string) translog.Entry {
	if v.Why != "" {
		facts["comment"] = v.Why
	}
	return translog.Entry{Time: v.At, Actor: v.By, Action: translog.TokenRevoked, Outcome: translog.Done, Identity: id, Facts: facts}
}

// distrust revokes the tokens that an identity has made, if an order says that it is not to be trusted any more.
func (tx *writeTx) distrust(ctx context.Context, maker pki.SPIFFEID, o revocation.Order) error {
	why := ""
	switch {
	case o.Action == revocation.Hold && o.State == pki.Suspended:
		why = "its maker was suspended"
	case o.Action == revocation.Revoke && o.State == pki.Retired:
		why = "its maker was retired"
	case o.Action == revocation.Revoke && distrusts(o.Reason):
		why = "a certificate of its maker was revoked (" + o.Reason.String() + ")"
	default:
		return nil
	}
	_, err := tx.revokeTokensOf(ctx, maker, why, ra.TokenRevocation{By: o.By, At: o.At})
	return err
}

// distrusts reports whether a reason says that what the holder of the certificate has done is not to be trusted.
func distrusts(r pki.Reason) bool { return r == pki.KeyCompromise || r == pki.PrivilegeWithdrawn }

// holderOf returns the identity of a key that a set selects by and is about to mark as compromised; zero if it is marked
// already, or the set does not mark it.
func (tx *writeTx) holderOf(ctx context.Context, s *setRow) (pki.SPIFFEID, error) {
	if s.Reason != pki.KeyCompromise || s.Key.IsZero() {
		return pki.SPIFFEID{}, nil
	}
	key, err := readKey(ctx, tx, s.Key)
	if err != nil || key.compromised {
		return pki.SPIFFEID{}, err
	}
	return key.identity, nil
}

// selectMakers finds the identities that have made tokens, one look in the index for each.
const selectMakers = `
	WITH RECURSIVE m (id) AS (
	    SELECT min(maker) FROM tokens
	    UNION ALL SELECT (SELECT min(maker) FROM tokens WHERE maker > m.id) FROM m WHERE m.id IS NOT NULL)
	SELECT n.spiffe_id FROM m JOIN identities n ON n.id = m.id`

// makersOf returns the identities that have made tokens and whose tokens a set revokes that is about to be ordered: the holder
// of a key that it marks, and if its records follow, those of which it revokes a certificate. Of other sets revokeFew sees
// which certificates they revoke.
func (tx *writeTx) makersOf(ctx context.Context, s setRow) ([]pki.SPIFFEID, error) {
	if s.Action != revocation.Revoke || !distrusts(s.Reason) {
		return nil, nil
	}
	holder, err := tx.holderOf(ctx, &s)
	if err != nil || s.Done {
		return []pki.SPIFFEID{holder}, err
	}
	if err := tx.QueryRowContext(ctx, newestCertificate).Scan(&s.mark); err != nil {
		return nil, err
	}
	revoked := []pki.SPIFFEID{holder}
	var all []pki.SPIFFEID
	rows, err := tx.QueryContext(ctx, selectMakers)
	err = engine.Each(rows, err, func(rows *sql.Rows) error {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		id, err := pki.ParseSPIFFEID(name)
		all = append(all, id)
		return err
	})
	for i := 0; i < len(all) && err == nil; i++ {
		var is bool
		if is, err = tx.revokesOne(ctx, s, all[i]); is {
			revoked = append(revoked, all[i])
		}
	}
	return revoked, err
}

// revokesOne reports whether a set changes the status of a certificate of an identity.
func (tx *writeTx) revokesOne(ctx context.Context, s setRow, id pki.SPIFFEID) (bool, error) {
	certs, err := readSubjects(ctx, tx, id, s.reach)
	if err != nil || len(certs) == 0 {
		return false, err
	}
	var ids []int64
	for _, c := range certs {
		ids = append(ids, c.id)
	}
	masks, err := openSets{s}.masks(ctx, tx, ids)
	for _, c := range certs {
		if _, changed := s.next(c.status); changed && masks[c.id] != 0 {
			return true, err
		}
	}
	return false, err
}

// distrustAll revokes the tokens of makers, for a set that has been ordered.
func (tx *writeTx) distrustAll(ctx context.Context, makers []pki.SPIFFEID, o revocation.Order) error {
	for _, maker := range makers {
		if maker.IsZero() {
			continue
		}
		if err := tx.distrust(ctx, maker, o); err != nil {
			return err
		}
	}
	return nil
}
