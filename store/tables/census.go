package tables

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/retention"
)

// countUpTo limits the cost of a census. A count that reaches it is reported as a lower bound.
const countUpTo = 1_000_000

// Statements that count certificates. Each uses one index. The second names its index, because SQLite would choose another.
const (
	countRange  = `SELECT count(*) FROM (SELECT 1 FROM certificates WHERE not_after >= ? AND not_after < ? LIMIT ?) c`
	countStates = `
		SELECT state, identity IS NULL, count(*)
		FROM (SELECT state, identity FROM certificates INDEXED BY certificates_changed WHERE changed IS NOT NULL AND state <> 1 LIMIT ?) c GROUP BY 1, 2`
	countIdentities  = `SELECT state, count(*) FROM (SELECT state FROM identities LIMIT ?) n GROUP BY state`
	countEnrollments = `
		SELECT count(*), count(*) FILTER (WHERE spent = 1), count(*) FILTER (WHERE spent = 0 AND (expires_at <= ? OR why IS NOT NULL))
		FROM (SELECT spent, expires_at, ` + whyRevoked + ` AS why FROM tokens t LIMIT ?) e`
	countKeys = `SELECT count(*), count(compromised_at) FROM (SELECT compromised_at FROM keys LIMIT ?) k`
	measure   = `
		SELECT coalesce((SELECT min(not_after) FROM certificates), 0), (SELECT coalesce(max(id), 0) FROM log)`
)

// Census counts the records, on a reading connection.
func (r *RA) Census(ctx context.Context, at, before time.Time) (retention.Census, error) {
	var c retention.Census
	err := r.db.file.ReadMany(ctx, "count the records", func(ctx context.Context, tx engine.Querier) error {
		c = retention.Census{Identities: map[pki.IdentityState]retention.Count{}}
		for _, count := range []func(context.Context, engine.Querier) error{
			func(ctx context.Context, tx engine.Querier) error { return countByEnd(ctx, tx, &c, at, before) },
			func(ctx context.Context, tx engine.Querier) error { return countByState(ctx, tx, &c) },
			func(ctx context.Context, tx engine.Querier) error { return countOthers(ctx, tx, &c, at) },
		} {
			if err := count(ctx, tx); err != nil {
				return err
			}
		}
		var oldest int64
		err := tx.QueryRow(ctx, measure).Scan(&oldest, &c.LogEntries)
		if oldest != 0 {
			c.OldestNotAfter = engine.FromMillis(oldest)
		}
		return err
	})
	if err == nil {
		c.Bytes, c.FreeBytes, err = r.db.file.Size(ctx)
	}
	if err != nil {
		return retention.Census{}, err
	}
	return c, nil
}

// counted returns n as a count, which is a lower bound if it reached countUpTo.
func counted(n uint64) retention.Count { return retention.Count{N: n, AtLeast: n >= countUpTo} }

func countByEnd(ctx context.Context, tx engine.Querier, c *retention.Census, at, before time.Time) error {
	const first, last = -1 << 62, 1 << 62
	for _, r := range []struct {
		into     *retention.Count
		from, to int64
	}{
		{&c.Unexpired, engine.Millis(at), last}, {&c.Expired, engine.Millis(before), engine.Millis(at)}, {&c.Waiting, first, engine.Millis(before)},
	} {
		var n uint64
		if err := tx.QueryRow(ctx, countRange, r.from, r.to, countUpTo).Scan(&n); err != nil {
			return err
		}
		*r.into = counted(n)
	}
	return nil
}

func countByState(ctx context.Context, tx engine.Querier, c *retention.Census) error {
	rows := engine.Query(ctx, tx, countStates, countUpTo)
	var all uint64
	err := rows.Each(func(rows engine.Scanner) error {
		var state pki.State
		var unreleased bool
		var n uint64
		if err := rows.Scan(&state, &unreleased, &n); err != nil {
			return err
		}
		all += n
		switch {
		case unreleased:
			c.Unreleased.N = n
		case state == pki.Hold:
			c.OnHold.N = n
		default:
			c.Revoked.N = n
		}
		return nil
	})
	more := counted(all).AtLeast
	c.OnHold.AtLeast, c.Revoked.AtLeast, c.Unreleased.AtLeast = more, more, more
	c.Good = c.Unexpired.Add(c.Expired).Add(c.Waiting).Less(retention.Count{N: all, AtLeast: more})
	return err
}

func countOthers(ctx context.Context, tx engine.Querier, c *retention.Census, at time.Time) error {
	rows := engine.Query(ctx, tx, countIdentities, countUpTo)
	var all uint64
	err := rows.Each(func(rows engine.Scanner) error {
		var state pki.IdentityState
		var n uint64
		err := rows.Scan(&state, &n)
		c.Identities[state] = retention.Count{N: n}
		all += n
		return err
	})
	if err != nil {
		return err
	}
	for state, n := range c.Identities {
		c.Identities[state] = retention.Count{N: n.N, AtLeast: counted(all).AtLeast}
	}
	var tokens, spent, expired, keys, compromised uint64
	if err := tx.QueryRow(ctx, countEnrollments, engine.Millis(at), countUpTo).Scan(&tokens, &spent, &expired); err != nil {
		return err
	}
	more := counted(tokens).AtLeast
	c.OpenTokens, c.SpentTokens, c.ExpiredTokens = retention.Count{N: tokens - spent - expired, AtLeast: more}, retention.Count{N: spent, AtLeast: more}, retention.Count{N: expired, AtLeast: more}
	err = tx.QueryRow(ctx, countKeys, countUpTo).Scan(&keys, &compromised)
	c.Keys, c.CompromisedKeys = counted(keys), retention.Count{N: compromised, AtLeast: counted(keys).AtLeast}
	return err
}
