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
	known    map[pki.Caller]pki.CallerState
	expected map[pki.Caller]bool // statements that run later read them
}

// Forget makes Authorize read callers again.
func (c *Callers) Forget() {
	clear(c.known)
	clear(c.expected)
}

// Expect reads the caller of a change in a statement that runs later, so that Authorize needs none, usually.
func (c *Callers) Expect(ctx context.Context, tx engine.Executor, by pki.Actor) error {
	caller := by.Caller()
	if c.expected[caller] || !by.NeedsAuthorization() || caller.IsZero() {
		return nil
	}
	if c.expected == nil {
		c.expected = map[pki.Caller]bool{}
	}
	c.expected[caller] = true
	return tx.QueryLater(ctx, Select, arguments(caller), func(row engine.Scanner) error {
		var r callerRow
		if err := r.scan(row); err != nil || r.revoking {
			return err // a bulk revocation is open, so Authorize reads more
		}
		c.know(caller, r.state)
		return nil
	})
}

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
		c.know(caller, state)
	}
	return state, caller.Authorize(state, at)
}

func (c *Callers) know(caller pki.Caller, state pki.CallerState) {
	if c.known == nil {
		c.known = map[pki.Caller]pki.CallerState{}
	}
	c.known[caller] = state
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

// callerRow is a row of Select.
type callerRow struct {
	id       int64
	state    pki.CallerState // without the open bulk revocations
	revoking bool            // whether there are some
}

// arguments returns the arguments of Select.
func arguments(c pki.Caller) []any {
	return []any{c.Certificate.Serial.Bytes(), c.Certificate.Issuer.Bytes(), c.Identity.String()}
}

func (r *callerRow) scan(row engine.Scanner) (err error) {
	var notBefore, notAfter, state, reason, version int64
	var revokedAt sql.NullInt64
	var labels []byte
	s := &r.state
	if err := row.Scan(&r.id, &notBefore, &notAfter, &state, &reason, &revokedAt, &version, &s.Identity.State, &s.Identity.Roles, &labels, &r.revoking); err != nil {
		return err
	}
	s.NotBefore, s.NotAfter = engine.FromMillis(notBefore), engine.FromMillis(notAfter)
	s.Status = column.DecodeStatus(state, reason, version, revokedAt)
	s.Identity.Labels, err = column.DecodeLabels(labels)
	return err
}

// read reads the state of a caller, with the open bulk revocations applied.
func read(ctx context.Context, q engine.Querier, caller pki.Caller) (pki.CallerState, error) {
	var r callerRow
	err := r.scan(q.QueryRow(ctx, Select, arguments(caller)...))
	if errors.Is(err, sql.ErrNoRows) {
		return r.state, caller.Certificate.NotOnRecord()
	}
	if err != nil || !r.revoking {
		return r.state, err
	}
	open, err := bulk.ReadOpen(ctx, q)
	if err != nil {
		return r.state, err
	}
	masks, err := open.Masks(ctx, q, []int64{r.id})
	r.state.Status = open.Status(r.state.Status, masks[r.id])
	return r.state, err
}
