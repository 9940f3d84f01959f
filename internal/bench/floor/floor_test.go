package floor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres/cluster"
	"github.com/brevet-pki/brevet/translog"
)

// The floor must not contain the code that it is compared with, nor anything else of Brevet.
func TestFloorImportsNothingOfBrevet(t *testing.T) {
	const self = "github.com/brevet-pki/brevet/internal/bench/floor"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if !slices.Contains(packages, self) {
		t.Fatalf("go list does not name the floor: %q", packages)
	}
	for _, p := range packages {
		if strings.HasPrefix(p, "github.com/brevet-pki/") && p != self {
			t.Errorf("the floor imports %s", p)
		}
	}
}

// The floor's schemas have the statements of the store's schemas.
func TestSchemaMatchesTheStore(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { testSchema(t, sqliteSchema, "../../../store/sqlite/migrations/00016_initial.sql") })
	t.Run("PostgreSQL", func(t *testing.T) {
		testSchema(t, postgresSchema, "../../../store/postgres/migrations/00001_initial.sql")
	})
}

func testSchema(t *testing.T, schema, store string) {
	t.Helper()
	text, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	theirs := map[string]bool{}
	for _, s := range statements(string(text)) {
		theirs[s] = true
	}
	ours := statements(schema)
	if len(ours) < 7 {
		t.Fatalf("the schema has %d statements", len(ours))
	}
	for _, s := range ours {
		if !theirs[s] {
			t.Errorf("the store's migration does not have: %s", s)
		}
		delete(theirs, s)
	}
	table := regexp.MustCompile(`^CREATE (?:UNIQUE )?INDEX \w+ ON (\w+)`)
	for s := range theirs { // without an index of the store, the floor would be too fast
		if m := table.FindStringSubmatch(s); len(m) > 1 && strings.Contains(schema, "CREATE TABLE "+m[1]+" ") {
			t.Errorf("the floor's schema lacks: %s", s)
		}
	}
}

func statements(text string) []string {
	text = regexp.MustCompile(`--[^\n]*`).ReplaceAllString(text, "")
	var found []string
	for s := range strings.SplitSeq(text, ";") {
		if s = strings.Join(strings.Fields(s), " "); s != "" {
			found = append(found, s)
		}
	}
	return found
}

// The log entry that the floor writes has the size of the store's entry.
func TestEntrySizeMatchesTheStore(t *testing.T) {
	id, err := pki.ParseSPIFFEID("spiffe://dev.brevet.internal/device/1")
	if err != nil {
		t.Fatal(err)
	}
	serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	issuer := pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Issuing CA")})
	request, err := pki.RequestIDFromBytes(bytes.Repeat([]byte{1}, 16))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	b, err := translog.Entry{
		Time: now, Actor: pki.ActorIdentity(id), Action: translog.CertificateIssued, Outcome: translog.Done, Identity: id,
		Changes: []pki.StatusChange{{
			Ref: pki.CertRef{Issuer: issuer, Serial: serial}, NotAfter: now, Status: pki.Status{State: pki.Good, Version: 1}, Fingerprint: make([]byte, 32),
		}},
		RequestID: request,
		Event: &translog.IssuedCertificate{
			Profile: "device", Key: pki.HashSPKI(nil), NotBefore: now.Add(-5 * time.Minute), IssueTime: now.Add(-5 * time.Millisecond),
			Partition: 1, Predecessor: serial,
		},
	}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != entrySize {
		t.Errorf("an entry about a renewal has %d bytes, and the floor's %d", len(b), entrySize)
	}
}

func TestFloor(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { testFloor(t, open(t, "")) })
	t.Run("PostgreSQL", func(t *testing.T) { testFloor(t, open(t, startPostgres(t))) })
}

