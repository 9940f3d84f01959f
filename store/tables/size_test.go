package tables_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/store/tables/internal/crlindex"
)

// derSize is the size in bytes of a P-256 certificate with a SPIFFE ID, one DNS name and the URLs of CRL, OCSP and issuer.
const derSize = 640

// record is certificate n, which looks as random as real ones where that counts.
func record(id pki.SPIFFEID, n uint64) ca.Record {
	noise := rand.NewChaCha8(sha256.Sum256(binary.BigEndian.AppendUint64(nil, n)))
	var random [pki.SerialRandomSize]byte
	var request [16]byte
	der, key := make([]byte, derSize), make([]byte, 32)
	for _, b := range [][]byte{random[:], request[:], der, key} {
		_, _ = noise.Read(b) // never fails
	}
	serial, err := pki.MakeSerial(at.Add(time.Duration(n)*time.Millisecond), random)
	if err != nil {
		panic(err)
	}
	requestID, err := pki.RequestIDFromBytes(request[:])
	if err != nil {
		panic(err)
	}
	r := ca.Record{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Identity: id, Profile: "device", KeyHash: pki.HashSPKI(key),
		IssuedAt: at.Add(time.Duration(n) * time.Millisecond), NotBefore: at, NotAfter: at.Add(24 * time.Hour), DER: der, RequestID: requestID, Actor: pki.ActorSystem("test"),
	}
	r.Guard = pki.Guard{Key: r.KeyHash}
	return r
}

var issuer = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Issuing CA")})

// mill issues batches of certificates, for tests that need many.
type mill struct {
	tb    testing.TB
	db    *tables.DB
	epoch ca.Epoch
	at    time.Time // of what it issues
	next  uint64

	partitions int // that certificates are in, by turns, from 0 on; zero is one
}

