package tables_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/storetest"
	"github.com/brevet-pki/brevet/translog"
)

// rows returns the rows of all tables of a store as text, without the tables and columns in storetest.NotInLog.
func rows(t *testing.T, path string) map[string][]string {
	t.Helper()
	db := raw(t, path)
	found := map[string][]string{}
	for _, table := range queryTexts(t, db, `SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name`) {
		if storetest.NotInLog[table] != "" {
			continue
		}
		var columns []string
		for _, column := range queryTexts(t, db, `SELECT name FROM pragma_table_info('`+table+`')`) {
			if storetest.NotInLog[table+"."+column] == "" {
				columns = append(columns, `'`+column+`=' || quote(`+column+`)`)
			}
		}
		found[table] = queryTexts(t, db, `SELECT `+strings.Join(columns, ` || ' ' || `)+` FROM `+table+` ORDER BY 1`)
	}
	return found
}

func queryTexts(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	texts := []string{}
	result, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer func() { _ = result.Close() }() // read only
	for result.Next() {
		var text string
		if err := result.Scan(&text); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	return texts
}

// replayed replays a log into a new store, and returns its path.
func replayed(t *testing.T, log []translog.Sequenced) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "replayed.db")
	db, err := sqlite.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // its file is read later
	for page := range slices.Chunk(log, 50) {
		if err := db.Log().Replay(t.Context(), page); err != nil {
			t.Fatalf("replay from entry %d on: %v", page[0].Index, err)
		}
	}
	head, err := db.Log().Head(t.Context())
	if err != nil || head.Size != uint64(len(log)) || len(log) > 0 && head.Chain != log[len(log)-1].Chain {
		t.Errorf("the replayed log ends with %+v, %v", head, err)
	}
	return path
}

// TestExceptionsExist fails for an exception whose table or column is not in the schema.
func TestExceptionsExist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	db := raw(t, path)
	for name := range maps.Keys(storetest.NotInLog) {
		table, column, _ := strings.Cut(name, ".")
		columns := queryTexts(t, db, fmt.Sprintf(`SELECT name FROM pragma_table_info('%s')`, table))
		if len(columns) == 0 || column != "" && !slices.Contains(columns, column) {
			t.Errorf("the schema has no %s", name)
		}
	}
}

// TestReplayRefusesOtherEntries checks that a replay accepts only entries that continue the log of its store.
func TestReplayRefusesOtherEntries(t *testing.T) {
	entry, err := translog.Entry{Action: translog.RequestRefused, Outcome: translog.Refused, Event: &translog.Refusal{Rule: "x"}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	first := translog.Sequenced{Index: 1, Entry: entry, Chain: translog.Chain(translog.Hash{}, entry)}
	second := translog.Sequenced{Index: 2, Entry: entry, Chain: translog.Chain(first.Chain, entry)}
	altered := first
	altered.Entry = append(slices.Clone(entry), 0)
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	var broken *translog.ChainError
	for name, log := range map[string][]translog.Sequenced{"a gap": {second}, "an altered entry": {altered}, "an entry twice": {first, first}} {
		if err := db.Log().Replay(t.Context(), log); !errors.As(err, &broken) {
			t.Errorf("%s: %v, want a ChainError", name, err)
		}
	}
	if err := db.Log().Replay(t.Context(), []translog.Sequenced{first, second}); err != nil {
		t.Error(err)
	}
}
