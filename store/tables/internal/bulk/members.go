package bulk

import (
	"context"
	"database/sql"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// addIsMember adds the condition that the certificate c is a member. The unary plus keeps SQLite from using the indexes of
// these columns, which would scan all certificates.
func (r *Row) addIsMember(q *engine.Clause) { r.addIsMemberWithLabel(q, r.Label) }

// addIsMemberWithLabel is like addIsMember, but checks the given label instead of that of the selection. If label is zero, the
// caller has already restricted the query to identities with the label.
func (r *Row) addIsMemberWithLabel(q *engine.Clause, label pki.Label) {
	q.Add(`(+c.id <= ? AND +c.not_after >= ? AND (`, r.Mark, engine.Millis(r.Reach))
	r.AddIsSelected(q, "c", label)
	if rules.Spreads(r.BulkRequest) {
		q.Add(` OR EXISTS (SELECT 1 FROM certificates m WHERE m.identity = c.identity AND m.key = c.key AND +m.id <= ? AND +m.not_after >= ? AND `,
			r.Mark, engine.Millis(r.Reach))
		r.AddIsSelected(q, "m", label)
		q.Add(`)`)
	}
	q.Add(`))`)
}

// AddIsSelected adds the condition that the certificate c, an alias in the statement, matches the selection with the given
// label. It does not check the lineage: a bulk revocation that selects a lineage is applied at once.
func (r *Row) AddIsSelected(q *engine.Clause, c string, label pki.Label) {
	q.Add(c + `.identity IS NOT NULL`)
	if !r.Issuer.IsZero() {
		q.Add(` AND +`+c+`.issuer = (SELECT id FROM issuers WHERE issuer = ?)`, r.Issuer.Bytes())
	}
	if !r.Identity.IsZero() {
		q.Add(` AND +`+c+`.identity = (SELECT id FROM identities WHERE spiffe_id = ?)`, r.Identity.String())
	}
	if !r.Key.IsZero() {
		q.Add(` AND `+c+`.key = ?`, column.KeyID(r.Key))
	}
	if r.Profile != "" {
		q.Add(` AND `+c+`.profile = ?`, r.Profile)
	}
	if !r.IssuedFrom.IsZero() {
		q.Add(` AND +`+c+`.issued_at >= ?`, engine.CeilMillis(r.IssuedFrom))
	}
	if !r.IssuedUntil.IsZero() {
		q.Add(` AND +`+c+`.issued_at < ?`, engine.CeilMillis(r.IssuedUntil))
	}
	if !label.IsZero() {
		q.Add(` AND EXISTS (SELECT 1 FROM identity_labels l WHERE l.name = ? AND l.value = ? AND l.identity = `+c+`.identity)`, label.Name, label.Value)
	}
}

// AddFromMembers adds the tables and conditions by which members are searched: the certificates of an identity, of a key's
// identity, of the identities with a label, or those issued in a period. Otherwise it adds all certificates that have not
// expired. In the statement, a member is c.
func (r *Row) AddFromMembers(q *engine.Clause) {
	const ofIdentity = ` FROM certificates c INDEXED BY certificates_by_identity WHERE c.identity = `
	switch {
	case !r.Identity.IsZero():
		q.Add(ofIdentity+`(SELECT id FROM identities WHERE spiffe_id = ?) AND c.not_after >= ? AND `, r.Identity.String(), engine.Millis(r.Reach))
	case !r.Key.IsZero():
		q.Add(ofIdentity+`(SELECT identity FROM keys WHERE id = ?) AND c.not_after >= ? AND `, column.KeyID(r.Key), engine.Millis(r.Reach))
	case !r.Label.IsZero():
		q.Add(` FROM identity_labels d CROSS JOIN certificates c ON c.identity = d.identity WHERE d.name = ? AND d.value = ? AND `, r.Label.Name, r.Label.Value)
		r.addIsMemberWithLabel(q, pki.Label{})
		return
	case !r.IssuedFrom.IsZero() && !rules.Spreads(r.BulkRequest):
		q.Add(` FROM certificates c INDEXED BY certificates_by_issue WHERE c.issued_at >= ? AND `, engine.CeilMillis(r.IssuedFrom))
		if !r.IssuedUntil.IsZero() {
			q.Add(`c.issued_at < ? AND `, engine.CeilMillis(r.IssuedUntil))
		}
	default:
		q.Add(` FROM certificates c INDEXED BY certificates_by_expiry WHERE c.not_after >= ? AND `, engine.Millis(r.Reach))
	}
	r.addIsMember(q)
}

// member is a certificate that a bulk revocation selects.
type member struct {
	id     int64
	change pki.StatusChange // with the status after the bulk revocation
	isNew  bool             // the bulk revocation changes it
}

// eachMember calls visit for each certificate that a bulk revocation selects. The earlier open ones are applied first. During
// a long query it checks ctx from time to time.
func (r *Row) eachMember(ctx context.Context, q engine.Querier, before Open, visit func(member) error) error {
	issuers, err := ReadIssuers(ctx, q)
	if err != nil {
		return err
	}
	var c engine.Clause
	c.Add(`SELECT c.id, c.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.version, `)
	before.AddMask(&c)
	r.AddFromMembers(&c)
	rows := c.Query(ctx, q)
	var serial sql.RawBytes
	change := r.Change()
	return rows.Each(func(rows engine.Scanner) error {
		var m member
		var issuer, notAfter int64
		var revokedAt sql.NullInt64
		var mask uint64
		st := &m.change.Status
		if err := rows.Scan(&m.id, &issuer, &serial, &notAfter, &st.State, &st.Reason, &revokedAt, &st.Version, &mask); err != nil {
			return err
		}
		var err error
		if m.change.Ref.Serial, err = pki.SerialFromBytes(serial); err != nil {
			return err
		}
		m.change.Ref.Issuer, m.change.NotAfter, st.RevokedAt = issuers[issuer], engine.FromMillis(notAfter), engine.RestoreMillis(revokedAt)
		*st, m.isNew = rules.NextMember(before.Status(*st, mask), change)
		return visit(m)
	})
}

// ChangesAny reports whether a new bulk revocation would change a certificate, after the open ones. It sets the mark of r.
func (r *Row) ChangesAny(ctx context.Context, q engine.Querier, before Open) (bool, error) {
	if err := q.QueryRow(ctx, NewestCertificate).Scan(&r.Mark); err != nil {
		return false, err
	}
	found := false
	err := r.eachMember(ctx, q, before, func(m member) error {
		if m.isNew {
			found = true
			return engine.ErrStop
		}
		return nil
	})
	return found, err
}

// ChangesAnyOf reports whether a bulk revocation changes the status of a certificate of an identity.
func (r *Row) ChangesAnyOf(ctx context.Context, q engine.Querier, id pki.SPIFFEID) (bool, error) {
	certs, err := CertificatesOf(ctx, q, id, r.Reach)
	if err != nil || len(certs) == 0 {
		return false, err
	}
	var ids []int64
	for _, c := range certs {
		ids = append(ids, c.ID)
	}
	masks, err := openOf(*r).Masks(ctx, q, ids)
	for _, c := range certs {
		if _, changed := r.Next(c.Status); changed && masks[c.ID] != 0 {
			return true, err
		}
	}
	return false, err
}

// Check refuses a selection by an issuer, identity, key or certificate that is not on record. It reports whether the bulk
// revocation may have more members than one transaction changes. It refuses a lineage with so many.
func (r *Row) Check(ctx context.Context, q engine.Querier) (many bool, err error) {
	if err := r.CheckNamed(ctx, q); err != nil {
		return false, err
	}
	if !r.OfOneIdentity() {
		return true, nil
	}
	many, err = r.IsMany(ctx, q)
	if err == nil && many && !r.LineageOf.IsZero() {
		err = rules.LongLineage(r.LineageOf.Serial)
	}
	return many, err
}

// CheckNamed refuses a selection by an issuer or an identity that is not on record. The query for members checks a key or a
// certificate in the selection.
func (r *Row) CheckNamed(ctx context.Context, q engine.Querier) error {
	if !r.Issuer.IsZero() {
		var known bool
		if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM issuers WHERE issuer = ?)`, r.Issuer.Bytes()).Scan(&known); err != nil {
			return err
		}
		if !known {
			return rules.NoIssuer(r.Issuer)
		}
	}
	if r.Identity.IsZero() {
		return nil
	}
	var known bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM identities WHERE spiffe_id = ?)`, r.Identity.String()).Scan(&known); err != nil {
		return err
	}
	if !known {
		return rules.NoIdentity(r.Identity)
	}
	return nil
}

