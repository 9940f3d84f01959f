package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// guarded is what a guard has found, by row: what consume changes. Zero stands for nothing to change.
type guarded struct {
	identity    int64
	token       int64
	predecessor int64
}

// checkGuard reads whether everything still holds that was true when the certificate was decided. What does not is a
// *pki.Refusal.
func (tx *writeTx) checkGuard(ctx context.Context, r ca.Record, at time.Time) (guarded, error) {
	var g guarded
	if r.Guard.Key != r.KeyHash {
		return g, pki.Refuse(pki.RuleRequest, "ask again", "the certificate was decided for another key")
	}
	var err error
	if g.identity, err = tx.checkIdentity(ctx, r); err != nil {
		return g, err
	}
	if !r.Guard.Token.IsZero() {
		if g.token, err = tx.checkToken(ctx, r, g.identity, at); err != nil {
			return g, err
		}
	}
	if !r.Guard.Predecessor.IsZero() {
		if g.predecessor, err = tx.checkPredecessor(ctx, r.Guard); err != nil {
			return g, err
		}
	}
	return g, checkKey(ctx, tx.Tx, r.Guard.Key, g.identity)
}

// checkIdentity looks up the record's identity, which has to be registered also where no guard asks for it, and that
// its request ID is new. A repeated request comes first: its caller needs to hear that the answer is on record, not
// that answering it has changed the identity.
func (tx *writeTx) checkIdentity(ctx context.Context, r ca.Record) (int64, error) {
	var id, generation int64
	var state pki.IdentityState
	var answered []byte
	row := tx.QueryRowContext(ctx, `
		SELECT id, state, generation,
		       (SELECT key_hash FROM certificates WHERE identity = identities.id AND request = ?)
		FROM identities WHERE spiffe_id = ?`, optional(r.RequestID), r.Identity.String())
	err := row.Scan(&id, &state, &generation, &answered)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, noIdentity(r.Identity)
	}
	if err != nil {
		return 0, err
	}
	if answered != nil {
		return 0, pki.Refuse(pki.RuleRequestReused, "ask again for the certificate on record, or draw a new request ID for another one",
			"the request ID was answered with a certificate before")
	}
	if r.Guard.Identity.IsZero() && !r.Guard.Enrolls {
		return id, nil
	}
	if r.Guard.Identity != r.Identity {
		return 0, pki.Refuse(pki.RuleIdentity, "ask again", "the certificate of %s was decided for %s", r.Identity, r.Guard.Identity)
	}
	if state != pki.Registered && state != pki.Enrolled {
		return 0, pki.Refuse(pki.RuleIdentityState, "ask an operator", "%s is %s", r.Identity, state)
	}
	if uint64(generation) != r.Guard.Generation { //nolint:gosec // generations count up from 1
		return 0, pki.Refuse(pki.RuleChanged, "ask again", "%s changed while the request was under way", r.Identity)
	}
	return id, nil
}

// checkToken does not say which of its conditions failed: what the caller may know of a token is that it does not serve.
func (tx *writeTx) checkToken(ctx context.Context, r ca.Record, identity int64, at time.Time) (int64, error) {
	var id, owner, expires int64
	var spent bool
	var request, key []byte
	row := tx.QueryRowContext(ctx, `SELECT id, identity, expires_at, spent, request, key_hash FROM tokens WHERE token = ?`,
		r.Guard.Token.Bytes())
	err := row.Scan(&id, &owner, &expires, &spent, &request, &key)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	if err != nil || spent || millis(at) >= expires || owner != identity {
		return 0, pki.Refuse(pki.RuleToken, "ask an operator for a new token", "the enrollment token is unknown, expired or spent")
	}
	if string(request) != string(r.RequestID.Bytes()) || string(key) != string(r.KeyHash.Bytes()) {
		return 0, pki.Refuse(pki.RuleTokenBound, "repeat the first request, or ask an operator for a new token",
			"the enrollment token is bound to another request or key")
	}
	return id, nil
}

func (tx *writeTx) checkPredecessor(ctx context.Context, g pki.Guard) (int64, error) {
	var id int64
	var state pki.State
	var successor []byte
	row := tx.QueryRowContext(ctx, `
		SELECT c.id, c.state, c.successor FROM certificates c JOIN issuers i ON i.id = c.issuer
		WHERE c.serial = ? AND i.issuer = ? AND c.identity IS NOT NULL`,
		g.Predecessor.Serial.Bytes(), g.Predecessor.Issuer.Bytes())
	err := row.Scan(&id, &state, &successor)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, pki.Refuse(pki.RulePredecessor, "enroll with a new token", "the certificate to renew, %s, is not on record", g.Predecessor.Serial)
	}
	if err != nil {
		return 0, err
	}
	if state != pki.Good {
		return 0, pki.Refuse(pki.RuleRevoked, "ask an operator: a held certificate can be released, a revoked one needs a new enrollment",
			"the certificate to renew, %s, is %s", g.Predecessor.Serial, state)
	}
	if successor != nil && string(successor) != string(g.Key.Bytes()) {
		return 0, pki.Refuse(pki.RuleClone, "find out who holds a copy of the credential, then enroll again",
			"certificate %s was renewed before, with another key", g.Predecessor.Serial)
	}
	return id, nil
}

// checkKey refuses a key that this identity must not have certified. An identity that is not registered is 0.
func checkKey(ctx context.Context, tx *sql.Tx, key pki.KeyHash, identity int64) error {
	var compromised, reserved, foreign bool
	row := tx.QueryRowContext(ctx, `
		SELECT EXISTS (SELECT 1 FROM compromised_keys WHERE key_hash = ?1),
		       EXISTS (SELECT 1 FROM ca_certificates WHERE key_hash = ?1),
		       EXISTS (SELECT 1 FROM certificates
		               WHERE substr(key_hash, 1, 8) = substr(?1, 1, 8) AND key_hash = ?1 AND identity <> ?2)`,
		key.Bytes(), identity)
	if err := row.Scan(&compromised, &reserved, &foreign); err != nil {
		return err
	}
	const fix = "make a new key"
	switch {
	case compromised:
		return pki.Refuse(pki.RuleKeyCompromised, fix, "the key was revoked as compromised")
	case reserved:
		return pki.Refuse(pki.RuleKeyReserved, fix, "the key is that of a CA")
	case foreign:
		return pki.Refuse(pki.RuleKeyForeign, fix, "the key is certified for another identity")
	default:
		return nil
	}
}

// consume uses up what a guard has found. It is the same transaction that found it, so nothing can have changed.
func (tx *writeTx) consume(ctx context.Context, guard pki.Guard, g guarded) error {
	if guard.Enrolls {
		if err := tx.execOne(ctx, `UPDATE identities SET state = 2, generation = generation + 1 WHERE id = ?`, g.identity); err != nil {
			return err
		}
	}
	if g.token != 0 {
		if err := tx.execOne(ctx, `UPDATE tokens SET spent = 1 WHERE id = ?`, g.token); err != nil {
			return err
		}
	}
	if g.predecessor != 0 {
		return tx.execOne(ctx, `UPDATE certificates SET successor = ? WHERE id = ?`, guard.Key.Bytes(), g.predecessor)
	}
	return nil
}

func noIdentity(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleIdentity, "register it first (brevet identity create)", "there is no identity %s", id)
}
