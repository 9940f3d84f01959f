package torture

import (
	"database/sql"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// missingIsFound takes something away from files that pass, or adds something, one thing at a time: the audit has to see
// each. Triggers and checks of the store do not help it.
func missingIsFound(t *testing.T, g *ground, random *rand.Rand) {
	tt := newTorture(t, g, random, "", nil)
	for tt.before == nil || len(tt.book.revoked) == 0 || len(tt.book.states) == 0 || !slices.ContainsFunc(tt.before.rows, unreleased) || !tt.before.hasRevokedBatch() {
		if faults := tt.round(t, round{kill: kill{after(stepSign), 20}, wait: patience}); len(faults) > 0 {
			t.Fatal(report(faults))
		}
	}
	tt.server.stop(t)
	const newest = `(SELECT max(id) FROM certificates WHERE der IS NOT NULL)`
	// The first entry with a released certificate's serial number is that of its issue; 0a05746f6b656e is the name of its fact "token".
	const issued = `(SELECT l.entry FROM log l JOIN certificates c ON instr(l.entry, c.serial) > 0 WHERE c.der IS NOT NULL`
	for _, c := range []struct{ change, finds string }{
		{`DELETE FROM certificates WHERE id = ` + newest, "which is not on record"},
		{`UPDATE certificates SET der = NULL, identity = NULL, digest = x'00', state = 3, revoked_at = 1 WHERE id = ` + newest, "which is not on record"},
		{`DELETE FROM certificates WHERE der IS NULL AND id > 8`, "neither a certificate nor a revoked record"},
		{`UPDATE certificates SET state = 1, revoked_at = NULL WHERE state = 3 AND der IS NOT NULL`, "was revoked"},
		{`UPDATE identities SET state = 5 - state, resumes = CASE state WHEN 2 THEN 1 END WHERE state IN (2, 3)`, "last, and is in state"},
		{`DELETE FROM log WHERE id = (SELECT max(id) FROM log)`, "the archive has"},
		{`UPDATE log SET entry = x'0a00' WHERE id = 9`, "is not the same in the store and the archive"},
		{`UPDATE chain SET value = zeroblob(32) WHERE id = (SELECT max(id) FROM chain)`, "is not the same in the store and the archive"},
		{`UPDATE log SET entry = ` + issued + ` AND c.id = ` + newest + ` ORDER BY l.id LIMIT 1) WHERE id = 9`, "twice"},
		{`UPDATE log SET entry = ` + issued + ` AND instr(l.entry, x'0a05746f6b656e') > 0 ORDER BY l.id DESC LIMIT 1) WHERE id = 9`, "was spent 2 times"},
		{`UPDATE revocation_sets SET done = 0 WHERE id = (SELECT max(id) FROM revocation_sets)`, "the records of 1 sets never follow"},
		{`UPDATE certificates SET state = 1, revoked_at = NULL WHERE state = 3 AND der IS NOT NULL`, "is one of set"},
		{`UPDATE revocation_sets SET label_value = 'nobody' WHERE label_value IS NOT NULL`, "which it is none of"},
		{`UPDATE revocation_sets SET mark = 0 WHERE label_value IS NOT NULL`, "which it is none of"},
		{`UPDATE log SET entry = ` + issued + ` AND instr(l.entry, x'0a03736574') > 0 ORDER BY l.id DESC LIMIT 1) WHERE id = 9`, "was revoked 2 times"},
		{`UPDATE crls SET position = 0 WHERE crl_partition = 0`, "lists certificate"},
		{`UPDATE certificates SET crl_partition = 3 - crl_partition WHERE crl_partition > 0`, "does not list certificate"},
		{`UPDATE crls SET number = zeroblob(20) WHERE delta = 1`, "is another one than on record"},
		{`UPDATE crls SET digest = zeroblob(32) WHERE delta = 0`, "is not the one on record"},
		{`DELETE FROM crls WHERE delta = 1`, "CRLs are on record"},
		{`UPDATE crl_numbers SET taken = zeroblob(20)`, "CRLs, and 0 numbers are taken"},
		{`INSERT INTO intents (batch, epoch, items) VALUES (zeroblob(16), 1, x'')`, "are never settled"},
	} {
		if faults := tt.changed(t, c.change); !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.finds) }) {
			t.Errorf("after %s: %s", c.change, report(faults))
		}
	}
	for _, l := range tt.lists { // as if there had been newer ones
		l.Number.Add(l.Number, big.NewInt(1))
	}
	if faults := tt.checkLists(tt.dir, 0); len(faults) != 2*partitions+1 || !strings.Contains(faults[0], "before") {
		t.Errorf("after CRLs with higher numbers: %s", report(faults))
	}
	tt.lists = nil
	if faults := tt.changed(t, `SELECT 1`); len(faults) > 0 {
		t.Errorf("files that nobody changed: %s", report(faults))
	}
}

func unreleased(r row) bool { return r.der == nil }

// changed audits a copy of the files in which something was changed.
func (tt *torture) changed(t *testing.T, statement string) []string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "files")
	must(t, copyTree(tt.dir, dir))
	must(t, os.RemoveAll(filepath.Join(dir, storeName+"-shm")))
	db, err := sql.Open("sqlite3", filepath.Join(dir, storeName)+"?_ignore_check_constraints=true")
	must(t, err)
	for _, s := range []string{`PRAGMA foreign_keys = OFF`, `PRAGMA ignore_check_constraints = ON`, statement} {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%v: %s", err, s)
		}
	}
	must(t, db.Close())
	s, faults := tt.atRest(dir, 0)
	if s == nil {
		return faults
	}
	return append(append(faults, tt.audit(s, nil)...), tt.checkLists(dir, 0)...)
}
