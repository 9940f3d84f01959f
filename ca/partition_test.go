package ca_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// partitionJournal is a journal that records the partitions in intents and records.
type partitionJournal struct {
	ca.Journal
	mu       sync.Mutex
	intended map[pki.CertRef]uint16
	recorded map[pki.CertRef]uint16
}

func (j *partitionJournal) Write(ctx context.Context, epoch ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	j.mu.Lock()
	if j.intended == nil {
		j.intended, j.recorded = map[pki.CertRef]uint16{}, map[pki.CertRef]uint16{}
	}
	for _, intent := range intents {
		for _, item := range intent.Items {
			j.intended[item.Ref] = item.Partition
		}
	}
	for _, s := range commits {
		for _, r := range s.Records {
			j.recorded[r.Ref] = r.Partition
		}
	}
	j.mu.Unlock()
	return j.Journal.Write(ctx, epoch, commits, intents)
}

// partition returns a certificate's partition, which must be the same in its intent and its record.
func (j *partitionJournal) partition(t testing.TB, ref pki.CertRef) uint16 {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	intended, ok := j.intended[ref]
	recorded, too := j.recorded[ref]
	if !ok || !too || intended != recorded {
		t.Errorf("certificate %s has partition %d in its intent and %d in its record", ref.Serial, intended, recorded)
	}
	return recorded
}

// Certificates of a partitioned profile are spread over all partitions. Those of other profiles have no partition.
func TestCertificatesAreSpreadOverPartitions(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{1, 2, 3} { // on the same store: the number may change
		journal := &partitionJournal{Journal: w.store.CA()}
		a := w.openWith(t, journal, profile(t, withPartitions), n)
		seen := map[uint16]int{}
		for range 60 { // the probability that one of three partitions is missing is 10^-10
			c, err := issue(t.Context(), a, w.request(t))
			if err != nil {
				t.Fatal(err)
			}
			seen[journal.partition(t, c.Ref)]++
		}
		for i := range n {
			if seen[uint16(i+1)] == 0 || len(seen) != n {
				t.Errorf("with %d partitions, certificates are in %v", n, seen)
			}
		}
		closeAuthority(t, a)
	}
	journal := &partitionJournal{Journal: w.store.CA()}
	a := w.open(t, journal)
	defer closeAuthority(t, a)
	c, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatal(err)
	}
	if p := journal.partition(t, c.Ref); p != 0 {
		t.Errorf("a certificate of an unpartitioned profile has partition %d", p)
	}
}

// Each partition gets its share of 4096 drafts within six standard deviations.
func TestPartitionsHaveSimilarSizes(t *testing.T) {
	w := newWorld(t)
	const n, drafts = 16, 4096
	p := profile(t, withPartitions)
	a := w.openWith(t, w.store.CA(), p, n)
	defer closeAuthority(t, a)
	issuer := pki.IssuerOf(w.issuer.Certificate)
	places, counts := map[string]int{}, [n]int{}
	for i := range n {
		url, _ := p.CRLPoint(issuer, uint16(i+1))
		places[url] = i
	}
	if len(places) != n {
		t.Fatalf("%d partitions have %d URLs", n, len(places))
	}
	req := w.request(t)
	for range drafts {
		d, err := a.Draft(req)
		if err != nil {
			t.Fatal(err)
		}
		tbs := ca.TBSOf(d)
		for url, i := range places {
			if bytes.Contains(tbs, []byte(url)) {
				counts[i]++
			}
		}
	}
	const mean, far = drafts / n, 6 * 15.5 // the standard deviation is the root of 4096 * 1/16 * 15/16
	if slices.Min(counts[:]) < mean-far || slices.Max(counts[:]) > mean+far {
		t.Errorf("certificates per partition: %v", counts)
	}
}

func TestCRLPointWithoutPartition(t *testing.T) {
	p := profile(t, withPartitions)
	if url, delta := p.CRLPoint(pki.IssuerID{}, 0); url != "" || delta != "" {
		t.Errorf("partition 0 has the URLs %q and %q", url, delta)
	}
	if url, delta := profiles(t)["device"].CRLPoint(pki.IssuerID{}, 1); url != "" || delta != "" {
		t.Errorf("an unpartitioned profile has the URLs %q and %q", url, delta)
	}
}

func TestPartitionsAreBounded(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{-1, 0, ca.MaxPartitions + 1} {
		if _, err := ca.New(t.Context(), ca.Config{
			TrustDomain: "fleet.example", IssuingCAs: []ca.IssuingCA{w.issuer}, Partitions: n, Journal: w.store.CA(), Observer: w.observed, Meter: noMeter{}, Clock: time.Now,
		}); err == nil {
			t.Errorf("New accepted %d partitions", n)
		}
	}
}

// With noRevAvail in the profile, certificates have the extension and no URLs for revocation information.
func TestNoRevAvailCertificates(t *testing.T) {
	w := newWorld(t)
	p := profile(t, func(c *ca.ProfileConfig) { withNoRevAvail(c); c.Lint = true })
	a := w.openWith(t, w.store.CA(), p, 1)
	defer closeAuthority(t, a)
	c, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatal(err)
	}
	sameAsX509(t, c.DER, w.issuer.Certificate)
	cert, found := parse(t, c.DER), 0
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidNoRevAvail) && !e.Critical && bytes.Equal(e.Value, []byte{5, 0}) {
			found++
		}
	}
	if found != 1 || len(cert.CRLDistributionPoints)+len(cert.OCSPServer) != 0 || len(cert.IssuingCertificateURL) != 1 {
		t.Errorf("the certificate has noRevAvail %d times, CRLs at %v and OCSP at %v",
			found, cert.CRLDistributionPoints, cert.OCSPServer)
	}
}
