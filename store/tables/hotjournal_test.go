package tables_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// TestKilledDuringCreation opens a store whose process was killed in the first transaction, before the store had a WAL. The
// file is partly written, and there is a rollback journal.
func TestKilledDuringCreation(t *testing.T) {
	dir := t.TempDir()
	made, killed := filepath.Join(dir, "made.db"), filepath.Join(dir, "killed.db")
	db := raw(t, made)
	db.SetMaxOpenConns(1)
	ctx := context.Background()
	run := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	run(`CREATE TABLE first (a)`)
	run(`DROP TABLE first`)
	run(`PRAGMA cache_size = 1`) // so that pages are written before the commit, as if memory were short
	run(`BEGIN IMMEDIATE`)
	run(`CREATE TABLE half (a)`)
	run(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO half SELECT randomblob(2000) FROM n`)
	for from, to := range map[string]string{made: killed, made + "-journal": killed + "-journal"} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(`ROLLBACK`)

	store := mustOpen(t, killed)
	if head, err := store.Log().Head(ctx); err != nil || head.Size != 0 {
		t.Errorf("the head of the new log: %v, %v", head, err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}
