package sqlite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// BenchmarkCountSet finds the members of a set in a store with as many identities as certificates, of which every tenth
// has the label.
func BenchmarkCountSet(b *testing.B) {
	const fleet = 1_000_000
	ctx := context.Background()
	m := newMill(b, filepath.Join(b.TempDir(), "brevet.db"))
	m.issue([]pki.SPIFFEID{m.identity(0)}, nil) // and the issuer with it
	for _, statement := range []string{
		`WITH RECURSIVE n(i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < %[1]d)
		 INSERT INTO identities (id, spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, generation, created_at)
		 SELECT i, 'spiffe://fleet.example/device/' || i, 1, 'device', 'null', 'null', 'null', 2, 1, 0 FROM n`,
		`WITH RECURSIVE n(i) AS (VALUES (10) UNION ALL SELECT i + 10 FROM n WHERE i < %[1]d)
		 INSERT INTO identity_labels (name, value, identity) SELECT 'batch', '7', i FROM n`,
		`WITH RECURSIVE n(i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < %[1]d)
		 INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after, crl_partition, state, reason, version, der)
		 SELECT i, unhex(printf('%%012x', %[2]d + i) || hex(randomblob(14))), 1, i, randomblob(16), i, 'device', %[2]d + i, %[2]d, %[3]d, 0, 1, 0, 1, randomblob(640) FROM n`,
	} {
		if err := m.db.OnWriter(ctx, fmt.Sprintf(statement, fleet, at.UnixMilli(), at.Add(24*time.Hour).UnixMilli())); err != nil {
			b.Fatal(err)
		}
	}
	from := at.Add(500 * time.Second)
	for name, s := range map[string]struct {
		pki.Selection
		want int
	}{
		"label":   {pki.Selection{Label: pki.Label{Name: "batch", Value: "7"}}, fleet / 10},
		"time":    {pki.Selection{IssuedFrom: from, IssuedUntil: from.Add(100 * time.Second)}, 100_000},
		"profile": {pki.Selection{Profile: "device"}, fleet},
		"issuer":  {pki.Selection{Issuer: issuer}, fleet},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n, err := m.db.Revocation().CountBulk(ctx, revocation.BulkRequest{Action: revocation.Revoke, Selection: s.Selection, At: at.Add(time.Hour)})
				if err != nil || n.Valid+n.Expired != s.want {
					b.Fatal(n, err)
				}
			}
		})
	}
}
