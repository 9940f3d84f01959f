package torture

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/translog"
)

// replayed lists the tables that a store recreated from the log must have, and their columns that the log does not
// contain.
var replayed = map[string][]string{
	"identities": nil, "certificates": {"der"}, "keys": nil, "tokens": nil, "bulk_revocations": nil, "rotations": nil,
	"acme_accounts": {"contact"}, "acme_external_keys": {"sealed"},
}

// numbered lists the columns with numbers of rows that the log does not contain, by the table that they number. On
// PostgreSQL, a transaction that is rolled back leaves a gap in them. The order of the rows is the same.
var numbered = map[string]string{
	"tokens.id": "tokens", "acme_accounts.id": "acme_accounts", "acme_external_keys.id": "acme_external_keys",
	"acme_accounts.external_key": "acme_external_keys", "certificates.account": "acme_accounts",
	"identities.id": "identities", "tokens.identity": "identities", "tokens.creator": "identities",
	"acme_external_keys.identity": "identities", "acme_external_keys.creator": "identities", "keys.identity": "identities",
	"certificates.identity": "identities", "bulk_revocations.identity": "identities", "rotations.identity": "identities",
	"certificates.issuer": "issuers", "bulk_revocations.issuer": "issuers", "rotations.issuer": "issuers",
	"identities.rule": "policy_rules",
}

// stop ends the server, and checks that a store that is recreated from the archive has the same records.
func (tt *crashTest) stop(t *testing.T) {
	t.Helper()
	tt.server.stop(t)
	if faults := tt.checkReplay(t, tt.dir); len(faults) > 0 {
		t.Fatal(report(faults))
	}
}

// checkReplay compares a store that is recreated from the archive in a directory with the records.
func (w *instance) checkReplay(t *testing.T, from string) (faults []string) {
	t.Helper()
	records, err := readArchive(filepath.Join(from, archiveName))
	must(t, err)
	var entries []translog.Sequenced
	for i, r := range records {
		entries = append(entries, translog.Sequenced{Index: uint64(i) + 1, Entry: r.entry, Chain: translog.Hash(r.chain)})
	}
	dir := t.TempDir()
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, storeName))
	must(t, err)
	err = db.Log().Replay(t.Context(), entries)
	must(t, db.Close())
	if err != nil {
		return []string{"the log cannot be replayed: " + err.Error()}
	}
	for table, missing := range replayed {
		was, is := w.tableRows(t, from, table, missing), (&instance{}).tableRows(t, dir, table, missing)
		for _, row := range was {
			if _, found := slices.BinarySearch(is, row); !found {
				faults = append(faults, fmt.Sprintf("a replay of the log lacks the row of %s: %s", table, row))
			}
		}
		if len(is) != len(was) {
			faults = append(faults, fmt.Sprintf("a replay of the log has %d rows in %s instead of %d", len(is), table, len(was)))
		}
	}
	return faults
}

// tableRows returns the rows of a table as text, in ascending order.
func (w *instance) tableRows(t *testing.T, dir, table string, without []string) (all []string) {
	t.Helper()
	db, err := w.openRecords(dir)
	must(t, err)
	defer db.Close()
	numbers := map[string]map[int64]int{}
	for _, of := range numbered {
		numbers[of] = numbersOf(t, db, of)
	}
	rows, err := db.QueryContext(t.Context(), `SELECT * FROM `+table)
	must(t, err)
	defer rows.Close()
	columns, err := rows.Columns()
	must(t, err)
	values, fields := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		fields[i] = &values[i]
	}
	for rows.Next() {
		must(t, rows.Scan(fields...))
		var row []string
		for i, v := range values {
			switch value := v.(type) {
			case []byte:
				v = fmt.Sprintf("%x", value)
			case int64:
				if of := numbered[table+"."+columns[i]]; of != "" {
					v = fmt.Sprint("number ", numbers[of][value])
				}
			}
			if !slices.Contains(without, columns[i]) {
				row = append(row, fmt.Sprintf("%s=%v", columns[i], v))
			}
		}
		slices.Sort(row) // the engines have the columns in different orders
		all = append(all, strings.Join(row, " "))
	}
	must(t, rows.Err())
	slices.Sort(all)
	return all
}

// numbersOf returns the position of each row of a table, by its ID.
func numbersOf(t *testing.T, db *sql.DB, table string) map[int64]int {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT id FROM `+table+` ORDER BY id`)
	must(t, err)
	defer rows.Close()
	numbers := map[int64]int{}
	for rows.Next() {
		var id int64
		must(t, rows.Scan(&id))
		numbers[id] = len(numbers) + 1
	}
	must(t, rows.Err())
	return numbers
}
