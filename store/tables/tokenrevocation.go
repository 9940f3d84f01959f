package tables

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

const (
	// whyRevoked selects the cause for which the token t was revoked, alone or with all tokens of its creator. It is NULL if
	// the token was not revoked.
	whyRevoked = `coalesce(t.revoked, (SELECT v.reason FROM token_revocations v WHERE v.creator = t.creator AND v.era >= t.era ORDER BY v.era LIMIT 1))`
	// nextEra selects the era of the next token that the creator m creates. Revoking all tokens of a creator ends an era.
	nextEra = `coalesce((SELECT max(v.era) + 1 FROM token_revocations v WHERE v.creator = m.id), 0)`
)

// RevokeTokens revokes one token, or all tokens that an identity has created so far.
func (r *RA) RevokeTokens(ctx context.Context, v ra.TokenRevocation) (int, error) {
	var n int
	err := r.db.writeOnce(ctx, "revoke tokens", v.By, pki.MayRevoke, v.At, func(ctx context.Context, tx *writeTx) (out rules.Outcome, _ error) {
		err := rules.CheckTokenRevocation(v)
		if err != nil {
			return out, err
		}
		if v.ID != "" {
			n, err = tx.revokeToken(ctx, v)
		} else if _, err = readIdentity(ctx, tx, v.CreatedBy); err == nil {
			n, err = tx.revokeTokensOf(ctx, v.CreatedBy, rules.TokensRevokedOfAll, v)
		}
		return rules.Outcome{Valid: n}, err
	}, func(_ context.Context, _ *writeTx, have rules.Outcome) error {
		n = have.Valid
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// revokeToken revokes one token.
func (tx *writeTx) revokeToken(ctx context.Context, v ra.TokenRevocation) (int, error) {
	first, err := rules.TokenPrefix(v.ID)
	if err != nil {
		return 0, err
	}
	last := append(slices.Clone(first), bytes.Repeat([]byte{0xff}, 24)...)
	t, id, err := column.ScanToken(tx.QueryRow(ctx, `SELECT `+tokenColumns+` FROM tokens t WHERE t.token BETWEEN ? AND ?`, first, last))
	if errors.Is(err, sql.ErrNoRows) {
		return 0, rules.NoTokenNamed(v.ID)
	}
	if err != nil {
		return 0, err
	}
	revokes, usable := rules.RevokesToken(&t, v.At)
	if !revokes {
		return 0, nil
	}
	if err := tx.ExecOne(ctx, `UPDATE tokens SET revoked = ? WHERE id = ?`, rules.TokenRevokedAlone, id); err != nil {
		return 0, err
	}
	n := 0
	if usable {
		n = 1
	}
	return n, tx.append(ctx, rules.TokenRevokedEntry(v, &t, n))
}

// revokeTokensOf revokes the tokens that an identity has created since its tokens were last revoked, and its unused external
// keys. It returns how many of the tokens could have been used.
func (tx *writeTx) revokeTokensOf(ctx context.Context, creator pki.SPIFFEID, why string, v ra.TokenRevocation) (int, error) {
	if err := acmetable.RevokeKeysOf(ctx, tx.Tx, creator, why, v.By, v.At); err != nil {
		return 0, err
	}
	var row, era, next int64
	err := tx.QueryRow(ctx, `
		SELECT m.id, t.era, `+nextEra+` FROM identities m JOIN tokens t ON t.creator = m.id WHERE m.spiffe_id = ? ORDER BY t.id DESC LIMIT 1`,
		creator.String()).Scan(&row, &era, &next)
	if errors.Is(err, sql.ErrNoRows) || err == nil && era < next {
		return 0, nil // no tokens, or none since the last revocation
	}
	if err != nil {
		return 0, err
	}
	var n int
	err = tx.QueryRow(ctx, `
		SELECT count(*) FROM (SELECT era, spent, revoked, expires_at FROM tokens WHERE creator = ? ORDER BY id DESC LIMIT ?) t
		WHERE era = ? AND spent = 0 AND revoked IS NULL AND expires_at > ?`,
		row, ra.MaxTokensCounted, era, engine.Millis(v.At)).Scan(&n)
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO token_revocations (creator, era, reason) VALUES (?, ?, ?)`, row, next, why); err != nil {
		return 0, err
	}
	return n, tx.append(ctx, rules.TokensRevokedEntry(v, creator, why, n))
}

// distrust revokes the tokens that an identity has created, if rules.Distrust returns a cause.
func (tx *writeTx) distrust(ctx context.Context, creator pki.SPIFFEID, o revocation.Change) error {
	why := rules.Distrust(o)
	if why == "" {
		return nil
	}
	_, err := tx.revokeTokensOf(ctx, creator, why, ra.TokenRevocation{By: o.Actor, At: o.At})
	return err
}

// holderOf returns the identity of the key that a bulk revocation is about to mark as compromised. It returns zero if the key is
// already marked, or if the bulk revocation does not mark it.
func (tx *writeTx) holderOf(ctx context.Context, row *bulk.Row) (pki.SPIFFEID, error) {
	if !rules.MarksKey(row.BulkRequest) {
		return pki.SPIFFEID{}, nil
	}
	key, err := bulk.ReadKey(ctx, tx, row.Key)
	if err != nil || key.Compromised {
		return pki.SPIFFEID{}, err
	}
	return key.Identity, nil
}

// selectCreators selects the identities that have created tokens or external keys, with one index lookup for each.
const selectCreators = `
	WITH RECURSIVE m (id) AS (
	    SELECT min(creator) FROM tokens
	    UNION ALL SELECT (SELECT min(creator) FROM tokens WHERE creator > m.id) FROM m WHERE m.id IS NOT NULL),
	k (id) AS (
	    SELECT min(creator) FROM acme_external_keys
	    UNION ALL SELECT (SELECT min(creator) FROM acme_external_keys WHERE creator > k.id) FROM k WHERE k.id IS NOT NULL)
	SELECT n.spiffe_id FROM (SELECT id FROM m UNION SELECT id FROM k) c JOIN identities n ON n.id = c.id`

// distrustedCreators returns the identities whose tokens a new bulk revocation revokes. One is the identity of a key that it
// marks. If the bulk revocation is applied in steps, all identities with a member that it revokes are included. Otherwise
// applyBulkAtOnce revokes the tokens of the members' identity.
func (tx *writeTx) distrustedCreators(ctx context.Context, row bulk.Row) ([]pki.SPIFFEID, error) {
	if row.Action != revocation.Revoke || !rules.Distrusts(row.Reason) {
		return nil, nil
	}
	holder, err := tx.holderOf(ctx, &row)
	if err != nil || row.Done {
		return []pki.SPIFFEID{holder}, err
	}
	if err := tx.QueryRow(ctx, bulk.NewestCertificate).Scan(&row.Mark); err != nil {
		return nil, err
	}
	revoked := []pki.SPIFFEID{holder}
	var all []pki.SPIFFEID
	rows := engine.Query(ctx, tx, selectCreators)
	err = rows.Each(func(rows engine.Scanner) error {
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
		if is, err = row.ChangesAnyOf(ctx, tx, all[i]); is {
			revoked = append(revoked, all[i])
		}
	}
	return revoked, err
}

// distrustAll revokes the tokens of creators, for a new bulk revocation.
func (tx *writeTx) distrustAll(ctx context.Context, creators []pki.SPIFFEID, o revocation.Change) error {
	for _, creator := range creators {
		if creator.IsZero() {
			continue
		}
		if err := tx.distrust(ctx, creator, o); err != nil {
			return err
		}
	}
	return nil
}