func newMill(tb testing.TB, path string) *mill {
	tb.Helper()
	db, err := sqlite.Open(context.Background(), path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return newMillOn(tb, db)
}

func newMillOn(tb testing.TB, db *tables.DB) *mill {
	tb.Helper()
	epoch, _, err := db.CA().Begin(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	return &mill{tb: tb, db: db, epoch: epoch, at: at}
}

func (m *mill) identity(n uint64) pki.SPIFFEID {
	m.tb.Helper()
	id, err := m.db.RA().CreateIdentity(context.Background(), ra.Registration{Identity: device(n)}, pki.ActorCommand("test"))
	if err != nil {
		m.tb.Fatal(err)
	}
	return id.ID
}

// issue issues a batch with one certificate for each identity. If predecessors are given, it renews them.
func (m *mill) issue(ids []pki.SPIFFEID, predecessors []ca.Record) []ca.Record {
	m.tb.Helper()
	records, err := m.write(ids, predecessors)
	if err != nil {
		m.tb.Fatal(err)
	}
	return records
}

func (m *mill) write(ids []pki.SPIFFEID, predecessors []ca.Record) ([]ca.Record, error) {
	intent := ca.Intent{Batch: ca.NewBatchID()}
	var records []ca.Record
	for i, id := range ids {
		m.next++
		r := record(id, m.next)
		r.NotBefore, r.NotAfter = m.at, m.at.Add(24*time.Hour)
		r.Partition = uint16(m.next) % uint16(max(1, m.partitions))
		if predecessors != nil {
			r.Guard.Predecessor = predecessors[i].Ref
		}
		digest := sha256.Sum256(r.DER)
		intent.Items = append(intent.Items, ca.IntentItem{Ref: r.Ref, Digest: digest[:], IssuedAt: r.IssuedAt, NotAfter: r.NotAfter, Partition: r.Partition})
		records = append(records, r)
	}
	if _, err := m.db.CA().Write(context.Background(), m.epoch, nil, []ca.Intent{intent}); err != nil {
		return nil, err
	}
	results, err := m.db.CA().Write(context.Background(), m.epoch, []ca.BatchCommit{{Intent: intent, Records: records, At: m.at}}, nil)
	if err != nil {
		return nil, err
	}
	var refused []error
	for _, v := range results[0] {
		refused = append(refused, v.Refusal)
	}
	return records, errors.Join(refused...)
}

// TestBytesPerCertificate bounds what a renewed certificate takes on disk, indexes and log included. About 20 bytes of it
// are the time of issue and the index by it, in whose order certificates are listed and selected.
func TestBytesPerCertificate(t *testing.T) {
	const fleet, renewals, most = 200, 15, 1270
	path := filepath.Join(t.TempDir(), "brevet.db")
	m := newMill(t, path)
	var ids []pki.SPIFFEID
	for n := range uint64(fleet) {
		ids = append(ids, m.identity(n))
	}
	empty := sizeAfterClose(t, m, path)
	m = newMill(t, path)
	last := m.issue(ids, nil)
	for range renewals {
		last = m.issue(ids, last)
		for unsequenced(t, m.db) > 0 {
			continue
		}
	}
	size := sizeAfterClose(t, m, path)
	each := (size - empty) / (fleet * (renewals + 1))
	t.Logf("%d bytes for a certificate of %d", each, derSize)
	if each > most {
		t.Errorf("a certificate of %d bytes takes %d, over %d", derSize, each, most)
	}
}

func sizeAfterClose(t *testing.T, m *mill, path string) int64 {
	t.Helper()
	if err := m.db.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestManyChangesAreSeveralEntries checks that a change of very many certificates fits the log.
func TestManyChangesAreSeveralEntries(t *testing.T) {
	ctx := context.Background()
	m := newMill(t, filepath.Join(t.TempDir(), "brevet.db"))
	id := m.identity(0)
	for unsequenced(t, m.db) > 0 {
		continue
	}
	const abandoned = 4200
	intent := ca.Intent{Batch: ca.NewBatchID()}
	for range abandoned {
		m.next++
		intent.Items = append(intent.Items, ca.IntentItem{Ref: record(id, m.next).Ref, IssuedAt: at, NotAfter: at})
	}
	if _, err := m.db.CA().Write(ctx, m.epoch, nil, []ca.Intent{intent}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.db.CA().Write(ctx, m.epoch, []ca.BatchCommit{{Intent: intent, At: at}}, nil); err != nil {
		t.Fatal(err)
	}
	if n := unsequenced(t, m.db); n != 2 {
		t.Errorf("%d log entries for %d changes, want 2", n, abandoned)
	}
	head, err := m.db.Log().Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	logged := 0
	last, err := m.db.Revocation().Changes(ctx, head.Size-2, 10, func(changes []pki.StatusChange) { logged += len(changes) })
	if err != nil || logged != abandoned || last != head.Size {
		t.Errorf("the feed has %d changes up to %d, %v", logged, last, err)
	}
}

// TestQueriesUseIndexes checks the query plans of the statements whose cost could grow with the number of certificates.
func TestQueriesUseIndexes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	db := raw(t, path)
	for query, index := range map[string]string{
		`SELECT 1 FROM certificates WHERE identity = ? AND request = ?`:                      "certificates_by_request",
		`SELECT k.rest FROM identities n LEFT JOIN keys k ON k.id = ? WHERE n.spiffe_id = ?`: "SEARCH k USING INTEGER PRIMARY KEY",
		crlindex.NextPartition: "certificates_changed",
		crlindex.SelectTail:    "certificates_changed",
		crlindex.SelectRecords + `AND not_after >= ? ORDER BY changed, id`:                                        "certificates_changed",
		`SELECT EXISTS (SELECT 1 FROM certificates WHERE issuer = ? AND crl_partition = ? AND changed > ?)`:       "certificates_changed",
		`SELECT serial FROM certificates c JOIN issuers i ON i.id = c.issuer WHERE c.serial = ? AND i.issuer = ?`: "sqlite_autoindex_certificates_1",
		tables.SelectCaller:                  "sqlite_autoindex_certificates_1",
		tables.SelectGuarded:                 "COVERING INDEX certificates_by_identity",
		tables.SelectIssuanceState:           "COVERING INDEX certificates_by_identity",
		tables.SelectExpired:                 "certificates_by_expiry",
		tables.DeleteExpired:                 "certificates_by_expiry",
		tables.CountRange:                    "certificates_by_expiry",
		tables.DeleteTokens:                  "tokens_by_expiry",
		tables.DeleteNonces:                  "SEARCH nonces USING PRIMARY KEY (expires_at<?)",
		tables.CountOpenOrders:               "COVERING INDEX acme_orders_by_account",
		tables.CountUnexpiredOrders:          "COVERING INDEX acme_orders_by_names",
		tables.SelectGuardedOrder:            "COVERING INDEX certificates_by_identity",
		tables.DeleteAuthorizations:          "acme_orders_by_not_after",
		tables.DeleteOrders:                  "acme_orders_by_not_after",
		tables.DeleteAbandonedAuthorizations: "acme_orders_by_expiry",
		tables.DeleteAbandonedOrders:         "acme_orders_by_expiry",
		tables.EraseExternalKeys:             "acme_external_keys_sealed",
		tables.IsReplaced:                    "acme_orders_by_replaces (replaces=? AND certificate=? AND expires_at>?)",
		`SELECT public_id FROM acme_orders WHERE certificate = ?`:                           "acme_orders_by_certificate",
		`SELECT z.place FROM acme_authorizations z WHERE z.acme_order = ? ORDER BY z.place`: "sqlite_autoindex_acme_authorizations_2",
		tables.SelectHolder:        "identities_by_subject",
		tables.SelectNonce:         "SEARCH nonces USING PRIMARY KEY",
		tables.ReplaceRequestToken: "sqlite_autoindex_operator_requests_1",
		`SELECT log.id FROM log LEFT JOIN chain ON chain.id = log.id WHERE log.id > ? AND log.id <= ? ORDER BY log.id`:             "INTEGER PRIMARY KEY",
		`SELECT spiffe_id FROM identities WHERE spiffe_id > ? ORDER BY spiffe_id LIMIT ?`:                                          "sqlite_autoindex_identities_1",
		`SELECT c.id FROM certificates c WHERE c.identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND c.not_after >= ? `: "certificates_by_identity",
		`SELECT c.id FROM certificates c WHERE c.identity = (SELECT id FROM identities WHERE spiffe_id = ?) AND c.request = ?    `: "certificates_by_request",
	} {
		plan := explain(t, db, query)
		if !strings.Contains(plan, index) || strings.Contains(plan, "TEMP B-TREE") || strings.Contains(plan, "SCAN certificates") {
			t.Errorf("%s\nruns as\n%s\nwithout %s", query, plan, index)
		}
	}
}

// TestListsUseIndexes checks that lists read in the order of an index, and look at the records of one identity alone if the
// filter names it. Records of one millisecond are sorted.
func TestListsUseIndexes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.db")
	m := newMill(t, path)
	id := m.identity(1)
	r := m.issue([]pki.SPIFFEID{id}, nil)[0]
	place := ra.CertificatePosition{IssuedAt: at, Serial: r.Ref.Serial}
	for name, c := range map[string]struct {
		f     ra.CertificateFilter
		index string
	}{
		"all":          {ra.CertificateFilter{}, "SEARCH c USING INDEX certificates_by_issue (issued_at<?)"},
		"a profile":    {ra.CertificateFilter{Selection: pki.Selection{Profile: "device"}}, "SEARCH c USING INDEX certificates_by_issue (issued_at<?)"},
		"a time":       {ra.CertificateFilter{Selection: pki.Selection{IssuedFrom: at, IssuedUntil: at.Add(1)}}, "SEARCH c USING INDEX certificates_by_issue (issued_at>? AND issued_at<?)"},
		"not renewed":  {ra.CertificateFilter{NotRenewedSince: at}, "SEARCH m USING INDEX certificates_by_identity (identity=? AND not_after>?)"},
		"one identity": {ra.CertificateFilter{Selection: pki.Selection{Identity: id}}, "SEARCH c USING INDEX certificates_by_identity (identity=?)"},
		"a lineage":    {ra.CertificateFilter{Selection: pki.Selection{LineageOf: r.Ref}}, "SEARCH c USING INTEGER PRIMARY KEY"},
	} {
		query, err := m.db.CertificatesQuery(context.Background(), c.f, place)
		if err != nil {
			t.Fatal(err)
		}
		plan := explain(t, raw(t, path), query)
		if !strings.Contains(plan, c.index) || strings.Contains(plan, "SCAN c") || !c.f.OfOneIdentity() && strings.Contains(plan, "TEMP B-TREE FOR ORDER BY") {
			t.Errorf("a page of %s runs as\n%s", name, plan)
		}
	}
	var tokenID pki.TokenID
	for name, f := range map[string]ra.TokenFilter{"tokens_by_creation": {States: []ra.TokenState{ra.TokenOpen}}, "tokens_by_identity": {Identity: id}} {
		query := tables.TokensQuery(f, ra.TokenPosition{CreatedAt: at, ID: tokenID})
		if plan := explain(t, raw(t, path), query); !strings.Contains(plan, name) {
			t.Errorf("a page of tokens runs without %s as\n%s", name, plan)
		}
	}
}

// TestListsLookAtABoundedNumber checks that a page of a filter that matches few records ends early, and that others follow.
func TestListsLookAtABoundedNumber(t *testing.T) {
	m := newMill(t, filepath.Join(t.TempDir(), "brevet.db"))
	ctx := context.Background()
	const many = 2*ra.MaxLooked + 1
	err := m.db.OnWriter(ctx, fmt.Sprintf(`
		WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < %[1]d)
		INSERT INTO identities (spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at)
		SELECT printf('spiffe://fleet.example/device/%%06d', i), 1, CASE i WHEN %[1]d THEN 'rare' ELSE 'device' END, 'null', 'null', 'null', 1, 1, 0 FROM n`, many))
	if err != nil {
		t.Fatal(err)
	}
	var lengths []int
	for after := (pki.SPIFFEID{}); ; {
		page, next, err := m.db.RA().Identities(ctx, ra.IdentityFilter{Profile: "rare"}, at, after, 10)
		if err != nil {
			t.Fatal(err)
		}
		if lengths = append(lengths, len(page)); next.IsZero() {
			break
		}
		after = next
	}
	if !slices.Equal(lengths, []int{0, 0, 1}) {
		t.Errorf("the pages have %v identities, want two empty ones and one of one", lengths)
	}
}

// TestIdentitiesWithManyCertificatesAreBounded checks that a page of one identity's certificates looks at a bounded number,
// and that a lineage among too many certificates is refused.
func TestIdentitiesWithManyCertificatesAreBounded(t *testing.T) {
	m := newMill(t, filepath.Join(t.TempDir(), "brevet.db"))
	ctx := context.Background()
	first := m.issue([]pki.SPIFFEID{m.identity(1)}, nil)
	add := func(n int) {
		t.Helper()
		err := m.db.OnWriter(ctx, fmt.Sprintf(`
			WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO certificates (serial, issuer, identity, request, key, profile, issued_at, not_before, not_after, crl_partition, state, reason, version, der)
			SELECT CAST(substr(c.serial, 1, 8) || randomblob(12) AS BLOB), c.issuer, c.identity, randomblob(16), c.key, c.profile, c.issued_at + n.i, c.not_before,
			       c.not_after + n.i, c.crl_partition, 1, 0, 1, c.der
			FROM n CROSS JOIN certificates c WHERE c.id = (SELECT max(id) FROM certificates)`, n))
		if err != nil {
			t.Fatal(err)
		}
	}
	pages := func(f ra.CertificateFilter, limit int) (lengths []int) {
		t.Helper()
		for after := (ra.CertificatePosition{}); ; {
			page, next, err := m.db.RA().Certificates(ctx, f, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			if lengths = append(lengths, len(page)); next.IsZero() {
				return lengths
			}
			after = next
		}
	}
	ofIdentity := ra.CertificateFilter{Selection: pki.Selection{Identity: first[0].Identity}}
	rare := ra.CertificateFilter{Selection: ofIdentity.Selection, ExpiresUntil: first[0].NotAfter.Add(1)}
	lineage := pki.Selection{LineageOf: first[0].Ref}
	o := revocation.BulkRequest{Selection: lineage, Action: revocation.Revoke, Reason: pki.Superseded, Actor: pki.ActorCommand("test"), At: m.at}

	add(ra.MaxLooked - 1)
	if got := pages(rare, 10); !slices.Equal(got, []int{1}) {
		t.Errorf("beside as many as a page looks at, the pages have %v certificates, want one of one", got)
	}
	if got := pages(ra.CertificateFilter{Selection: lineage}, 10); !slices.Equal(got, []int{1}) {
		t.Errorf("the pages of the lineage have %v certificates, want one of one", got)
	}
	if _, _, err := m.db.Revocation().CreateBulk(ctx, o); !isRefusal(err, pki.RuleOverloaded) {
		t.Errorf("a bulk revocation of a lineage among as many: %v", err)
	}

	add(1)
	if got := pages(rare, 10); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("beside more than a page looks at, the pages have %v certificates, want none and one", got)
	}
	if got := pages(ofIdentity, 6000); !slices.Equal(got, []int{6000, ra.MaxLooked + 1 - 6000}) {
		t.Errorf("the pages of the identity have %v certificates", got)
	}
	_, _, listed := m.db.RA().Certificates(ctx, ra.CertificateFilter{Selection: lineage}, ra.CertificatePosition{}, 10)
	_, counted := m.db.Revocation().CountBulk(ctx, o)
	_, _, created := m.db.Revocation().CreateBulk(ctx, o)
	for what, err := range map[string]error{"list": listed, "dry run": counted, "bulk revocation": created} {
		if !isRefusal(err, pki.RuleOverloaded) {
			t.Errorf("a %s of a lineage among too many certificates: %v", what, err)
		}
	}
}

func isRefusal(err error, rule pki.Rule) bool {
	var refusal *pki.Refusal
	return errors.As(err, &refusal) && refusal.Rule == rule
}

func explain(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	args := make([]any, strings.Count(query, "?")-strings.Count(query, "?1")+min(1, strings.Count(query, "?1")))
	rows, err := db.Query("EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, detail)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(plan, "\n")
}

func BenchmarkIssue(b *testing.B) {
	for name, size := range map[string]int{"batches of one": 1, "batches of 64": 64} {
		b.Run(name, func(b *testing.B) {
			m := newMill(b, filepath.Join(b.TempDir(), "brevet.db"))
			ids := make([]pki.SPIFFEID, size)
			for i := range ids {
				ids[i] = m.identity(uint64(i))
			}
			for i := 0; i < b.N; i += size {
				m.issue(ids, nil)
			}
		})
	}
}
