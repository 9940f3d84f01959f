package tables_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// A sweep requests one retention step after another. It gets the writer in the order of its requests, so that other writers
// wait for at most one step.
func TestWritersWaitForOneStepAtMost(t *testing.T) {
	const rounds, writers = 6, 3
	path := filepath.Join(t.TempDir(), "brevet.db")
	synctest.Test(t, func(t *testing.T) {
		m := newMill(t, path)
		defer m.db.Close()
		ids := []pki.SPIFFEID{m.identity(0)}
		for range rounds {
			m.issue(ids, nil)
		}
		after := at.Add(48 * time.Hour)
		refuse := func() {
			err := m.db.RA().Refused(context.Background(), audit.Refusal{
				By: pki.ActorCommand("test"), Identity: ids[0], Why: pki.Refuse(pki.RuleOverloaded, "wait", "busy"), At: after,
			})
			if err != nil {
				t.Error(err)
			}
		}
		refuse() // the log has come that far
		for unsequenced(t, m.db) > 0 {
			continue
		}
		held, release := make(chan struct{}), make(chan struct{})
		go func() {
			if err := m.db.Hold(held, release); err != nil {
				t.Error(err)
			}
		}()
		<-held
		for range rounds { // all of them wait in the queue, in order
			go func() {
				if _, err := m.db.RA().Expire(context.Background(), retention.Step{Before: after, At: after, Limit: 1}); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
			for range writers {
				go refuse()
				synctest.Wait()
			}
		}
		close(release)
		synctest.Wait()
		head, err := m.db.Log().Head(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for unsequenced(t, m.db) > 0 {
			continue
		}
		entries, err := m.db.Log().Entries(context.Background(), head.Size+1, 100)
		if err != nil || len(entries) != rounds*(writers+1) {
			t.Fatalf("%d log entries, %v", len(entries), err)
		}
		for i, s := range entries {
			e, err := translog.ParseEntry(s.Entry)
			if err != nil {
				t.Fatal(err)
			}
			if step := e.Action == translog.RecordsExpired; step != (i%(writers+1) == 0) {
				t.Errorf("entry %d is %s: a step was executed before an earlier request", i, e.Action)
			}
		}
	})
}

// The record of every key has the right number of certificates that refer to it, after issuing, renewing and expiring.
func TestKeysAreCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	m := newMill(t, path)
	var ids []pki.SPIFFEID
	for n := range uint64(20) {
		ids = append(ids, m.identity(n))
	}
	last := m.issue(ids, nil)
	for range 3 {
		last = m.issue(ids, last)
	}
	after := at.Add(48 * time.Hour)
	if err := m.db.RA().Refused(context.Background(), audit.Refusal{
		By: pki.ActorCommand("test"), Identity: ids[0], Why: pki.Refuse(pki.RuleOverloaded, "wait", "busy"), At: after,
	}); err != nil {
		t.Fatal(err)
	}
	const wrong = `SELECT count(*) FROM keys k WHERE uses <>
		(SELECT count(*) FROM certificates WHERE key = k.id) + (SELECT count(*) FROM certificates WHERE successor = k.id)`
	db, step := raw(t, path), retention.Step{Before: after, At: after, Limit: 17}
	for {
		var miscounted, missing int
		if err := db.QueryRow(wrong).Scan(&miscounted); err != nil {
			t.Fatal(err)
		}
		err := db.QueryRow(`SELECT count(*) FROM certificates WHERE key NOT IN (SELECT id FROM keys) OR successor NOT IN (SELECT id FROM keys)`).Scan(&missing)
		if err != nil || miscounted+missing > 0 {
			t.Fatalf("%d keys are miscounted, %d certificates have keys that are gone, %v", miscounted, missing, err)
		}
		e, err := m.db.RA().Expire(context.Background(), step)
		if err != nil {
			t.Fatal(err)
		}
		step.After = e.Next
		if !e.More {
			break
		}
	}
	var keys int
	if err := db.QueryRow(`SELECT count(*) FROM keys`).Scan(&keys); err != nil || keys != 0 {
		t.Errorf("%d keys without certificates are on record, %v", keys, err)
	}
}

// TestOrdersAreRemoved checks that steps remove the orders without a certificate one day after they expired, with their
// authorizations, and erase the HMAC keys of external keys that expired unused, long before the retention has passed.
func TestOrdersAreRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	m := newMill(t, path)
	ctx := context.Background()
	old := at.Add(-2*acme.OrderLifetime - time.Second)
	account := acme.Account{ID: acme.NewID(), Key: []byte("key"), Thumbprint: [32]byte{1}, Status: acme.AccountValid, CreatedAt: old}
	if _, _, err := m.db.ACME().CreateAccount(ctx, account); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		created := old
		if i >= 12 {
			created = at.Add(-acme.OrderLifetime) // expires now
		}
		k := acme.ExternalKey{ID: acme.NewID(), Rule: "web", CreatedBy: pki.ActorCommand("test"), CreatedAt: created, ExpiresAt: created.Add(25 * time.Hour)}
		if _, err := m.db.ACME().CreateExternalKey(ctx, k, []byte("sealed")); err != nil {
			t.Fatal(err)
		}
		o := acme.Order{ID: acme.NewID(), Account: account.ID, CreatedAt: created, ExpiresAt: created.Add(acme.OrderLifetime)}
		var all []acme.Authorization
		for range 3 {
			o.Identifiers = append(o.Identifiers, acme.Identifier{Type: acme.DNS, Value: "a.example"})
			all = append(all, acme.Authorization{ID: acme.NewID()})
		}
		if err := m.db.ACME().CreateOrder(ctx, o, all); err != nil {
			t.Fatal(err)
		}
	}
	m.identity(1) // a log entry at the time at
	steps, later := 0, at.Add(time.Hour)
	for more := true; more && steps < 100; steps++ {
		e, err := m.db.RA().Expire(ctx, retention.Step{Before: later.Add(-retention.Default), At: later, Limit: 5})
		if err != nil {
			t.Fatal(err)
		}
		more = e.More
	}
	for query, want := range map[string]int{
		`SELECT count(*) FROM acme_orders`: 8, `SELECT count(*) FROM acme_authorizations`: 24,
		`SELECT count(*) FROM acme_external_keys`: 20, `SELECT count(*) FROM acme_external_keys WHERE sealed IS NOT NULL`: 8,
	} {
		var n int
		if err := raw(t, path).QueryRow(query).Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d after %d steps, %v, want %d", query, n, steps, err, want)
		}
	}
}

