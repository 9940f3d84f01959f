package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/translog"
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
		return tx.newestEntry(ctx)
	}
	return engine.FromMillis(age), err
}

// newestEntry returns the time of the newest log entry, and zero if the log is empty.
func (tx *writeTx) newestEntry(ctx context.Context) (time.Time, error) {
	var encoded []byte
	err := tx.QueryRowContext(ctx, `SELECT entry FROM log ORDER BY id DESC LIMIT 1`).Scan(&encoded)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	e, err := translog.ParseEntry(encoded)
	return e.Time, err
}

// Expire removes expired records, in one step.
func (r *RA) Expire(ctx context.Context, s retention.Step) (retention.Expired, error) {
	if err := rules.CheckLimit(s.Limit); err != nil {
		return retention.Expired{}, err
	}
	var gone retention.Expired
	err := r.db.write(ctx, "take expired records away", func(ctx context.Context, tx *writeTx) error {
		gone = retention.Expired{}
		// SQLite reuses row IDs of certificates after the newest rows are deleted. A bulk revocation stores the row ID of
		// its last possible member, so nothing is removed while one is open.
		var revoking bool
		if err := tx.QueryRowContext(ctx, `SELECT `+anyOpen).Scan(&revoking); err != nil || revoking {
			return err
		}
		newest, err := tx.newestEntry(ctx)
		if err != nil {
			return err
		}
		before := engine.Millis(rules.Earlier(s.Before, newest))
		if err := tx.expireCertificates(ctx, s, before, &gone); err != nil {
			return err
		}
		if err := tx.expireTokens(ctx, s.Limit, before, &gone); err != nil {
			return err
		}
		more, err := tx.expireRequests(ctx, s.Limit, before)
		if err != nil {
			return err
		}
		gone.More = gone.More || more
		if gone.Certificates+gone.Tokens == 0 {
			return nil
		}
		return tx.append(ctx, rules.ExpiredEntry(s, engine.FromMillis(before), gone))
	})
	if err != nil {
		return retention.Expired{}, err
	}
	return gone, nil
}

// expireCertificates reads the next certificates that expired before a time, and deletes those that are no longer needed.
func (tx *writeTx) expireCertificates(ctx context.Context, s retention.Step, before int64, gone *retention.Expired) error {
	last, looked, err := tx.endOfStep(ctx, s, before)
	if err != nil || looked == 0 {
		return err
	}
	gone.Next, gone.More = last, looked == s.Limit
	return tx.removeCertificates(ctx, s.After, last, gone)
}

// removeCertificates deletes the certificates between after (exclusive) and last (inclusive) that are no longer needed, with
// their keys.
func (tx *writeTx) removeCertificates(ctx context.Context, after, last retention.Place, gone *retention.Expired) error {
	var keys []int64
	rows := engine.Query(ctx, tx, deleteExpired, engine.Millis(after.NotAfter), after.Row, engine.Millis(last.NotAfter), last.Row)
	err := rows.Each(func(rows *sql.Rows) error {
		var key, successor sql.NullInt64
		if err := rows.Scan(&key, &successor); err != nil {
			return err
		}
		for _, k := range []sql.NullInt64{key, successor} {
			if k.Valid {
				keys = append(keys, k.Int64)
			}
		}
		gone.Certificates++
		return nil
	})
	for i := 0; i < len(keys) && err == nil; i++ {
		var left bool
		if left, err = tx.unname(ctx, keys[i]); left {
			gone.Keys++
		}
	}
	return err
}

// Statements and conditions that select expired certificates that are no longer needed.
const (
	selectExpired = `SELECT not_after, id FROM certificates WHERE not_after < ? AND (not_after, id) > (?, ?) ORDER BY not_after, id LIMIT ?`
	deleteExpired = `
		DELETE FROM certificates WHERE (not_after, id) > (?, ?) AND (not_after, id) <= (?, ?)
		  AND (state = 1 OR ` + issuerRemoved + ` OR (` + listedFull + ` AND (` + listedPart + ` OR NOT ` + hasPart + `)))
		RETURNING key, successor`
	// True if the issuer was removed, so that it publishes no more CRLs.
	issuerRemoved = `EXISTS (SELECT 1 FROM ca_certificates a WHERE a.issuer = certificates.issuer AND a.state = 3)`
	// The next two are true if a full CRL of the issuer (partition 0), or of the certificate's partition, was published after
	// the certificate expired. The third is true if the partition has a distribution point.
	listedFull = `EXISTS (
		SELECT 1 FROM crls l WHERE l.issuer = certificates.issuer AND l.crl_partition = 0 AND l.delta = 0 AND l.this_update > not_after)`
	listedPart = `EXISTS (
		SELECT 1 FROM crls l WHERE l.issuer = certificates.issuer AND l.crl_partition = certificates.crl_partition AND l.delta = 0 AND l.this_update > not_after)`
	hasPart = `EXISTS (SELECT 1 FROM crl_points p WHERE p.issuer = certificates.issuer AND p.crl_partition = certificates.crl_partition)`

	deleteTokens = `DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE expires_at < ? ORDER BY expires_at, id LIMIT ?)`
)

// endOfStep returns the position at which a step ends, and the number of certificates in it.
func (tx *writeTx) endOfStep(ctx context.Context, s retention.Step, before int64) (last retention.Place, looked int, err error) {
	rows := engine.Query(ctx, tx, selectExpired, before, engine.Millis(s.After.NotAfter), s.After.Row, s.Limit)
	err = rows.Each(func(rows *sql.Rows) error {
		var notAfter int64
		if err := rows.Scan(&notAfter, &last.Row); err != nil {
			return err
		}
		last.NotAfter = engine.FromMillis(notAfter)
		looked++
		return nil
	})
	return last, looked, err
}

func (tx *writeTx) expireTokens(ctx context.Context, limit int, before int64, gone *retention.Expired) error {
	result, err := tx.ExecContext(ctx, deleteTokens, before, limit)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	gone.Tokens = int(n)
	gone.More = gone.More || gone.Tokens == limit
	return err
}

// Waiting counts certificates that expired before a time.
func (r *RA) Waiting(ctx context.Context, before time.Time, most int) (int, error) {
	var n int
	err := r.db.file.Look(ctx, "count what waits to leave", func(ctx context.Context, conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, countRange, -1<<62, engine.Millis(before), most).Scan(&n)
	})
	return n, err
}
