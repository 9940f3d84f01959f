package tables

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
)

// CreateIdentity registers an identity, or returns the registered one if it has the same kind and attributes.
func (r *RA) CreateIdentity(ctx context.Context, n ra.Registration, by pki.Actor) (ra.Identity, error) {
	id := n.Identity
	var have ra.Identity
	need := rules.RegistrationPermission(id.ID)
	err := r.db.writeOnce(ctx, "register an identity", by, need, id.CreatedAt, func(ctx context.Context, tx *writeTx) (none rules.Outcome, _ error) {
		err := tx.callers.CheckLabels(by, id.Labels)
		if err != nil {
			return none, err
		}
		have, err = readIdentity(ctx, tx, id.ID)
		if err == nil {
			return none, rules.CheckSameIdentity(have, id)
		}
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleIdentity {
			return none, err
		}
		have, err = tx.register(ctx, n, by)
		return none, err
	}, rereadIdentity(id.ID, &have))
	if err != nil {
		return ra.Identity{}, err
	}
	return have, nil
}

// register registers an identity that is not on record.
func (tx *writeTx) register(ctx context.Context, n ra.Registration, by pki.Actor) (ra.Identity, error) {
	if err := tx.checkSubjectFree(ctx, n.Identity); err != nil {
		return ra.Identity{}, err
	}
	if err := tx.checkTotal(ctx, n); err != nil {
		return ra.Identity{}, err
	}
	id := rules.NewIdentity(n.Identity)
	if err := tx.insertIdentity(ctx, id); err != nil {
		return ra.Identity{}, err
	}
	return id, tx.append(ctx, rules.RegisteredEntry(id, by))
}

// selectRegistered selects the number of identities that a rule of the policy has registered.
const selectRegistered = `SELECT identities FROM policy_rules WHERE name = ?`

// checkTotal refuses a new identity if its rule has registered its total before.
func (tx *writeTx) checkTotal(ctx context.Context, n ra.Registration) error {
	if n.Rule == "" || n.Total == 0 {
		return nil
	}
	var registered int
	if err := tx.QueryRow(ctx, selectRegistered, n.Rule).Scan(&registered); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if refusal := rules.CheckTotal(n, registered); refusal != nil {
		return refusal
	}
	return nil
}

// countRule counts a new identity for the rule that registers it, and returns the ID of the rule. It returns NULL if no
// rule does.
func (tx *writeTx) countRule(ctx context.Context, name string) (sql.NullInt64, error) {
	var rule sql.NullInt64
	if name == "" {
		return rule, nil
	}
	err := tx.QueryRow(ctx, `
		INSERT INTO policy_rules (name, identities) VALUES (?, 1)
		ON CONFLICT (name) DO UPDATE SET identities = policy_rules.identities + 1 RETURNING id`, name).Scan(&rule)
	return rule, err
}

func (tx *writeTx) insertIdentity(ctx context.Context, id ra.Identity) error {
	if err := rules.CheckAttributes(id); err != nil {
		return err
	}
	p, err := column.EncodeParticulars(id)
	if err != nil {
		return err
	}
	rule, err := tx.countRule(ctx, id.Rule)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO identities (spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at, subject, rule, roles)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id.ID.String(), id.Kind, id.Profile, p.Labels, p.DNSNames, p.IPAddresses, id.State, id.Revision, engine.Millis(id.CreatedAt),
		column.EncodeSubject(id.Subject), rule, id.Roles)
	if err != nil {
		return err
	}
	return tx.insertLabels(ctx, id)
}

// insertLabels inserts the rows by which an identity is found by its labels.
func (tx *writeTx) insertLabels(ctx context.Context, id ra.Identity) error {
	for name, value := range id.Labels {
		_, err := tx.Exec(ctx, `
			INSERT INTO identity_labels (name, value, identity) SELECT ?, ?, id FROM identities WHERE spiffe_id = ?`,
			name, value, id.ID.String())
		if err != nil {
			return err
		}
	}
	return nil
}

// checkSubjectFree refuses the subject of an identity if another identity has it.
func (tx *writeTx) checkSubjectFree(ctx context.Context, id ra.Identity) error {
	if id.Subject.IsZero() {
		return nil
	}
	holder, err := issuing.ReadHolder(ctx, tx, id.Subject, id.ID)
	if err != nil {
		return err
	}
	if refusal := rules.CheckSubjectFree(holder); refusal != nil {
		return refusal
	}
	return nil
}

