package postgres_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
)

// slowCommit has a COMMIT with a new intent take a second.
const slowCommit = `
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON intents DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`

// TestCommitOutlastsItsConnection cuts the connection while PostgreSQL executes a COMMIT, which takes effect later. The writer
// must not be told that it was not applied, and the driver must not cancel it.
func TestCommitOutlastsItsConnection(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cut, connection := &cutter{to: cluster}, cluster.Schema(t)
	config, err := pgx.ParseConfig(connection)
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = cut.dial
	db, err := postgres.OpenWith(ctx, config, "first")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	epoch, _, err := db.CA().Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pgx.Connect(ctx, connection)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(ctx)
	if _, err := other.PgConn().Exec(ctx, slowCommit).ReadAll(); err != nil {
		t.Fatal(err)
	}
	serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("a certificate"))
	issuer, err := pki.ParseIssuerID(hex.EncodeToString(digest[:]))
	if err != nil {
		t.Fatal(err)
	}
	intent := ca.Intent{Batch: ca.NewBatchID(), Items: []ca.IntentItem{{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Digest: digest[:], IssuedAt: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}}}
	cut.early.Store(true)
	cut.loseCommit(true)
	if _, err := db.CA().Write(ctx, epoch, nil, []ca.Intent{intent}); !pki.IsTemporary(err) {
		t.Fatalf("a COMMIT whose connection was cut: %v, want a temporary error", err)
	}
	if applied, err := db.CA().Applied(ctx, epoch, intent.Batch); err != nil || !applied {
		t.Errorf("the COMMIT was applied: %v, %v", applied, err)
	}
}