// TestNoncesAreRemoved checks that steps remove nonces that expired before the newest log entry, and log nothing.
func TestNoncesAreRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	m := newMill(t, path)
	m.identity(1) // a log entry at the time at
	ctx := context.Background()
	err := m.db.OnWriter(ctx, fmt.Sprintf(`
		WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20)
		INSERT INTO nonces (expires_at, nonce) SELECT %d + i, randomblob(16) FROM n`, at.UnixMilli()-10))
	if err != nil {
		t.Fatal(err)
	}
	logged, err := m.db.Log().Written(ctx)
	if err != nil {
		t.Fatal(err)
	}
	steps, later := 0, at.Add(time.Hour)
	for more := true; more; steps++ {
		e, err := m.db.RA().Expire(ctx, retention.Step{Before: later, At: later, Limit: 4})
		if err != nil {
			t.Fatal(err)
		}
		more = e.More
	}
	var left, early int
	err = raw(t, path).QueryRow(`SELECT count(*), coalesce(sum(expires_at < ?), 0) FROM nonces`, at.UnixMilli()).Scan(&left, &early)
	if err != nil || left != 11 || early != 0 || steps != 3 {
		t.Errorf("after %d steps %d nonces are on record, %d of them expired, %v; want 3 steps and 11 nonces", steps, left, early, err)
	}
	if after, err := m.db.Log().Written(ctx); err != nil || after != logged {
		t.Errorf("the removal wrote %d log entries, %v", after-logged, err)
	}
}

// noEntries removes no log entries.
type noEntries struct{}

func (noEntries) Step(context.Context, time.Time) (int, error) { return 0, nil }

// A sweeper runs on a store for three days. It removes records at the end of their retention and not earlier, and does not
// remove certificates issued meanwhile.
func TestSweeperKeepsRetention(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	synctest.Test(t, func(t *testing.T) {
		m := newMill(t, path)
		defer m.db.Close()
		ids := []pki.SPIFFEID{m.identity(0), m.identity(1)}
		first := m.issue(ids, nil)
		start := time.Now()
		clock := func() time.Time { return at.Add(time.Since(start)) }
		sweeper, err := retention.NewSweeper(retention.Config{
			Store: m.db.RA(), Entries: noEntries{}, Retention: retention.Minimum, Busy: func() bool { return true }, Clock: clock, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- sweeper.Run(ctx) }()
		last := first
		onRecord := func(r ca.Record) bool {
			t.Helper()
			_, err := m.db.RA().Certificate(t.Context(), r.Ref)
			_, refused := pki.AsRefusal(err)
			if err != nil && !refused {
				t.Fatal(err)
			}
			return err == nil
		}
		for hours := range 75 {
			for _, r := range first { // each is valid for a day, and on record for two more
				if on := onRecord(r); on != (hours <= 24+48) && hours != 24+48 {
					t.Fatalf("after %d h a certificate is on record: %v", hours, on)
				}
			}
			time.Sleep(time.Hour)
			m.at = clock()
			last = m.issue(ids, last)
		}
		for _, r := range last {
			if !onRecord(r) {
				t.Error("a new certificate was removed")
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
