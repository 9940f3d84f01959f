package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// tellStep is the number of statuses in one notification.
const tellStep = 4096

// NotifyBulk calls a function with the changed statuses of the members of a bulk revocation, and records their number.
func (r *Revocation) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	var s setRow
	var ahead ahead
	err := r.db.file.ReadMany(ctx, "read what is revoked", func(ctx context.Context, tx *sql.Tx) error {
		var err error
		if s, err = readSet(ctx, tx, id); err != nil || s.Done {
			return err
		}
		ahead, err = s.tell(ctx, tx, func(changes []pki.StatusChange) { observer.Apply(changes...) })
		return err
	})
	if err != nil || s.Done {
		return s.BulkRevocation, err
	}
	r.db.following.put(id, s.progress, ahead.rows)
	if s.Counted {
		return s.BulkRevocation, nil
	}
	err = r.db.write(ctx, "count what is revoked", func(ctx context.Context, tx *writeTx) error {
		// Steps may have been applied since the members were read. Total includes their certificates, as counted at the time of
		// the read.
		result, err := tx.ExecContext(ctx, `UPDATE revocation_sets SET total = ?, ended = ? WHERE id = ? AND total IS NULL`, s.Applied+len(ahead.rows), ahead.ended, id)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		if s, err = readSet(ctx, tx, id); err != nil || n == 0 {
			return err
		}
		return tx.append(ctx, rules.BulkCountedEntry(s.recorded()))
	})
	return s.BulkRevocation, err
}

// ahead holds the members of a bulk revocation that are not changed yet.
type ahead struct {
	rows  []int64 // row IDs in order
	ended int     // the number of them that had expired when it was created
}

// tell notifies of the members of a bulk revocation, and returns those to be changed.
func (s *setRow) tell(ctx context.Context, q engine.Querier, tell func([]pki.StatusChange)) (ahead, error) {
	var ahead ahead
	sets, err := querySets(ctx, q, `WHERE s.done = 0 AND s.id < ? ORDER BY s.id`, s.ID)
	if err != nil {
		return ahead, err
	}
	batch := make([]pki.StatusChange, 0, tellStep)
	err = s.eachMember(ctx, q, openSetsOf(sets...), func(m member) error {
		if m.isNew {
			ahead.rows = append(ahead.rows, m.id)
			if m.change.NotAfter.Before(s.At) {
				ahead.ended++
			}
		}
		if batch = append(batch, m.change); len(batch) == tellStep {
			tell(batch)
			batch = batch[:0]
		}
		return nil
	})
	if err == nil && len(batch) > 0 {
		tell(batch)
	}
	slices.Sort(ahead.rows)
	return ahead, err
}

// following caches the remaining members of open bulk revocations. If a bulk revocation is not in it, they are read again.
type following struct {
	mu   sync.Mutex
	sets map[int64]left
}

// left returns the row IDs after a given one.
type left struct {
	progress int64
	rows     []int64
}

func (f *following) put(id, progress int64, rows []int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sets == nil {
		f.sets = map[int64]left{}
	}
	f.sets[id] = left{progress, rows}
}

// take removes and returns the remaining members of a bulk revocation, if they are cached.
func (f *following) take(id int64) (left, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.sets[id]
	delete(f.sets, id)
	return l, ok
}

// errMoved means that a concurrent step changed records after the remaining members were read.
var errMoved = errors.New("a concurrent step was applied")

// ApplyBulk applies one step of a bulk revocation.
func (r *Revocation) ApplyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, revocation.BulkRevocation{}, err
	}
	for {
		changes, set, err := r.followOnce(ctx, id, limit, at)
		if !errors.Is(err, errMoved) {
			return changes, set, err
		}
	}
}

