// Package caller authorizes the callers of changes with what the store has recorded about them: their certificate, the
// state of their identity, their roles and labels. It reads them in the transaction of the change.
package caller

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// Select selects a certificate of an identity, with the state, roles and labels of the identity. Its parameters are in
// a table of their own, so that SQLite plans the join only once.
const Select = `
	WITH q AS MATERIALIZED (SELECT ?1 AS serial, ?2 AS issuer, ?3 AS spiffe_id)
	SELECT c.id, c.not_before, c.not_after, c.state, c.reason, c.revoked_at, c.version, n.state, n.roles, n.labels, ` + bulk.AnyOpen + `
	FROM q JOIN certificates c ON c.serial = q.serial AND c.issuer = (SELECT id FROM issuers WHERE issuer = q.issuer)
	JOIN identities n ON n.id = c.identity AND n.spiffe_id = q.spiffe_id`

// Callers authorizes the actors of one job of a transaction. It reads each caller once, until Forget is called. The zero
// value has read no caller.
type Callers struct {
	known map[pki.Caller]pki.CallerState
}

// Forget makes Authorize read callers again.
func (c *Callers) Forget() { clear(c.known) }

// Authorize refuses an actor that is not allowed to make a change at the given time: a caller whose certificate is
// expired or not good, whose identity is not enrolled, or whose roles do not grant the permission.
func (c *Callers) Authorize(ctx context.Context, q engine.Querier, by pki.Actor, need pki.Permission, at time.Time) error {
	if !by.NeedsAuthorization() {
		return nil
	}
	caller := by.Caller()
	if caller.IsZero() {
		return pki.NoCertificate()
	}
	state, known := c.known[caller]
	if !known {
		var err error
		if state, err = read(ctx, q, caller); err != nil {
			return err
		}
		if c.known == nil {
			c.known = map[pki.Caller]pki.CallerState{}
		}
		c.known[caller] = state
	}
	if err := caller.Authorize(state, at); err != nil {
		return err
	}
	if refusal := caller.Identity.CheckPermission(state.Identity.Roles, need); refusal != nil {
		return refusal
	}
	return nil
}

// CheckLabels refuses a registrar that may not act on an identity with the given labels. Authorize must have accepted
// the actor.
func (c *Callers) CheckLabels(by pki.Actor, labels map[string]string) error {
	caller := by.Caller()
	if refusal := caller.Identity.CheckLabels(c.known[caller].Identity, labels); refusal != nil {
		return refusal
	}
	return nil
}

// CheckLabelsOf is like CheckLabels for the labels of an identity. It reads them only if the actor's labels matter. An
// identity that is not on record has no labels.
func (c *Callers) CheckLabelsOf(ctx context.Context, q engine.Querier, by pki.Actor, id pki.SPIFFEID) error {
	if !c.known[by.Caller()].Identity.IsScoped() {
		return nil
	}
	var text []byte
	err := q.QueryRowContext(ctx, `SELECT labels FROM identities WHERE spiffe_id = ?`, id.String()).Scan(&text)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	labels, err := column.DecodeLabels(text)
	if err != nil {
		return err
	}
	return c.CheckLabels(by, labels)
}

// read reads the state of a caller, with the open bulk revocations applied.
func read(ctx context.Context, q engine.Querier, caller pki.Caller) (pki.CallerState, error) {
	var s pki.CallerState
	var id, notBefore, notAfter, state, reason, version int64
	var revokedAt sql.NullInt64
	var labels []byte
	var revoking bool
	cert := caller.Certificate
	row := q.QueryRowContext(ctx, Select, cert.Serial.Bytes(), cert.Issuer.Bytes(), caller.Identity.String())
	err := row.Scan(&id, &notBefore, &notAfter, &state, &reason, &revokedAt, &version, &s.Identity.State, &s.Identity.Roles, &labels, &revoking)
	if errors.Is(err, sql.ErrNoRows) {
		return s, cert.NotOnRecord()
	}
	if err != nil {
		return s, err
	}
	if s.Identity.Labels, err = column.DecodeLabels(labels); err != nil {
		return s, err
	}
	s.NotBefore, s.NotAfter = engine.FromMillis(notBefore), engine.FromMillis(notAfter)
	s.Status = column.DecodeStatus(state, reason, version, revokedAt)
	if !revoking {
		return s, nil
	}
	open, err := bulk.ReadOpen(ctx, q)
	if err != nil {
		return s, err
	}
	masks, err := open.Masks(ctx, q, []int64{id})
	s.Status = open.Status(s.Status, masks[id])
	return s, err
}
