package tables_test

import (
	"crypto/sha256"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/store/tables/internal/restoring"
	"github.com/brevet-pki/brevet/translog"
)

// allEntries sequences the log of a store, and returns it.
func allEntries(t *testing.T, db *tables.DB) []translog.Sequenced {
	t.Helper()
	unsequenced(t, db)
	found, err := db.Log().Entries(t.Context(), 1, 500)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// intend writes an intent for certificates that are not recorded yet.
func (m *mill) intend(ids ...pki.SPIFFEID) (ca.Intent, []ca.Record) {
	m.tb.Helper()
	intent, records := ca.Intent{Batch: ca.NewBatchID()}, []ca.Record{}
	for _, id := range ids {
		m.next++
		r := record(id, m.next)
		digest := sha256.Sum256(r.DER)
		intent.Items = append(intent.Items, ca.IntentItem{Ref: r.Ref, Digest: digest[:], IssuedAt: r.IssuedAt, NotAfter: r.NotAfter})
		records = append(records, r)
	}
	if _, err := m.db.CA().Write(m.tb.Context(), m.epoch, nil, []ca.Intent{intent}); err != nil {
		m.tb.Fatal(err)
	}
	return intent, records
}

func (m *mill) token(n byte, id pki.SPIFFEID) pki.TokenID {
	m.tb.Helper()
	token, err := pki.TokenIDFromBytes(slices.Repeat([]byte{n}, 32))
	if err != nil {
		m.tb.Fatal(err)
	}
	_, err = m.db.RA().CreateToken(m.tb.Context(), ra.Token{
		ID: token, Identity: id, IdentityRevision: 1, Profile: "device", ExpiresAt: at.Add(time.Hour), CreatedBy: pki.ActorCommand("test"), CreatedAt: at,
	})
	if err != nil {
		m.tb.Fatal(err)
	}
	return token
}

// TestRestore replays the end of a log over an older copy of its store, which has tokens and intents that were open, and ends the
// restore. The log of the restored store gives the same records again.
func TestRestore(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	original, copied := filepath.Join(dir, "original.db"), filepath.Join(dir, "copy.db")
	m := newMill(t, original)
	ids := []pki.SPIFFEID{m.identity(0), m.identity(1), m.identity(2)}
	before := m.token(1, ids[0])
	taken, records := m.intend(ids[0], ids[1])
	lost, _ := m.intend(ids[2])
	unsequenced(t, m.db)
	m.identity(3) // the copy has an entry that is not sequenced
	if err := os.WriteFile(copied, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Snapshot(ctx, original, copied); err != nil {
		t.Fatal(err)
	}
	if _, err := m.db.CA().Write(ctx, m.epoch, []ca.BatchCommit{{Intent: taken, Records: records[:1], At: at}}, nil); err != nil {
		t.Fatal(err)
	}
	after := m.token(2, ids[2])
	log := allEntries(t, m.db)

	db := mustOpen(t, copied)
	s := db.Restoring()
	if err := s.Begin(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(ctx); err == nil || !strings.Contains(err.Error(), "run the same brevet restore again") {
		t.Errorf("during a restore: %v", err)
	}
	if _, _, err := db.CA().Begin(ctx); err == nil {
		t.Error("a server begins during a restore")
	}
	have := allEntries(t, db)
	if err := db.Log().Replay(ctx, log[len(have):]); err != nil {
		t.Fatal(err)
	}
	if want, got := rows(t, original), rows(t, copied); !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("replayed: %v, want %v", got, want)
	}

	least := big.NewInt(1 << 40)
	numbers, err := s.Numbers(ctx, least)
	if err != nil || len(numbers) != 1 || numbers[0].Number.Cmp(least) != 0 {
		t.Fatalf("the CRL numbers are %v, %v", numbers, err)
	}
	previous, err := db.Log().Epoch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mergeTwice(t, s, ids[0], records[0])
	list := translog.Hash(sha256.Sum256([]byte("a list")))
	r := translog.RestoredLog{Epoch: translog.Epoch{1}, Previous: previous, Numbers: numbers, List: list}
	if err := s.End(ctx, r, pki.ActorCommand("restore"), at); err != nil {
		t.Fatal(err)
	}
	if _, _, err := db.CA().Begin(ctx); err == nil || !strings.Contains(err.Error(), "--accept") {
		t.Errorf("a server begins before the list is accepted: %v", err)
	}
	if err := s.Accept(ctx, sha256.Sum256(nil), pki.ActorCommand("restore"), at); err == nil {
		t.Error("another list is accepted")
	}
	if err := s.Accept(ctx, list, pki.ActorCommand("restore"), at); err != nil {
		t.Fatal(err)
	}
	mustBeVoid(t, db, before, after)
	if number, err := db.Revocation().TakeNumber(ctx, issuer, at); err != nil || number.Cmp(new(big.Int).Add(least, big.NewInt(1))) != 0 {
		t.Errorf("the next CRL number is %v, %v", number, err)
	}
	_, left, err := db.CA().Begin(ctx)
	if err != nil || len(left) != 1 || left[0].Batch != lost.Batch {
		t.Errorf("the intents %v are left, want that of the certificate that no entry names: %v", left, err)
	}
	if again := replayed(t, allEntries(t, db)); !maps.EqualFunc(rows(t, again), rows(t, copied), slices.Equal) {
		t.Errorf("the log of the restored store gives %v, want %v", rows(t, again), rows(t, copied))
	}
}

// mergeTwice merges a CRL with a certificate that the store knows and two that it does not know. The second time, it changes
// nothing.
func mergeTwice(t *testing.T, s *restoring.Store, id pki.SPIFFEID, known ca.Record) {
	t.Helper()
	ctx := t.Context()
	merge := rules.Merge{
		Issuer: issuer, NotAfter: at.Add(time.Hour), Partition: func(pki.Serial) uint16 { return 3 }, By: pki.ActorCommand("restore"), At: at,
		Entries: []crl.Entry{
			{Serial: known.Ref.Serial, RevokedAt: at, Reason: pki.KeyCompromise, InvalidSince: at.Add(-time.Hour)},
			{Serial: record(id, 900).Ref.Serial, RevokedAt: at, Reason: pki.CertificateHold}, {Serial: record(id, 901).Ref.Serial, RevokedAt: at, Reason: pki.Superseded},
			{Serial: record(id, 902).Ref.Serial, Removed: true},
		},
	}
	changed, unknown, err := s.Merge(ctx, merge)
	if err != nil || len(changed) != 1 || len(unknown) != 2 || unknown[0].Status.State != pki.Revoked || unknown[0].Status.Reason != pki.Unspecified {
		t.Fatalf("the CRL changed %v and %v: %v", changed, unknown, err)
	}
	if changed, unknown, err = s.Merge(ctx, merge); err != nil || len(changed)+len(unknown) != 0 {
		t.Errorf("the CRL again changed %v and %v: %v", changed, unknown, err)
	}
}

func mustBeVoid(t *testing.T, db *tables.DB, tokens ...pki.TokenID) {
	t.Helper()
	for _, id := range tokens {
		if token, err := db.RA().Token(t.Context(), id); err != nil || token.RevokedBecause == "" {
			t.Errorf("the token %s is open: %v", id, err)
		}
	}
}