// changeLabels replaces the labels of an identity. It refuses while a bulk revocation that selects by a label is open,
// because the change could add members to it or remove them.
func (tx *writeTx) changeLabels(ctx context.Context, have, id ra.Identity) error {
	if maps.Equal(have.Labels, id.Labels) {
		return nil
	}
	open, err := bulk.IsSelectingByLabel(ctx, tx)
	if err != nil {
		return err
	}
	if open {
		return rules.LabelsFrozen()
	}
	return tx.replaceLabels(ctx, have, id)
}

func (tx *writeTx) replaceLabels(ctx context.Context, have, id ra.Identity) error {
	for name, value := range have.Labels {
		if err := tx.ExecOne(ctx, `
			DELETE FROM identity_labels WHERE name = ? AND value = ? AND identity = (SELECT id FROM identities WHERE spiffe_id = ?)`,
			name, value, id.ID.String()); err != nil {
			return err
		}
	}
	return tx.insertLabels(ctx, id)
}

// UpdateIdentity replaces the profile, labels, names, roles and subject of an identity, in a new revision.
func (r *RA) UpdateIdentity(ctx context.Context, id ra.Identity, by pki.Actor, at time.Time) (ra.Identity, error) {
	var have ra.Identity
	err := r.db.writeOnce(ctx, "update an identity", by, rules.RegistrationPermission(id.ID), at, func(ctx context.Context, tx *writeTx) (none rules.Outcome, _ error) {
		var err error
		have, err = tx.updateIdentity(ctx, id, by, at)
		return none, err
	}, rereadIdentity(id.ID, &have))
	if err != nil {
		return ra.Identity{}, err
	}
	return have, nil
}

// rereadIdentity returns a function for writeOnce that reads the identity, for a repeated request.
func rereadIdentity(id pki.SPIFFEID, into *ra.Identity) func(context.Context, *writeTx, rules.Outcome) error {
	return func(ctx context.Context, tx *writeTx, _ rules.Outcome) error {
		var err error
		*into, err = readIdentity(ctx, tx, id)
		return err
	}
}

// updateIdentity updates an identity and returns the new record.
func (tx *writeTx) updateIdentity(ctx context.Context, id ra.Identity, by pki.Actor, at time.Time) (ra.Identity, error) {
	have, err := readIdentity(ctx, tx, id.ID)
	if err != nil {
		return have, err
	}
	if err := tx.callers.CheckLabels(by, have.Labels); err != nil {
		return have, err
	}
	next, changed, err := rules.UpdateIdentity(have, id)
	if err != nil || !changed {
		return have, err
	}
	if err := tx.checkUpdate(by, have, next); err != nil {
		return have, err
	}
	if err := tx.checkSubjectFree(ctx, next); err != nil {
		return have, err
	}
	if err := tx.changeLabels(ctx, have, id); err != nil {
		return have, err
	}
	if err := tx.setAttributes(ctx, next); err != nil {
		return have, err
	}
	if err := tx.append(ctx, rules.UpdatedEntry(next, by, at)); err != nil {
		return have, err
	}
	if why := rules.DistrustRoles(have, next); why != "" {
		_, err = tx.revokeTokensOf(ctx, id.ID, why, ra.TokenRevocation{By: by, At: at})
	}
	return next, err
}

// checkUpdate refuses an update of an identity that its caller is not allowed to make.
func (tx *writeTx) checkUpdate(by pki.Actor, have, next ra.Identity) error {
	if refusal := rules.CheckOwnRoles(by, have, next); refusal != nil {
		return refusal
	}
	return tx.callers.CheckLabels(by, next.Labels)
}

// setAttributes writes the profile, labels, names, subject, roles and revision of an identity.
func (tx *writeTx) setAttributes(ctx context.Context, id ra.Identity) error {
	p, err := column.EncodeParticulars(id)
	if err != nil {
		return err
	}
	return tx.ExecOne(ctx, `
		UPDATE identities SET profile = ?, labels = ?, dns_names = ?, ip_addresses = ?, subject = ?, roles = ?, revision = ? WHERE spiffe_id = ?`,
		id.Profile, p.Labels, p.DNSNames, p.IPAddresses, column.EncodeSubject(id.Subject), id.Roles, id.Revision, id.ID.String())
}

