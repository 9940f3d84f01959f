package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// clause is a part of an SQL statement with its arguments, in order.
type clause struct {
	text strings.Builder
	args []any
}

func (c *clause) add(text string, args ...any) {
	c.text.WriteString(text)
	c.args = append(c.args, args...)
}

// setRow is the row of a bulk revocation. A certificate's row ID says whether it can be a member.
type setRow struct {
	revocation.BulkRevocation
	mark     int64     // the row ID of the last certificate that can be a member
	reach    time.Time // the earliest NotAfter of a member
	progress int64     // the row ID of the last certificate that was changed
}

// recorded returns the bulk revocation for a log entry.
func (s *setRow) recorded() rules.RecordedBulk {
	return rules.RecordedBulk{BulkRevocation: s.BulkRevocation, Mark: s.mark, Reach: s.reach, Progress: s.progress}
}

// order returns the change that the bulk revocation makes to each member.
func (s *setRow) order() revocation.Change { return rules.BulkOrder(s.BulkRequest) }

// next returns the new status of a member, and reports whether it differs from before.
func (s *setRow) next(before pki.Status) (pki.Status, bool) {
	return rules.NextMember(before, s.order())
}

// member adds the condition that the certificate c is a member. The unary plus keeps SQLite from using the indexes of these
// columns, which would scan all certificates.
func (s *setRow) member(q *clause) { s.memberAmong(q, s.Label) }

// memberAmong is like member, but checks the given label instead of that of the selection. If label is zero, the caller has
// already restricted the query to identities with the label.
func (s *setRow) memberAmong(q *clause, label pki.Label) {
	q.add(`(+c.id <= ? AND +c.not_after >= ? AND (`, s.mark, engine.Millis(s.reach))
	s.selected(q, "c", label)
	if rules.Spreads(s.BulkRequest) {
		q.add(` OR EXISTS (SELECT 1 FROM certificates m WHERE m.identity = c.identity AND m.key = c.key AND +m.id <= ? AND +m.not_after >= ? AND `,
			s.mark, engine.Millis(s.reach))
		s.selected(q, "m", label)
		q.add(`)`)
	}
	q.add(`))`)
}

// selected adds the condition that a certificate matches the selection. It does not check the lineage: a bulk revocation
// that selects a lineage is applied at once.
func (s *setRow) selected(q *clause, c string, label pki.Label) {
	q.add(c + `.identity IS NOT NULL`)
	if !s.Issuer.IsZero() {
		q.add(` AND +`+c+`.issuer = (SELECT id FROM issuers WHERE issuer = ?)`, s.Issuer.Bytes())
	}
	if !s.Identity.IsZero() {
		q.add(` AND +`+c+`.identity = (SELECT id FROM identities WHERE spiffe_id = ?)`, s.Identity.String())
	}
	if !s.Key.IsZero() {
		q.add(` AND `+c+`.key = ?`, keyID(s.Key))
	}
	if s.Profile != "" {
		q.add(` AND `+c+`.profile = ?`, s.Profile)
	}
	if !s.IssuedFrom.IsZero() {
		q.add(` AND +`+c+`.issued_at >= ?`, ceilMillis(s.IssuedFrom))
	}
	if !s.IssuedUntil.IsZero() {
		q.add(` AND +`+c+`.issued_at < ?`, ceilMillis(s.IssuedUntil))
	}
	if !label.IsZero() {
		q.add(` AND EXISTS (SELECT 1 FROM identity_labels l WHERE l.name = ? AND l.value = ? AND l.identity = `+c+`.identity)`, label.Name, label.Value)
	}
}

// ceilMillis rounds t up to a whole millisecond, because issue times are whole milliseconds.
func ceilMillis(t time.Time) int64 { return engine.Millis(t.Add(time.Millisecond - 1)) }

// among adds the tables and conditions by which members are searched: the certificates of an identity, of a key's identity,
// of the identities with a label, or those issued in a period. Otherwise it adds all certificates that have not expired.
func (s *setRow) among(q *clause) {
	const ofIdentity = ` FROM certificates c INDEXED BY certificates_by_identity WHERE c.identity = `
	switch {
	case !s.Identity.IsZero():
		q.add(ofIdentity+`(SELECT id FROM identities WHERE spiffe_id = ?) AND c.not_after >= ? AND `, s.Identity.String(), engine.Millis(s.reach))
	case !s.Key.IsZero():
		q.add(ofIdentity+`(SELECT identity FROM keys WHERE id = ?) AND c.not_after >= ? AND `, keyID(s.Key), engine.Millis(s.reach))
	case !s.Label.IsZero():
		q.add(` FROM identity_labels d CROSS JOIN certificates c ON c.identity = d.identity WHERE d.name = ? AND d.value = ? AND `, s.Label.Name, s.Label.Value)
		s.memberAmong(q, pki.Label{})
		return
	case !s.IssuedFrom.IsZero() && !rules.Spreads(s.BulkRequest):
		q.add(` FROM certificates c INDEXED BY certificates_by_issue WHERE c.issued_at >= ? AND `, ceilMillis(s.IssuedFrom))
		if !s.IssuedUntil.IsZero() {
			q.add(`c.issued_at < ? AND `, ceilMillis(s.IssuedUntil))
		}
	default:
		q.add(` FROM certificates c INDEXED BY certificates_by_expiry WHERE c.not_after >= ? AND `, engine.Millis(s.reach))
	}
	s.member(q)
}