// Count returns the number of certificates that a new bulk revocation would change. It sets the mark of r.
func (r *Row) Count(ctx context.Context, q engine.Querier) (revocation.Affected, error) {
	var n revocation.Affected
	if err := q.QueryRow(ctx, NewestCertificate).Scan(&r.Mark); err != nil {
		return n, err
	}
	many, err := r.Check(ctx, q)
	if err != nil {
		return n, err
	}
	if !many {
		few, err := r.Few(ctx, q)
		for _, c := range few {
			if _, changed := r.Next(c.Status); changed {
				n.Add(c.NotAfter, r.At)
			}
		}
		return n, err
	}
	before, err := ReadOpen(ctx, q)
	if err != nil {
		return n, err
	}
	err = r.eachMember(ctx, q, before, func(m member) error {
		if m.isNew {
			n.Add(m.change.NotAfter, r.At)
		}
		return nil
	})
	return n, err
}

// notifyBatch is the number of statuses in one notification.
const notifyBatch = 4096

// Notify calls notify with the statuses of all members after the bulk revocation, in batches. It returns the members whose
// records are to be changed.
func (r *Row) Notify(ctx context.Context, q engine.Querier, notify func([]pki.StatusChange)) (Remaining, error) {
	left := Remaining{Progress: r.Progress}
	before, err := readOpenBefore(ctx, q, r.ID)
	if err != nil {
		return left, err
	}
	batch := make([]pki.StatusChange, 0, notifyBatch)
	err = r.eachMember(ctx, q, before, func(m member) error {
		if m.isNew {
			left.Rows = append(left.Rows, m.id)
			if m.change.NotAfter.Before(r.At) {
				left.Expired++
			}
		}
		if batch = append(batch, m.change); len(batch) == notifyBatch {
			notify(batch)
			batch = batch[:0]
		}
		return nil
	})
	if err == nil && len(batch) > 0 {
		notify(batch)
	}
	slices.Sort(left.Rows)
	return left, err
}

// ReadIssuers returns the issuers by their row IDs.
func ReadIssuers(ctx context.Context, q engine.Querier) (map[int64]pki.IssuerID, error) {
	issuers := map[int64]pki.IssuerID{}
	rows := engine.Query(ctx, q, `SELECT id, issuer FROM issuers`)
	err := rows.Each(func(rows engine.Scanner) error {
		var id int64
		var issuer []byte
		if err := rows.Scan(&id, &issuer); err != nil {
			return err
		}
		var err error
		issuers[id], err = pki.IssuerIDFromBytes(issuer)
		return err
	})
	return issuers, err
}
