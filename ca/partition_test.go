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

// remembering is a journal that keeps the partitions of what is announced and recorded.
type remembering struct {
	ca.Journal
	mu        sync.Mutex
	announced map[pki.CertRef]uint16
	recorded  map[pki.CertRef]uint16
}

func (j *remembering) Write(ctx context.Context, epoch ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	j.mu.Lock()
	if j.announced == nil {
		j.announced, j.recorded = map[pki.CertRef]uint16{}, map[pki.CertRef]uint16{}
	}
	for _, intent := range announce {
		for _, item := range intent.Items {
			j.announced[item.Ref] = item.Partition
		}
	}
	for _, s := range settle {
		for _, r := range s.Records {
			j.recorded[r.Ref] = r.Partition
		}
	}
	j.mu.Unlock()
	return j.Journal.Write(ctx, epoch, settle, announce)
}

// partition is that of a certificate, which is announced and recorded with the same one.
func (j *remembering) partition(t testing.TB, ref pki.CertRef) uint16 {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	announced, ok := j.announced[ref]
	recorded, too := j.recorded[ref]
	if !ok || !too || announced != recorded {
		t.Errorf("certificate %s was announced in partition %d and recorded in %d", ref.Serial, announced, recorded)
	}
	return recorded
}

// Certificates are spread over the partitions there are, no more and no fewer, and one of another profile is in none.
func TestPartitionsOfCertificates(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{1, 2, 3} { // one store: the number may change
		journal := &remembering{Journal: w.store.CA()}
		a := w.openWith(t, journal, profile(t, parted), n)
		seen := map[uint16]int{}
		for range 60 { // one of three is missing once in 10^10 times
			c, err := issue(t.Context(), a, w.request(t))
			if err != nil {
				t.Fatal(err)
			}
			seen[journal.partition(t, c.Ref)]++
		}
		for i := range n {
			if seen[uint16(i+1)] == 0 || len(seen) != n {
				t.Errorf("of %d partitions certificates are in %v", n, seen)
			}
		}
		shut(t, a)
	}
	journal := &remembering{Journal: w.store.CA()}
	a := w.open(t, journal)
	defer shut(t, a)
	c, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatal(err)
	}
	if p := journal.partition(t, c.Ref); p != 0 {
		t.Errorf("a certificate of an unpartitioned profile is in partition %d", p)
	}
}

// Partitions fill alike: each gets its share of 4096 drafts within six standard deviations.
func TestPartitionsFillAlike(t *testing.T) {
	w := newWorld(t)
	const n, drafts = 16, 4096
	p := profile(t, parted)
	a := w.openWith(t, w.store.CA(), p, n)
	defer shut(t, a)
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
	const mean, far = drafts / n, 6 * 15.5 // the deviation is the root of 4096 * 1/16 * 15/16
	if slices.Min(counts[:]) < mean-far || slices.Max(counts[:]) > mean+far {
		t.Errorf("the partitions have %v", counts)
	}
}

func TestCRLPointsOfWhatHasNone(t *testing.T) {
	p := profile(t, parted)
	if url, delta := p.CRLPoint(pki.IssuerID{}, 0); url != "" || delta != "" {
		t.Errorf("partition 0 is at %q and %q", url, delta)
	}
	if url, delta := profiles(t)["device"].CRLPoint(pki.IssuerID{}, 1); url != "" || delta != "" {
		t.Errorf("an unpartitioned profile names %q and %q", url, delta)
	}
}

func TestPartitionsAreBounded(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{-1, 0, ca.MaxPartitions + 1} {
		if _, err := ca.New(t.Context(), ca.Config{
			IssuingCAs: []ca.IssuingCA{w.issuer}, Profiles: profiles(t), Partitions: n, Journal: w.store.CA(), Observer: w.observed, Meter: unmetered{}, Clock: time.Now,
		}); err == nil {
			t.Errorf("an authority has %d partitions", n)
		}
	}
}

// What a profile says of noRevAvail is in its certificates, and nothing about where their revocation would be.
func TestCertificatesThatNobodyChecks(t *testing.T) {
	w := newWorld(t)
	p := profile(t, func(c *ca.ProfileConfig) { unchecked(c); c.Lint = true })
	a := w.openWith(t, w.store.CA(), p, 1)
	defer shut(t, a)
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
		t.Errorf("the certificate has noRevAvail %d times, CRLs at %v and OCSP at %v", found, cert.CRLDistributionPoints, cert.OCSPServer)
	}
}