func (r *Revocation) followOnce(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	ahead, err := r.leftOf(ctx, id)
	if err != nil {
		return nil, revocation.BulkRevocation{}, err
	}
	var s setRow
	var changes []pki.StatusChange
	step := ahead.rows[:min(limit, len(ahead.rows))]
	err = r.db.write(ctx, "have records follow a revocation", func(ctx context.Context, tx *writeTx) error {
		changes = nil
		if s, err = readSet(ctx, tx, id); err != nil || s.Done {
			return err
		}
		var isNext bool
		err := tx.QueryRowContext(ctx, `SELECT NOT EXISTS (SELECT 1 FROM revocation_sets WHERE done = 0 AND id < ?)`, id).Scan(&isNext)
		if err != nil || !isNext {
			return err
		}
		if s.progress != ahead.progress {
			return errMoved
		}
		changes, err = tx.followStep(ctx, &s, step, len(step) == len(ahead.rows), at)
		return err
	})
	if err != nil {
		return nil, revocation.BulkRevocation{}, err
	}
	if !s.Done && s.progress != ahead.progress {
		r.db.following.put(id, s.progress, ahead.rows[len(step):])
	}
	return changes, s.BulkRevocation, nil
}

// leftOf returns the remaining members of a bulk revocation.
func (r *Revocation) leftOf(ctx context.Context, id int64) (left, error) {
	if ahead, ok := r.db.following.take(id); ok {
		return ahead, nil
	}
	var ahead left
	err := r.db.file.ReadMany(ctx, "read what is revoked", func(ctx context.Context, tx *sql.Tx) error {
		s, err := readSet(ctx, tx, id)
		if err != nil || s.Done {
			return err
		}
		rest, err := s.tell(ctx, tx, func([]pki.StatusChange) {})
		ahead = left{s.progress, rest.rows}
		return err
	})
	return ahead, err
}

// followStep changes the records of some members, and records the progress of the bulk revocation.
func (tx *writeTx) followStep(ctx context.Context, s *setRow, rows []int64, isLast bool, at time.Time) ([]pki.StatusChange, error) {
	changes, err := tx.changeRows(ctx, s, rows)
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 {
		s.progress = rows[len(rows)-1]
	}
	s.BulkRevocation = rules.BulkStep(s.BulkRevocation, len(rows), isLast)
	if err := tx.append(ctx, rules.BulkStepEntry(s.recorded(), at, s.Identity, changes)); err != nil {
		return nil, err
	}
	var total any // NULL leaves the column unchanged
	if isLast {
		total = s.Total
	}
	return changes, tx.ExecOne(ctx, `UPDATE revocation_sets SET progress = ?, followed = ?, total = coalesce(?, total), done = ? WHERE id = ?`,
		s.progress, s.Applied, total, s.Done, s.ID)
}

// changesRow maps an action to the SQL condition under which it changes a certificate.
var changesRow = map[revocation.Action]string{
	revocation.Revoke: `(state <> 3 OR ?3 = 1 AND reason <> 1)`,
	revocation.Hold:   `state = 1`,
	revocation.Unhold: `state = 2`,
}

