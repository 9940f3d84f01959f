package sqlite_test

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
	"github.com/brevet-pki/brevet/translog"
)

// notInLog maps the tables and columns that the log does not contain to the reason. A replay must restore every other column,
// including row IDs.
var notInLog = map[string]string{
	"goose_db_version":          "the version of the schema",
	"sqlite_sequence":           "SQLite's own",
	"journal":                   "counts the processes that wrote to this file, and a restored store begins again",
	"intents":                   "certificates that are being signed; when they are committed, the log has them",
	"age":                       "time that has passed, not a record; without it the newest entry's time is taken",
	"chain":                     "has a row for each batch that was sequenced; the chain values are checked by the replay",
	"log_epoch":                 "belongs to the store, and a log that forks has another one",
	"nonces":                    "expire after minutes; a restored store has another sealing key, so it accepts no earlier challenge; JWTs: see docs/threat-model.md",
	"sealing_key":               "a secret; without it, challenges that are minutes old are requested again",
	"acme_orders":               "for a day, and to find the account of a certificate, which orders again without them",
	"acme_authorizations":       "for a day, with their orders",
	"acme_accounts.contact":     "personal data",
	"acme_external_keys.sealed": "a secret; an operator creates another external key",
	"policies.document":         "of up to 1 MiB; the log has its digest",
	"operator_requests":         "for repeats after lost answers; entries have the request ID, and a call that changes nothing has no entry",
	"crl_segments":              "derived from certificates",
	"crl_packed":                "derived from certificates",
	"certificates.der":          "DER",
	"ca_certificates.der":       "DER",
	"crls.der":                  "DER",
	"cross_certificates.der":    "DER",
}

// rows returns the rows of all tables of a store as text, without the tables and columns in notInLog.
func rows(t *testing.T, path string) map[string][]string {
	t.Helper()
	db := raw(t, path)
	found := map[string][]string{}
	for _, table := range queryTexts(t, db, `SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name`) {
		if notInLog[table] != "" {
			continue
		}
		var columns []string
		for _, column := range queryTexts(t, db, `SELECT name FROM pragma_table_info('`+table+`')`) {
			if notInLog[table+"."+column] == "" {
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
	for name := range maps.Keys(notInLog) {
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