// openSets holds the bulk revocations that are not completely applied, oldest first, and their changes.
type openSets struct {
	sets   []setRow
	orders rules.OpenBulk
}

func openSetsOf(sets ...setRow) openSets {
	open := openSets{sets: sets}
	for i := range sets {
		open.orders = append(open.orders, sets[i].order())
	}
	return open
}

func (open openSets) none() bool { return len(open.sets) == 0 }

// anyOpen is an SQL expression that is true if there are open bulk revocations.
const anyOpen = `EXISTS (SELECT 1 FROM revocation_sets WHERE done = 0)`

func readOpenSets(ctx context.Context, q engine.Querier) (openSets, error) {
	sets, err := querySets(ctx, q, `WHERE s.done = 0 ORDER BY s.id`)
	return openSetsOf(sets...), err
}

// repeats returns the ID of the open bulk revocation that another one repeats (see rules.Repeats), and zero if there is none.
func (open openSets) repeats(s *setRow) int64 {
	for _, o := range slices.Backward(open.sets) {
		if rules.Repeats(o.BulkRequest, s.BulkRequest) {
			return o.ID
		}
	}
	return 0
}

// mask adds an integer expression. Bit i is set if the certificate c is a member of the i-th open bulk revocation.
func (open openSets) mask(q *clause) {
	q.add(`(0`)
	for i := range open.sets {
		q.add(` | (((`)
		open.sets[i].member(q)
		q.add(`) IS TRUE) << ?)`, i)
	}
	q.add(`)`)
}

// masks returns the masks of certificates by their row IDs.
func (open openSets) masks(ctx context.Context, q engine.Querier, ids []int64) (map[int64]uint64, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	var c clause
	c.add(`SELECT c.id, `)
	open.mask(&c)
	c.add(` FROM json_each(?) j CROSS JOIN certificates c ON c.id = j.value`, string(list))
	masks := map[int64]uint64{}
	rows := engine.Query(ctx, q, c.text.String(), c.args...)
	err = rows.Each(func(rows *sql.Rows) error {
		var id int64
		var mask uint64
		if err := rows.Scan(&id, &mask); err != nil {
			return err
		}
		masks[id] = mask
		return nil
	})
	return masks, err
}

