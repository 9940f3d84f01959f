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
	"time"
)

// alteredFilesAreFound makes one change at a time to files that pass the audit. The audit must find each. The store's
// foreign keys and checks are off.
func alteredFilesAreFound(t *testing.T, g *testCA, random *rand.Rand) {
	tt := newCrashTest(t, g, random, "", nil, mixedLoad)
	for tt.before == nil || len(tt.observed.revoked) == 0 || len(tt.observed.states) == 0 || !slices.ContainsFunc(tt.before.rows, undelivered) || !tt.before.hasRevokedBatch() {
		if faults := tt.round(t, round{kill: killPoint{Step: after(stepSign), N: 20}, wait: hangTimeout}); len(faults) > 0 {
			t.Fatal(report(faults))
		}
	}
	tt.completeForAlterations(t)
	tt.server.stop(t)
	const newest = `(SELECT max(id) FROM certificates WHERE der IS NOT NULL)`
	// The first entry with the serial number of a delivered certificate is that of its issuance, and names its token.
	// In the encoding of an entry 180c is the revocation of certificates, and 8a01 the step of a bulk revocation.
	const issued = `(SELECT l.entry FROM log l JOIN certificates c ON instr(l.entry, c.serial) > 0 WHERE c.der IS NOT NULL`
	for _, c := range []struct{ change, finds string }{
		{`DELETE FROM certificates WHERE id = ` + newest, "which is not on record"},
		{`UPDATE certificates SET der = NULL, identity = NULL, digest = x'00', state = 3, revoked_at = 1 WHERE id = ` + newest, "which is not on record"},
		{`DELETE FROM certificates WHERE der IS NULL AND id > 8`, "neither a certificate nor a revoked record"},
		{`UPDATE certificates SET state = 1, revoked_at = NULL WHERE state = 3 AND der IS NOT NULL`, "was revoked, but is in state"},
		{`UPDATE identities SET state = 5 - state, resumes = CASE state WHEN 2 THEN 1 END WHERE state IN (2, 3)`, "last, but is in state"},
		{`DELETE FROM log WHERE id = (SELECT max(id) FROM log)`, "the archive has"},
		{`UPDATE log SET entry = x'0a00' WHERE id = 9`, "differs between the store and the archive"},
		{`UPDATE chain SET value = zeroblob(32) WHERE id = (SELECT max(id) FROM chain)`, "differs between the store and the archive"},
		{`UPDATE log SET entry = ` + issued + ` AND c.id = ` + newest + ` ORDER BY l.id LIMIT 1) WHERE id = 9`, "twice"},
		{`UPDATE log SET entry = ` + issued + ` AND EXISTS (SELECT 1 FROM tokens t WHERE instr(l.entry, t.token) > 0) ORDER BY l.id DESC LIMIT 1) WHERE id = 9`, "was used 2 times"},
		{`UPDATE bulk_revocations SET done = 0 WHERE id = (SELECT max(id) FROM bulk_revocations)`, "1 bulk revocations stay incomplete"},
		{`UPDATE certificates SET state = 1, revoked_at = NULL WHERE state = 3 AND der IS NOT NULL`, "is a member of bulk revocation"},
		{`UPDATE bulk_revocations SET label_value = 'none' WHERE label_value IS NOT NULL`, "of which it is not a member"},
		{`UPDATE bulk_revocations SET mark = 0 WHERE label_value IS NOT NULL`, "of which it is not a member"},
		{`UPDATE log SET entry = ` + issued + ` AND instr(l.entry, x'180c') > 0 AND instr(l.entry, x'8a01') > 0 ORDER BY l.id DESC LIMIT 1) WHERE id = 9`, "was revoked 2 times"},
		{`UPDATE crls SET position = 0 WHERE crl_partition = 0`, "lists certificate"},
		{`UPDATE certificates SET crl_partition = 3 - crl_partition WHERE crl_partition > 0`, "does not list certificate"},
		{`UPDATE crls SET number = zeroblob(20) WHERE delta = 1`, "has another number or scope than on record"},
		{`UPDATE crls SET digest = zeroblob(32) WHERE delta = 0`, "does not have the digest on record"},
		{`DELETE FROM crls WHERE delta = 1`, "CRLs are on record"},
		{`UPDATE crl_numbers SET taken = zeroblob(20)`, "CRLs, but only 0 numbers are taken"},
		{`UPDATE acme_orders SET certificate = NULL`, "for order"},
		{`DELETE FROM acme_orders WHERE certificate IS NOT NULL`, "but no order has it"},
		{`UPDATE acme_authorizations SET status = 1`, "authorizations are not valid"},
		{`UPDATE acme_accounts SET status = 1`, "was deactivated or revoked, but is valid"},
		{`UPDATE acme_accounts SET external_key = NULL`, "have the same external key, or none"},
		{`DELETE FROM acme_accounts`, "was created, but is not on record"},
		{`DELETE FROM rotations`, "was started, but is on record as"},
		{`UPDATE rotations SET affected = affected + 1`, "and in the log as"},
		{`UPDATE rotations SET ended_at = NULL, stopped = 0`, "was stopped, but is open"},
		{`INSERT INTO intents (batch, epoch, items) VALUES (zeroblob(16), 1, x'')`, "stay open"},
	} {
		if faults := tt.auditAltered(t, c.change); !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.finds) }) {
			t.Errorf("after %s: %s", c.change, report(faults))
		}
	}
	for _, l := range tt.publishedCRLs { // as if the previous check had seen newer CRLs
		l.Number.Add(l.Number, big.NewInt(1))
	}
	if faults := tt.checkCRLs(tt.dir, 0); len(faults) != 2*partitions+1 || !strings.Contains(faults[0], "before") {
		t.Errorf("after CRLs with higher numbers: %s", report(faults))
	}
	tt.publishedCRLs = nil
	if faults := tt.auditAltered(t, `SELECT 1`); len(faults) > 0 {
		t.Errorf("unchanged files: %s", report(faults))
	}
}

// completeForAlterations has clients act until there is a rotation that was stopped, an account that was given up, and an
// order with a certificate.
func (tt *crashTest) completeForAlterations(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(hangTimeout); len(tt.rotations.stopped) == 0; tt.fleet.rotate(t.Context()) {
		tt.fleet.devices[0].step(t.Context()) // so that there are certificates to rotate
		if time.Now().After(end) {
			t.Fatal("no rotation was stopped")
		}
	}
	c := tt.acme.clients[0]
	for end := time.Now().Add(hangTimeout); len(tt.acme.dead) == 0 || len(tt.acme.orders) == 0; {
		if c.account != nil && len(tt.acme.orders) > 0 {
			c.giveUp(t.Context())
		} else {
			c.step(t.Context())
		}
		if time.Now().After(end) {
			t.Fatal("no account was given up")
		}
	}
	if faults := tt.checkFiles(t); len(faults) > 0 {
		t.Fatal(report(faults))
	}
}

func undelivered(r row) bool { return r.der == nil }

// auditAltered audits a copy of the files after a change by an SQL statement.
func (tt *crashTest) auditAltered(t *testing.T, statement string) []string {
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
	s, faults := tt.waitIdle(dir, 0)
	if s == nil {
		return faults
	}
	return append(append(faults, tt.audit(s, nil)...), tt.checkCRLs(dir, 0)...)
}