func testFloor(t *testing.T, f *Floor) {
	t.Helper()
	cost, err := f.Cost(t.Context(), 30*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if cost.Check <= 0 || cost.Sign <= 0 || cost.Write <= 0 || cost.Bound() <= 0 {
		t.Errorf("a cost was not measured: %+v", cost)
	}
	before := count(t, f, "certificates")
	goroutines, err := f.Best(t.Context(), 140*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	rate, err := f.Rate(t.Context(), MaxGoroutines, 50*time.Millisecond)
	if err != nil || rate <= 0 {
		t.Errorf("with more goroutines than sessions: %v certificates per second, %v", rate, err)
	}
	rate, err = f.Rate(t.Context(), goroutines, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if rate <= 0 || goroutines < 1 || goroutines > MaxGoroutines {
		t.Errorf("with %[2]d goroutines: %[1]v certificates per second", rate, goroutines)
	}
	certificates := count(t, f, "certificates")
	if certificates <= before {
		t.Error("Cost has written no certificates")
	}
	if n := count(t, f, "log"); n != certificates-MaxGoroutines {
		t.Errorf("the database has %d rows in log for %d certificates", n, certificates-MaxGoroutines)
	}
	if n := count(t, f, "chain"); n == 0 || n > certificates {
		t.Errorf("the database has %d rows in chain", n)
	}
	if n := count(t, f, "intents"); n != 0 {
		t.Errorf("%d intents are left", n)
	}
}

func TestLatency(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { testLatency(t, open(t, "")) })
	t.Run("PostgreSQL", func(t *testing.T) { testLatency(t, open(t, startPostgres(t))) })
}

func testLatency(t *testing.T, f *Floor) {
	t.Helper()
	for _, d := range []time.Duration{0, 20 * time.Millisecond} {
		l, err := f.Latency(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if l.Write <= 0 || l.Sign <= 0 || l.Verify <= 0 {
			t.Errorf("a latency was not measured: %+v", l)
		}
	}
	if n := count(t, f, "log"); n < 2 {
		t.Errorf("Latency has written %d entries", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := f.Latency(ctx, time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %+v, %v", l, err)
	}
}

// startPostgres returns the connection string of an empty database.
func startPostgres(t *testing.T) string {
	t.Helper()
	c, err := cluster.Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c.Connection("postgres")
}

// open opens a floor on the PostgreSQL database with this connection string, or on SQLite if it is empty.
func open(t *testing.T, postgres string) *Floor {
	t.Helper()
	conf, err := hsm.WriteSoftHSM(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(hsm.SoftHSMConfEnv, conf)
	module, err := hsm.FindSoftHSM()
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	text := make([]byte, 8)
	_, _ = rand.Read(text)
	pin, err := hsm.NewPIN([]byte(hex.EncodeToString(text)))
	if err != nil {
		t.Fatal(err)
	}
	serial, err := hsm.Init(t.Context(), module, "floor", pin, pin)
	if err != nil {
		t.Fatal(err)
	}
	token, err := hsm.Open(t.Context(), hsm.Config{Module: module, Label: "floor"}, pin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.Generate(t.Context(), "key", hsm.P256); err != nil {
		t.Fatal(err)
	}
	c := Config{Directory: t.TempDir(), Module: module, Label: "floor", KeyLabel: "key", Sessions: 8, Postgres: postgres}
	f, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	bySerial := Config{Module: module, Serial: serial, KeyLabel: "key"}
	if same, err := openHSM(bySerial); err != nil || same.slot != f.hsm.slot || !same.public.Equal(f.hsm.public) {
		t.Errorf("the HSM with serial %s: %v", serial, err)
	}
	bySerial.Serial = "0"
	if other, err := openHSM(bySerial); err == nil {
		t.Errorf("an HSM with serial 0: slot %d", other.slot)
	}
	t.Cleanup(func() {
		if err := errors.Join(f.Close(), token.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(c.Directory, "floor.db")); (err == nil) != (postgres == "") {
			t.Errorf("the SQLite database: %v", err)
		}
	})
	return f
}

func count(t *testing.T, f *Floor, table string) int {
	t.Helper()
	var n int
	var err error
	query := "SELECT count(*) FROM " + table
	switch j := f.journal.(type) {
	case *sqlite:
		err = j.conn.QueryRowContext(t.Context(), query).Scan(&n)
	case *postgres:
		err = j.conn.QueryRow(t.Context(), query).Scan(&n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