// compromise reports whether an open bulk revocation compromises a key of an identity.
func (open openSets) compromise(ctx context.Context, q engine.Querier, key, identity int64) (bool, error) {
	for i := range open.sets {
		if open.sets[i].Reason != pki.KeyCompromise {
			continue
		}
		var c clause
		c.add(`SELECT EXISTS (SELECT 1 FROM certificates c WHERE c.identity = ? AND c.key = ? AND `, identity, key)
		open.sets[i].member(&c)
		c.add(`)`)
		var found bool
		if err := q.QueryRowContext(ctx, c.text.String(), c.args...).Scan(&found); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

// member is a certificate that a bulk revocation selects.
type member struct {
	id     int64
	change pki.StatusChange // with the status after the bulk revocation
	isNew  bool             // the bulk revocation changes it
}

// eachMember calls a function for each certificate that a bulk revocation selects. The earlier open ones are applied first.
// During a long query it checks ctx from time to time.
func (s *setRow) eachMember(ctx context.Context, q engine.Querier, before openSets, visit func(member) error) error {
	issuers, err := readIssuers(ctx, q)
	if err != nil {
		return err
	}
	var c clause
	c.add(`SELECT c.id, c.issuer, c.serial, c.not_after, c.state, c.reason, c.revoked_at, c.version, `)
	before.mask(&c)
	s.among(&c)
	rows := engine.Query(ctx, q, c.text.String(), c.args...)
	var serial sql.RawBytes
	order := s.order()
	return rows.Each(func(rows *sql.Rows) error {
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
		*st, m.isNew = rules.NextMember(before.orders.Status(*st, mask), order)
		return visit(m)
	})
}

// errStopped ends a read early. It is not reported to the caller.
var errStopped = errors.New("stopped")

// changesAny reports whether a new bulk revocation would change a certificate, after the open ones.
func (s *setRow) changesAny(ctx context.Context, q engine.Querier, before openSets) (bool, error) {
	if err := q.QueryRowContext(ctx, newestCertificate).Scan(&s.mark); err != nil {
		return false, err
	}
	err := s.eachMember(ctx, q, before, func(m member) error {
		if m.isNew {
			return errStopped
		}
		return nil
	})
	if errors.Is(err, errStopped) {
		return true, nil
	}
	return false, err
}

func readIssuers(ctx context.Context, q engine.Querier) (map[int64]pki.IssuerID, error) {
	issuers := map[int64]pki.IssuerID{}
	rows := engine.Query(ctx, q, `SELECT id, issuer FROM issuers`)
	err := rows.Each(func(rows *sql.Rows) error {
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

// owner returns the identity to which all certificates of a selection of one identity belong, and the certificate that its
// lineage begins with, if it has one.
func (s *setRow) owner(ctx context.Context, q engine.Querier) (identity pki.SPIFFEID, first subject, err error) {
	identity = s.Identity
	if !s.LineageOf.IsZero() {
		if first, err = readSubject(ctx, q, s.LineageOf); err != nil {
			return identity, first, err
		}
		if !first.key.Valid {
			return identity, first, rules.NeverDelivered(s.LineageOf.Serial)
		}
		identity = first.Identity
	}
	if s.Key.IsZero() {
		return identity, first, nil
	}
	key, err := readKey(ctx, q, s.Key)
	if identity.IsZero() {
		identity = key.identity
	}
	return identity, first, err
}

// boundedLineage returns the rows of a certificate and of those that were renewed from it. It refuses a lineage that is
// among too many certificates to walk through.
func boundedLineage(ctx context.Context, q engine.Querier, first subject) (map[int64]bool, error) {
	large, err := isLarge(ctx, q, first.Identity, first.id)
	if err != nil {
		return nil, err
	}
	if large {
		return nil, rules.LongLineage(first.Ref.Serial)
	}
	return lineage(ctx, q, first.id)
}

// lineage returns the row IDs of a certificate and of those renewed from it.
func lineage(ctx context.Context, q engine.Querier, first int64) (map[int64]bool, error) {
	var links []rules.Link[int64]
	rows := engine.Query(ctx, q, `
		SELECT id, key, successor FROM certificates
		WHERE identity = (SELECT identity FROM certificates WHERE id = ?1) AND +id >= ?1 ORDER BY +id`, first)
	err := rows.Each(func(rows *sql.Rows) error {
		var l rules.Link[int64]
		var successor sql.NullInt64
		err := rows.Scan(&l.ID, &l.Key, &successor)
		l.Successor, l.HasSuccessor = successor.Int64, successor.Valid
		links = append(links, l)
		return err
	})
	return rules.Lineage(links), err
}

// few returns the members of a bulk revocation that selects certificates of one identity. The caller has checked with isMany
// that they are few.
func (s *setRow) few(ctx context.Context, q engine.Querier) ([]subject, error) {
	identity, first, err := s.owner(ctx, q)
	if err != nil {
		return nil, err
	}
	all, err := readSubjects(ctx, q, identity, s.reach)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return s.filter(ctx, q, identity, first.id, all)
}

// filter returns the members among the certificates of an identity.
func (s *setRow) filter(ctx context.Context, q engine.Querier, identity pki.SPIFFEID, first int64, all []subject) ([]subject, error) {
	var ids []int64
	for _, c := range all {
		ids = append(ids, c.id)
	}
	plain := *s
	plain.Reason = pki.Unspecified // BulkMembers adds the certificates with the same key
	masks, err := openSetsOf(plain).masks(ctx, q, ids)
	if err != nil {
		return nil, err
	}
	var line map[int64]bool
	if first != 0 {
		if line, err = lineage(ctx, q, first); err != nil {
			return nil, err
		}
	}
	candidates := make([]rules.Candidate[int64], len(all))
	for i, c := range all {
		candidates[i] = rules.Candidate[int64]{Key: c.key.Int64, Selected: masks[c.id] == 1 && (s.Identity.IsZero() || s.Identity == identity) &&
			(first == 0 || line[c.id]) && (s.Key.IsZero() || c.key.Int64 == keyID(s.Key))}
	}
	var members []subject
	for i, is := range rules.BulkMembers(s.BulkRequest, candidates) {
		if is {
			members = append(members, all[i])
		}
	}
	return members, nil
}
