package tables_test

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// newFleet returns a store with so many identities, from number 2 on, and as many certificates. Every tenth identity has
// the label batch=7.
func newFleet(b *testing.B, size int) *mill {
	b.Helper()
	m := newMill(b, filepath.Join(b.TempDir(), "brevet.db"))
	m.issue([]pki.SPIFFEID{m.identity(0)}, nil) // and the issuer with it
	for _, statement := range []string{
		`WITH RECURSIVE n(i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < %[1]d)
		 INSERT INTO identities (id, spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at)
		 SELECT i, 'spiffe://fleet.example/device/' || i, 1, 'device', 'null', 'null', 'null', 2, 1, 0 FROM n`,
		`WITH RECURSIVE n(i) AS (VALUES (10) UNION ALL SELECT i + 10 FROM n WHERE i < %[1]d)
		 INSERT INTO identity_labels (name, value, identity) SELECT 'batch', '7', i FROM n`,
		`WITH RECURSIVE n(i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < %[1]d)
		 INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after, crl_partition, state, reason, version, der)
		 SELECT i, unhex(printf('%%012x', %[2]d + i) || hex(randomblob(14))), 1, i, randomblob(16), i, 'device', %[2]d + i, %[2]d, %[3]d, 0, 1, 0, 1, randomblob(640) FROM n`,
	} {
		if err := m.db.OnWriter(b.Context(), fmt.Sprintf(statement, size, at.UnixMilli(), at.Add(24*time.Hour).UnixMilli())); err != nil {
			b.Fatal(err)
		}
	}
	return m
}

// BenchmarkCountBulk counts the certificates that a bulk revocation would revoke.
func BenchmarkCountBulk(b *testing.B) {
	const fleet = 1_000_000
	ctx := context.Background()
	m := newFleet(b, fleet)
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

// BenchmarkApplyBulk revokes every certificate of a profile while others are issued, one after the other, and reports:
//
//   - s-effective: until the observer has every status, as NotifyBulk gives it
//   - s-records: until every record has its status, in transactions of so many records
//   - ms-p99, ms-max: how long issuing one certificate took meanwhile, and ms-p99-before
func BenchmarkApplyBulk(b *testing.B) {
	for _, way := range []struct {
		name  string
		step  int // records in a transaction
		pause time.Duration
	}{
		{"one transaction", math.MaxInt32, 0},
		{"4096 at once", 4096, 0},
		{"128 at once, with pauses", 128, 10 * time.Millisecond},
	} {
		for _, fleet := range []int{100_000, 1_000_000} {
			b.Run(fmt.Sprintf("%d/%s", fleet, way.name), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					m := newFleet(b, fleet)
					before := issueDuring(m, func() { time.Sleep(3 * time.Second) })
					b.StartTimer()
					during := issueDuring(m, func() { applyBulk(b, m, fleet-1, way.step, way.pause) })
					b.ReportMetric(milliseconds(before, 0.99), "ms-p99-before")
					b.ReportMetric(milliseconds(during, 0.99), "ms-p99")
					b.ReportMetric(milliseconds(during, 1), "ms-max")
				}
			})
		}
	}
}

// issueDuring issues certificates one after the other while do runs, and returns how long each took, sorted.
func issueDuring(m *mill, do func()) []time.Duration {
	holder := m.identity(m.next + 10_000_000)
	ended, done := make(chan struct{}), make(chan []time.Duration)
	go func() {
		var took []time.Duration
		for {
			select {
			case <-ended:
				slices.Sort(took)
				done <- took
				return
			case <-time.After(5 * time.Millisecond):
			}
			begin := time.Now()
			if _, err := m.write([]pki.SPIFFEID{holder}, nil); err != nil {
				m.tb.Error(err)
			}
			took = append(took, time.Since(begin))
		}
	}()
	do()
	close(ended)
	return <-done
}

func milliseconds(sorted []time.Duration, quantile float64) float64 {
	at := min(len(sorted)-1, int(quantile*float64(len(sorted))))
	return float64(sorted[at].Microseconds()) / 1000
}

func applyBulk(b *testing.B, m *mill, want, step int, pause time.Duration) {
	b.Helper()
	ctx, begin := b.Context(), time.Now()
	created, _, err := m.db.Revocation().CreateBulk(ctx, revocation.BulkRequest{
		Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Selection: pki.Selection{Issuer: issuer},
		At: at.Add(time.Hour), Actor: pki.ActorCommand("test"),
	})
	if err != nil {
		b.Fatal(err)
	}
	var observed statusCount
	if created, err = m.db.Revocation().NotifyBulk(ctx, created.ID, &observed); err != nil || int(observed) < want {
		b.Fatal(int(observed), err)
	}
	b.ReportMetric(time.Since(begin).Seconds(), "s-effective")
	for !created.Done {
		if _, created, err = m.db.Revocation().ApplyBulk(ctx, created.ID, step, at.Add(time.Hour)); err != nil {
			b.Fatal(err)
		}
		time.Sleep(pause)
	}
	b.ReportMetric(time.Since(begin).Seconds(), "s-records")
}

// statusCount counts the statuses that it observes.
type statusCount int

// Apply implements pki.StatusObserver.
func (c *statusCount) Apply(changes ...pki.StatusChange) { *c += statusCount(len(changes)) }