// Identity returns one identity.
func (r *RA) Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error) {
	const what = "read an identity"
	var row column.IdentityRow
	found, err := r.db.file.Find(ctx, what, selectIdentity, []any{id.String()}, row.Columns()...)
	if err == nil && !found {
		err = rules.NoIdentity(id)
	}
	if err != nil {
		return ra.Identity{}, err
	}
	have, err := row.Identity()
	return have, r.db.file.Fail(what, err)
}

// Identities returns a page of identities in the order of their IDs.
func (r *RA) Identities(ctx context.Context, f ra.IdentityFilter, at time.Time, after pki.SPIFFEID, limit int) ([]ra.Identity, pki.SPIFFEID, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, pki.SPIFFEID{}, err
	}
	var page []ra.Identity
	var next pki.SPIFFEID
	err := r.db.file.ReadMany(ctx, "list identities", func(ctx context.Context, tx engine.Querier) error {
		page = nil
		var q engine.Clause
		q.Add(`SELECT n.id, n.spiffe_id, (`)
		matchIdentity(&q, f, at)
		q.Add(`) FROM identities n WHERE n.spiffe_id > ? ORDER BY n.spiffe_id LIMIT ?`, after.String(), ra.MaxLooked+1)
		ids, last, err := readPage(ctx, tx, &q, limit, func(rows engine.Scanner) (listedRow[string], error) {
			var f listedRow[string]
			return f, rows.Scan(&f.id, &f.place, &f.matches)
		})
		if err != nil {
			return err
		}
		if last != "" {
			if next, err = pki.ParseSPIFFEID(last); err != nil {
				return err
			}
		}
		list, err := column.IDs(ids)
		if err != nil {
			return err
		}
		rows := engine.Query(ctx, tx, `SELECT `+column.Identity+` FROM identities n WHERE n.id IN (SELECT value FROM json_each(?)) ORDER BY n.spiffe_id`, list)
		return rows.Each(func(rows engine.Scanner) error {
			id, err := scanIdentity(rows)
			page = append(page, id)
			return err
		})
	})
	if err != nil {
		return nil, pki.SPIFFEID{}, err
	}
	return page, next, nil
}

// matchIdentity adds the condition that the identity n matches the filter.
func matchIdentity(q *engine.Clause, f ra.IdentityFilter, at time.Time) {
	q.Add(`TRUE`)
	oneOf(q, `n.kind`, numbers(f.Kinds))
	oneOf(q, `n.state`, numbers(f.States))
	if f.Profile != "" {
		q.Add(` AND n.profile = ?`, f.Profile)
	}
	if !f.Label.IsZero() {
		q.Add(` AND EXISTS (SELECT 1 FROM identity_labels l WHERE l.name = ? AND l.value = ? AND l.identity = n.id)`, f.Label.Name, f.Label.Value)
	}
	if f.WithoutUnexpired {
		q.Add(` AND NOT EXISTS (SELECT 1 FROM certificates m INDEXED BY certificates_by_identity WHERE m.identity = n.id AND m.not_after > ?)`, engine.Millis(at))
	}
	notRenewed(q, `n.id`, f.NotRenewedSince)
}

// notRenewed adds the condition that an identity has no certificate that was issued at the time since or later. It skips
// certificates that expired before that time, because they were also issued before it.
func notRenewed(q *engine.Clause, identity string, since time.Time) {
	if since.IsZero() {
		return
	}
	q.Add(` AND NOT EXISTS (
		SELECT 1 FROM certificates m INDEXED BY certificates_by_identity WHERE m.identity = `+identity+` AND m.not_after >= ? AND m.issued_at >= ?)`,
		engine.CeilMillis(since), engine.CeilMillis(since))
}

// selectIdentity selects an identity by its ID.
const selectIdentity = `
	WITH q AS MATERIALIZED (SELECT ?1 AS spiffe_id)
	SELECT ` + column.Identity + ` FROM q JOIN identities n ON n.spiffe_id = q.spiffe_id`

func readIdentity(ctx context.Context, tx engine.Querier, id pki.SPIFFEID) (ra.Identity, error) {
	have, err := scanIdentity(tx.QueryRow(ctx, selectIdentity, id.String()))
	if errors.Is(err, sql.ErrNoRows) {
		return ra.Identity{}, rules.NoIdentity(id)
	}
	return have, err
}

func scanIdentity(row engine.Scanner) (ra.Identity, error) {
	var r column.IdentityRow
	if err := row.Scan(r.Columns()...); err != nil {
		return ra.Identity{}, err
	}
	return r.Identity()
}
