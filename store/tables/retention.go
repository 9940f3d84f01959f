package tables

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/expiry"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

// Advance moves the age of the records forward (see rules.NextAge).
func (r *RA) Advance(ctx context.Context, by time.Duration, now time.Time) (time.Time, error) {
	const what = "advance the age of the records"
	// A follower asks every few seconds, and must not wait for the lock of the transactions that write.
	if err := r.db.file.Look(ctx, what, r.db.epochs.CheckLeads); err != nil {
		return time.Time{}, err
	}
	var age time.Time
	err := r.db.write(ctx, what, func(ctx context.Context, tx *writeTx) error {
		if err := r.db.epochs.CheckLeads(ctx, tx); err != nil {
			return err
		}
		own := r.db.epochs.Own()
		before, epoch, err := tx.age(ctx)
		if err != nil || before.IsZero() {
			return err // the log is empty, so there is nothing to age
		}
		age = before
		if epoch == 0 || epoch == own { // else another process has advanced the age during a part of the duration
			age = rules.NextAge(before, by, now)
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO age (id, time, epoch) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET time = excluded.time, epoch = excluded.epoch`,
			engine.Millis(age), own)
		return err
	})
	return rules.Earlier(age, now), err
}

// age reads the age of the records, and the epoch that has advanced it last. If none was recorded yet, it returns the time of
// the newest log entry, and no epoch.
func (tx *writeTx) age(ctx context.Context) (age time.Time, epoch int64, err error) {
	var at int64
	err = tx.QueryRow(ctx, `SELECT time, epoch FROM age`).Scan(&at, &epoch)
	if errors.Is(err, sql.ErrNoRows) {
		age, err = logtable.NewestTime(ctx, tx)
		return age, 0, err
	}
	return engine.FromMillis(at), epoch, err
}

// Expire removes expired records, in one step.
func (r *RA) Expire(ctx context.Context, s retention.Step) (retention.Expired, error) {
	if err := rules.CheckLimit(s.Limit); err != nil {
		return retention.Expired{}, err
	}
	var removed retention.Expired
	err := r.db.write(ctx, "remove expired records", func(ctx context.Context, tx *writeTx) error {
		removed = retention.Expired{}
		if err := r.db.epochs.CheckLeads(ctx, tx); err != nil {
			return err
		}
		// SQLite reuses row IDs of certificates after the newest rows are deleted. A bulk revocation stores the row ID of
		// its last possible member, so nothing is removed while one is open.
		var revoking bool
		if err := tx.QueryRow(ctx, `SELECT `+bulk.AnyOpen).Scan(&revoking); err != nil || revoking {
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
	err := r.db.file.Read(ctx, "count expired certificates", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, countRange, -1<<62, engine.Millis(before), most).Scan(&n)
	})
	return n, err
}
