package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/bulk"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/expiry"
	"github.com/brevet-pki/brevet/store/sqlite/internal/logtable"
)

// Advance moves the age of the records forward (see rules.NextAge).
func (r *RA) Advance(ctx context.Context, by time.Duration, now time.Time) (time.Time, error) {
	var age time.Time
	err := r.db.write(ctx, "advance the age of the records", func(ctx context.Context, tx *writeTx) error {
		before, err := tx.age(ctx)
		if err != nil || before.IsZero() {
			return err // the log is empty, so there is nothing to age
		}
		age = rules.NextAge(before, by, now)
		_, err = tx.ExecContext(ctx, `INSERT INTO age (id, time) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET time = excluded.time`, engine.Millis(age))
		return err
	})
	return rules.Earlier(age, now), err
}

// age reads the age of the records. If none was recorded yet, it returns the time of the newest log entry.
func (tx *writeTx) age(ctx context.Context) (time.Time, error) {
	var age int64
	err := tx.QueryRowContext(ctx, `SELECT time FROM age`).Scan(&age)
	if errors.Is(err, sql.ErrNoRows) {
		return logtable.NewestTime(ctx, tx)
	}
	return engine.FromMillis(age), err
}

// Expire removes expired records, in one step.
func (r *RA) Expire(ctx context.Context, s retention.Step) (retention.Expired, error) {
	if err := rules.CheckLimit(s.Limit); err != nil {
		return retention.Expired{}, err
	}
	var removed retention.Expired
	err := r.db.write(ctx, "remove expired records", func(ctx context.Context, tx *writeTx) error {
		removed = retention.Expired{}
		// SQLite reuses row IDs of certificates after the newest rows are deleted. A bulk revocation stores the row ID of
		// its last possible member, so nothing is removed while one is open.
		var revoking bool
		if err := tx.QueryRowContext(ctx, `SELECT `+bulk.AnyOpen).Scan(&revoking); err != nil || revoking {
			return err
		}
		newest, err := logtable.NewestTime(ctx, tx)
		if err != nil {
			return err
		}
		before := engine.Millis(rules.Earlier(s.Before, newest))
		if removed, err = expiry.Remove(ctx, tx.Tx, s, before, engine.Millis(rules.Earlier(s.At, newest))); err != nil || removed.Certificates+removed.Tokens == 0 {
			return err
		}
		return tx.append(ctx, rules.ExpiredEntry(s, engine.FromMillis(before), removed))
	})
	if err != nil {
		return retention.Expired{}, err
	}
	return removed, nil
}

// Waiting counts certificates that expired before a time.
func (r *RA) Waiting(ctx context.Context, before time.Time, most int) (int, error) {
	var n int
	err := r.db.file.Read(ctx, "count expired certificates", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, countRange, -1<<62, engine.Millis(before), most).Scan(&n)
	})
	return n, err
}