// changeRows changes certificates in one statement, in the same way as rules.NextMember: a revoked certificate does not
// change, except that keyCompromise replaces the reason and keeps the time.
func (tx *writeTx) changeRows(ctx context.Context, s *setRow, ids []int64) ([]pki.StatusChange, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	issuers, err := readIssuers(ctx, tx)
	if err != nil {
		return nil, err
	}
	var changes []pki.StatusChange
	next := rules.BulkStatus(s.BulkRequest)
	rows := engine.Query(ctx, tx, `
		UPDATE certificates SET state = ?2, reason = ?3, revoked_at = CASE state WHEN 3 THEN revoked_at ELSE ?4 END, version = version + 1,
		       changed = (`+nextEntry+`), invalid_since = coalesce(?5, CASE state WHEN 3 THEN invalid_since END)
		WHERE id IN (SELECT value FROM json_each(?1)) AND `+changesRow[s.Action]+`
		RETURNING issuer, serial, not_after, revoked_at, version`,
		string(list), next.State, next.Reason, engine.OptionalMillis(next.RevokedAt), engine.OptionalMillis(s.InvalidSince))
	err = rows.Each(func(rows *sql.Rows) error {
		c := pki.StatusChange{Status: pki.Status{State: next.State, Reason: next.Reason}}
		var issuer, notAfter int64
		var revokedAt sql.NullInt64
		var serial []byte
		if err := rows.Scan(&issuer, &serial, &notAfter, &revokedAt, &c.Status.Version); err != nil {
			return err
		}
		var err error
		c.Ref.Serial, err = pki.SerialFromBytes(serial)
		c.Ref.Issuer, c.NotAfter, c.Status.RevokedAt = issuers[issuer], engine.FromMillis(notAfter), engine.RestoreMillis(revokedAt)
		changes = append(changes, c)
		return err
	})
	if err != nil || s.Reason != pki.KeyCompromise {
		return changes, err
	}
	_, err = tx.ExecContext(ctx, `
		UPDATE keys SET compromised_at = coalesce(compromised_at, ?2)
		WHERE id IN (SELECT c.key FROM json_each(?1) j CROSS JOIN certificates c ON c.id = j.value WHERE c.key IS NOT NULL)`,
		string(list), engine.Millis(s.At))
	return changes, err
}

// BulkRevocation returns a bulk revocation.
func (r *Revocation) BulkRevocation(ctx context.Context, id int64) (revocation.BulkRevocation, error) {
	var s setRow
	err := r.db.file.Read(ctx, "read a revocation", func(ctx context.Context, tx *sql.Tx) error {
		var err error
		s, err = readSet(ctx, tx, id)
		return err
	})
	return s.BulkRevocation, err
}

// bulkState is an SQL expression for revocation.BulkRevocation.State of a row s.
const bulkState = `CASE WHEN s.done THEN 3 WHEN s.total IS NOT NULL THEN 2 ELSE 1 END`

// BulkRevocations returns a page of bulk revocations, newest first.
func (r *Revocation) BulkRevocations(ctx context.Context, states []revocation.BulkState, after int64, limit int) ([]revocation.BulkRevocation, int64, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	if after == 0 {
		after = 1<<63 - 1
	}
	var in []int // encoding/json encodes a slice of uint8 as text
	for _, s := range states {
		in = append(in, int(s))
	}
	wanted, err := json.Marshal(in)
	if err != nil {
		return nil, 0, err
	}
	// There are few open ones, and an index finds them. So a page reads few rows that it does not return.
	where := `WHERE s.id < ?`
	if len(states) > 0 {
		where += ` AND ` + bulkState + ` IN (SELECT value FROM json_each(?))`
		if !slices.Contains(states, revocation.BulkDone) {
			where += ` AND s.done = 0`
		}
	}
	var page []revocation.BulkRevocation
	var next int64
	err = r.db.file.Read(ctx, "list revocations", func(ctx context.Context, tx *sql.Tx) error {
		args := []any{after}
		if len(states) > 0 {
			args = append(args, string(wanted))
		}
		page, next = nil, 0
		sets, err := querySets(ctx, tx, where+` ORDER BY s.id DESC LIMIT ?`, append(args, limit+1)...)
		for _, s := range sets[:min(limit, len(sets))] {
			page = append(page, s.BulkRevocation)
		}
		if len(sets) > limit {
			next = page[limit-1].ID
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}

// OpenBulk returns the bulk revocations that are not done.
func (r *Revocation) OpenBulk(ctx context.Context) ([]revocation.BulkRevocation, error) {
	var all []revocation.BulkRevocation
	err := r.db.file.Read(ctx, "read the revocations", func(ctx context.Context, tx *sql.Tx) error {
		open, err := readOpenSets(ctx, tx)
		for _, s := range open.sets {
			all = append(all, s.BulkRevocation)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
