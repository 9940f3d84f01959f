// Package caller authorizes the callers of changes with what the store has recorded about them: their certificate, the
// state of their identity, their roles and labels. It reads them in the transaction of the change.
package caller

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// Select selects a certificate of an identity, with the state, roles and labels of the identity. Its parameters are in
// a table of their own, so that SQLite plans the join only once.
const Select = `
	WITH q AS MATERIALIZED (SELECT CAST(?1 AS BLOB) AS serial, CAST(?2 AS BLOB) AS issuer, ?3 AS spiffe_id)
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
	state, err := c.authenticate(ctx, q, caller, at)
	if err != nil {
		return err
	}
	if refusal := caller.Identity.CheckPermission(state.Identity.Roles, need); refusal != nil {
		return refusal
	}
	return nil
}

// AuthorizeServer refuses an actor whose certificate is expired or not good, or whose identity is not enrolled. It also
// refuses the name of a server that has never opened the store. The caller has compared the name with the actor.
func (c *Callers) AuthorizeServer(ctx context.Context, q engine.Querier, by pki.Actor, name string, at time.Time) error {
	if _, err := c.authenticate(ctx, q, by.Caller(), at); err != nil {
		return err
	}
	var has bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM servers WHERE name = ?)`, name).Scan(&has)
	if err == nil && !has {
		return rules.NoServer(name)
	}
	return err
}

// authenticate returns the state of a caller. It refuses a certificate that is expired or not good, and an identity that is
// not enrolled.
func (c *Callers) authenticate(ctx context.Context, q engine.Querier, caller pki.Caller, at time.Time) (pki.CallerState, error) {
	state, known := c.known[caller]
	if !known {
		var err error
		if state, err = read(ctx, q, caller); err != nil {
			return state, err
		}
		if c.known == nil {
			c.known = map[pki.Caller]pki.CallerState{}
		}
		c.known[caller] = state
	}
	return state, caller.Authorize(state, at)
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
	err := q.QueryRow(ctx, `SELECT labels FROM identities WHERE spiffe_id = ?`, id.String()).Scan(&text)
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
	row := q.QueryRow(ctx, Select, cert.Serial.Bytes(), cert.Issuer.Bytes(), caller.Identity.String())
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
