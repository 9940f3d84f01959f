package tables_test

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// planningDriver records which columns SQLite looks up while it plans statements. It calls the authorizer only then.
type planningDriver struct {
	sqlite3.SQLiteDriver
	mu      sync.Mutex
	columns map[string]int
}

func (d *planningDriver) Open(dsn string) (driver.Conn, error) {
	conn, err := d.SQLiteDriver.Open(dsn)
	if err != nil {
		return nil, err
	}
	conn.(*sqlite3.SQLiteConn).RegisterAuthorizer(func(op int, table, column, _ string) int {
		if op == sqlite3.SQLITE_READ {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.columns[table+"."+column]++
		}
		return sqlite3.SQLITE_OK
	})
	return conn, nil
}

// take returns the recorded columns, and forgets them.
func (d *planningDriver) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer clear(d.columns)
	return slices.Sorted(maps.Keys(d.columns))
}

// TestStatementsArePlannedOnce runs what each certificate takes several times. Planning a statement again takes longer
// than executing it.
func TestStatementsArePlannedOnce(t *testing.T) {
	ctx := context.Background()
	d := &planningDriver{columns: map[string]int{}}
	db, err := sqlite.OpenWith(ctx, filepath.Join(t.TempDir(), "brevet.db"), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	epoch, _, err := db.CA().Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &mill{tb: t, db: db, epoch: epoch, at: at}
	ids := []pki.SPIFFEID{m.identity(1)}
	operations := map[string]func(n byte) error{
		"an ACME account and its order": func(n byte) error { return orderOnce(ctx, db, n) },
		"a certificate":                 func(byte) error { return issueOnce(ctx, m, ids) },
	}
	for name, run := range operations {
		for n := range byte(3) {
			d.take()
			if err := run(n); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if again := d.take(); n > 0 && len(again) > 0 {
				t.Errorf("%s: statements with these columns were planned again: %q", name, again)
			}
		}
	}
}

// orderOnce runs what the store does for an order of a new account.
func orderOnce(ctx context.Context, db *tables.DB, n byte) error {
	store, now := db.ACME(), at.Add(time.Duration(n)*time.Second)
	k := acme.ExternalKey{
		ID: acme.NewID(), Rule: "web", CreatedBy: pki.ActorSystem("test"), CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	if _, err := store.CreateExternalKey(ctx, k, []byte("sealed")); err != nil {
		return err
	}
	key := sha256.Sum256([]byte{n})
	a := acme.Account{ID: acme.NewID(), Key: key[:], Thumbprint: key, Status: acme.AccountValid, ExternalKey: k.ID, CreatedAt: now}
	if _, _, err := store.CreateAccount(ctx, a); err != nil {
		return err
	}
	o := acme.Order{
		ID: acme.NewID(), Account: a.ID, Status: acme.StatusPending, Identifiers: []acme.Identifier{{Type: acme.DNS, Value: "a.example"}},
		CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	z := acme.Authorization{
		ID: acme.NewID(), Account: a.ID, Order: o.ID, Identifier: o.Identifiers[0], Status: acme.StatusPending, ExpiresAt: o.ExpiresAt,
		Challenges: []acme.Challenge{{Type: acme.HTTP01, Token: "token", Status: acme.StatusPending}},
	}
	if err := store.CreateOrder(ctx, o, []acme.Authorization{z}); err != nil {
		return err
	}
	if _, err := store.Account(ctx, a.ID); err != nil {
		return err
	}
	for _, kind := range []acme.MoveKind{acme.Begin, acme.Succeed} {
		m := acme.Move{Authorization: z.ID, Kind: kind, Challenge: acme.HTTP01, At: now}
		if _, _, err := store.MoveAuthorization(ctx, m); err != nil {
			return err
		}
	}
	if _, err := store.Authorization(ctx, a.ID, z.ID, now); err != nil {
		return err
	}
	_, err := store.Order(ctx, o.ID, now)
	return err
}

// issueOnce issues a certificate, and reads it.
func issueOnce(ctx context.Context, m *mill, ids []pki.SPIFFEID) error {
	records := m.issue(ids, nil)
	_, err := m.db.RA().IssuanceState(ctx, ra.IssuanceQuery{
		Identity: ids[0], Request: records[0].RequestID, Key: records[0].KeyHash, At: at, MaxUnexpired: 7,
	})
	if err != nil {
		return err
	}
	_, err = m.db.RA().Certificate(ctx, records[0].Ref)
	return err
}
