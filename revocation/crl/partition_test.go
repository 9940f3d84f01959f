package crl_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

var (
	oidPoints   = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidFreshest = asn1.ObjectIdentifier{2, 5, 29, 46}
	oidDelta    = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIDP      = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// pointIn returns the distribution point of a partition, with the URL of a delta CRL.
func (s *scene) pointIn(partition uint16, host string) crl.Point {
	scope := crl.Scope{Issuer: s.ca.ID(), Partition: partition}
	delta := scope
	delta.Delta = true
	return crl.Point{
		Issuer: s.ca.ID(), Partition: partition, URL: "http://" + host + "/crl/" + scope.Path(), DeltaURL: "http://" + host + "/crl/" + delta.Path(),
	}
}

// A distributionPoint is a DistributionPoint with only a fullName (RFC 5280 §4.2.1.13), for encoding/asn1.
type distributionPoint struct {
	Name struct {
		FullName []asn1.RawValue `asn1:"tag:0"`
	} `asn1:"tag:0"`
}

func pointsExtension(t testing.TB, oid asn1.ObjectIdentifier, url string) pkix.Extension {
	t.Helper()
	var point distributionPoint
	point.Name.FullName = []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(url)}}
	value, err := asn1.Marshal([]distributionPoint{point})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oid, Value: value}
}

// issueIn issues a certificate with a distribution point, and records it.
func (s *scene) issueIn(t testing.TB, p crl.Point) (*x509.Certificate, pki.CertRef) {
	t.Helper()
	extensions := []pkix.Extension{pointsExtension(t, oidPoints, p.URL)}
	if p.DeltaURL != "" {
		extensions = append(extensions, pointsExtension(t, oidFreshest, p.DeltaURL))
	}
	leaf := s.ca.LeafWith(t, "device", extensions)
	ref := s.ca.Ref(t, leaf)
	s.book.IssueIn(p.Partition, ref, leaf.NotAfter)
	return leaf, ref
}

func (s *scene) change(t testing.TB, action revocation.Action, ref pki.CertRef) {
	t.Helper()
	if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: action, Certificate: ref, Actor: operator}); err != nil {
		t.Fatal(err)
	}
}

// all returns every published CRL of a scope, oldest first.
func (s *scene) all(t testing.TB, partition uint16, delta bool) (all []*x509.RevocationList) {
	t.Helper()
	for _, c := range s.outlet.Published() {
		if c.Scope() == (crl.Scope{Issuer: s.ca.ID(), Partition: partition, Delta: delta}) {
			all = append(all, parse(t, c))
		}
	}
	return all
}

func (s *scene) last(t testing.TB, partition uint16, delta bool) *x509.RevocationList {
	t.Helper()
	all := s.all(t, partition, delta)
	if len(all) == 0 {
		t.Fatalf("no CRL of partition %d, delta %v, was published", partition, delta)
	}
	return all[len(all)-1]
}

func (s *scene) publishNow(t testing.TB) {
	t.Helper()
	if err := s.PublishNow(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func extension(list *x509.RevocationList, oid asn1.ObjectIdentifier) *pkix.Extension {
	for _, e := range list.Extensions {
		if e.Id.Equal(oid) {
			return &e
		}
	}
	return nil
}

// baseNumber returns the base CRL number of a delta.
func baseNumber(t testing.TB, list *x509.RevocationList) *big.Int {
	t.Helper()
	e := extension(list, oidDelta)
	n := new(big.Int)
	if e == nil || !e.Critical {
		t.Fatalf("a delta has the delta CRL indicator %v (RFC 5280 section 5.2.4)", e)
	}
	if rest, err := asn1.Unmarshal(e.Value, &n); err != nil || len(rest) > 0 {
		t.Fatalf("the delta CRL indicator is %x", e.Value)
	}
	return n
}

func TestPartitions(t *testing.T) {
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			root := revtest.NewRoot(t, "Offline Root", "p256")
			s := &scene{root: root, ca: root.Intermediate(t, "Issuing CA", kind), book: revtest.NewBook(), outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()}
			one, two := s.pointIn(1, "pki.example"), s.pointIn(2, "pki.example")
			two.DeltaURL = ""
			s.points = []crl.Point{one, two}
			s.start(t, revtest.Never)
			bad, badRef := s.issueIn(t, one)
			good, _ := s.issueIn(t, one)
			other, otherRef := s.issueIn(t, two)
			_, plain := s.issue(t) // a certificate in no partition
			for _, ref := range []pki.CertRef{badRef, otherRef, plain} {
				s.revoke(t, ref, pki.Superseded)
			}
			s.publishNow(t)
			full, first, second, delta := s.newest(t), s.last(t, 1, false), s.last(t, 2, false), s.last(t, 1, true)
			if len(s.all(t, 2, true)) != 0 {
				t.Error("a delta is published although no certificate contains its URL")
			}
			for name, c := range map[string]struct {
				list     *x509.RevocationList
				entries  int
				critical int
				freshest bool
			}{"full": {full, 3, 0, false}, "partition 1": {first, 1, 1, true}, "partition 2": {second, 1, 1, false}, "delta": {delta, 0, 2, false}} {
				critical := 0
				for _, e := range c.list.Extensions {
					if e.Critical {
						critical++
					}
				}
				if freshest := extension(c.list, oidFreshest); len(c.list.RevokedCertificateEntries) != c.entries || critical != c.critical || (freshest != nil) != c.freshest {
					t.Errorf("%s has %d entries, %d critical extensions, freshestCRL %v", name, len(c.list.RevokedCertificateEntries), critical, freshest)
				}
				if c.list.Number.Cmp(full.Number) != 0 || c.list.CheckSignatureFrom(s.ca.Certificate) != nil {
					t.Errorf("%s has number %v, and the full CRL of the round %v; signature: %v", name, c.list.Number, full.Number, c.list.CheckSignatureFrom(s.ca.Certificate))
				}
				judgeList(t, s, c.list.Raw)
			}
			if f := extension(first, oidFreshest); f == nil || f.Critical || !bytes.Equal(f.Value, pointsExtension(t, oidFreshest, one.DeltaURL).Value) {
				t.Errorf("freshestCRL is %v", f)
			}
			s.extended(t, bad, []*x509.RevocationList{first}, "error 23 at 0 depth lookup: certificate revoked")
			s.extended(t, good, []*x509.RevocationList{first, second}, "")
			s.extended(t, other, []*x509.RevocationList{first, second}, "error 23 at 0 depth lookup: certificate revoked")
			s.extended(t, other, []*x509.RevocationList{first}, "different CRL scope")
			s.extended(t, other, []*x509.RevocationList{full}, "error 23 at 0 depth lookup: certificate revoked")
		})
	}
}

// judgeList checks a CRL with OpenSSL and zlint.
func judgeList(t *testing.T, s *scene, der []byte) {
	t.Helper()
	out := revtest.MustTool(t, "openssl", "crl", "-inform", "DER", "-in", revtest.File(t, "crl.der", der), "-CAfile", revtest.PEMFile(t, s.ca.Certificate), "-noout", "-text")
	if !strings.Contains(out, "verify OK") {
		t.Errorf("openssl crl does not verify the CRL:\n%s", out)
	}
	lintCRL(t, der)
}

// extended verifies a certificate with OpenSSL, against CRLs of partitions and their deltas. OpenSSL must report the
// fault, or accept the certificate if fault is empty.
func (s *scene) extended(t *testing.T, leaf *x509.Certificate, lists []*x509.RevocationList, fault string) {
	t.Helper()
	text := []byte(nil)
	for _, list := range lists {
		text = append(text, crlPEM(list.Raw)...)
	}
	text = append(text, crlPEM(rootCRL(t, s.root, nil))...)
	out, _ := revtest.Tool(t, "openssl", "verify", "-crl_check_all", "-extended_crl", "-use_deltas", "-CAfile", revtest.PEMFile(t, s.root.Certificate),
		"-untrusted", revtest.PEMFile(t, s.ca.Certificate), "-CRLfile", revtest.File(t, "crls.pem", text), revtest.PEMFile(t, leaf))
	if (fault == "") != strings.Contains(out, ": OK") || !strings.Contains(out, fault) {
		t.Errorf("openssl verify does not report %q:\n%s", fault, out)
	}
}

func TestOpenSSLUsesDeltas(t *testing.T) {
	s := newScene(t, revtest.Never)
	point := s.pointIn(3, "pki.example")
	s.points = []crl.Point{point}
	s.start(t, revtest.Never)
	revokedLeaf, revokedRef := s.issueIn(t, point)
	held, heldRef := s.issueIn(t, point)
	before, beforeRef := s.issueIn(t, point)
	s.change(t, revocation.Hold, heldRef)
	s.revoke(t, beforeRef, pki.Superseded)
	s.publishNow(t)
	base := s.last(t, 3, false)
	s.revoke(t, revokedRef, pki.KeyCompromise)
	s.change(t, revocation.Unhold, heldRef)
	s.publishNow(t)
	delta, next := s.last(t, 3, true), s.last(t, 3, false)
	if baseNumber(t, delta).Cmp(base.Number) != 0 || delta.Number.Cmp(next.Number) != 0 || delta.NextUpdate.Sub(delta.ThisUpdate) != crl.DefaultLifetime/4 {
		t.Errorf("delta %v has the base %v and is valid until %v", delta.Number, baseNumber(t, delta), delta.NextUpdate)
	}
	reasons := map[int]int{}
	for _, e := range delta.RevokedCertificateEntries {
		reasons[e.ReasonCode]++
	}
	if len(reasons) != 2 || reasons[8] != 1 || reasons[1] != 1 {
		t.Errorf("the delta has the reasons %v, want keyCompromise and removeFromCRL", reasons)
	}
	const revoked = "error 23 at 0 depth lookup: certificate revoked"
	old, both, fresh := []*x509.RevocationList{base}, []*x509.RevocationList{base, delta}, []*x509.RevocationList{next}
	for _, c := range []struct {
		leaf  *x509.Certificate
		lists []*x509.RevocationList
		fault string
	}{
		{revokedLeaf, old, ""}, {revokedLeaf, both, revoked}, {revokedLeaf, fresh, revoked}, {held, old, revoked}, {held, both, ""}, {held, fresh, ""},
		{before, old, revoked}, {before, both, revoked}, {before, fresh, revoked},
	} {
		s.extended(t, c.leaf, c.lists, c.fault)
	}
	judgeList(t, s, delta.Raw)
}

// names returns the URLs in a CRL's issuing distribution point.
func names(t testing.TB, list *x509.RevocationList) (urls []string) {
	t.Helper()
	e := extension(list, oidIDP)
	if e == nil {
		return nil
	}
	var point distributionPoint
	if rest, err := asn1.Unmarshal(e.Value, &point); err != nil || len(rest) > 0 {
		t.Fatalf("the issuing distribution point is %x: %v", e.Value, err)
	}
	for _, name := range point.Name.FullName {
		urls = append(urls, string(name.Bytes))
	}
	return urls
}

// TestPartitionsChange restarts the updater with fewer partitions, and later with more partitions under another URL.
// The CRLs of all partitions must stay published.
func TestPartitionsChange(t *testing.T) {
	s := newScene(t, revtest.Never)
	a1, a2, b1 := s.pointIn(1, "a.example"), s.pointIn(2, "a.example"), s.pointIn(1, "b.example")
	s.points = []crl.Point{a1, a2}
	s.start(t, revtest.Never)
	inTwo, refTwo := s.issueIn(t, a2)
	s.publishNow(t)
	firstBase := s.last(t, 1, false).Number

	s.points = []crl.Point{a1} // from now on, one partition
	s.restart(t)
	s.revoke(t, refTwo, pki.Superseded)
	s.publishNow(t)
	if list := s.last(t, 2, false); !lists(list, refTwo) || !slices.Equal(names(t, list), []string{a2.URL}) {
		t.Errorf("the CRL of a partition that is no longer used has the URLs %v", names(t, list))
	}
	s.extended(t, inTwo, []*x509.RevocationList{s.last(t, 2, false)}, "certificate revoked")

	for n := uint16(1); n <= 5; n++ { // from now on, five partitions under another URL
		s.points = append(s.points, s.pointIn(n, "b.example"))
	}
	s.restart(t)
	inOne, refOne := s.issueIn(t, b1)
	old, _ := s.issueIn(t, a1)
	s.revoke(t, refOne, pki.Superseded)
	s.publishNow(t)
	list, delta := s.last(t, 1, false), s.last(t, 1, true)
	if want := []string{a1.URL, b1.URL}; !slices.Equal(names(t, list), want) || !slices.Equal(names(t, delta), want) {
		t.Errorf("the CRL of partition 1 has the URLs %v, and its delta %v", names(t, list), names(t, delta))
	}
	if n := baseNumber(t, delta); n.Cmp(firstBase) <= 0 || n.Cmp(list.Number) != 0 {
		t.Errorf("a delta with new URLs has base %v, which has other URLs (RFC 5280 section 5.2.4)", n)
	}
	s.extended(t, inOne, []*x509.RevocationList{list}, "certificate revoked")
	s.extended(t, old, []*x509.RevocationList{list}, "")
	for n := uint16(1); n <= 5; n++ {
		s.last(t, n, true)
	}
}

// restart creates a new updater for the scene's store, and publishes the recorded CRLs, like Run.
func (s *scene) restart(t testing.TB) {
	t.Helper()
	s.start(t, revtest.Never)
	if err := crl.Recall(t.Context(), s.Updater); err != nil {
		t.Fatal(err)
	}
}

// TestPointsAreAddedWhileRunning adds a partition and a URL. The CRLs must be at the URLs in new certificates within a
// second, and be signed again only for the partition that has another URL.
func TestPointsAreAddedWhileRunning(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		a1, b1 := s.pointIn(1, "a.example"), s.pointIn(1, "b.example")
		s.points = []crl.Point{a1, s.pointIn(2, "a.example")}
		s.start(t, revtest.Never)
		s.running(t)
		wait(time.Second)
		if err := s.AddPoints(t.Context(), []crl.Point{a1, b1, s.pointIn(3, "b.example")}); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		list, delta := s.last(t, 1, false), s.last(t, 1, true)
		if want := []string{a1.URL, b1.URL}; !slices.Equal(names(t, list), want) || !slices.Equal(names(t, delta), want) {
			t.Errorf("the CRL of partition 1 has the URLs %v, and its delta %v", names(t, list), names(t, delta))
		}
		if n := baseNumber(t, delta); n.Cmp(list.Number) != 0 {
			t.Errorf("a delta with new URLs has base %v, which has other URLs (RFC 5280 section 5.2.4)", n)
		}
		_, ref := s.issueIn(t, s.pointIn(3, "b.example"))
		s.revoke(t, ref, pki.Superseded)
		wait(time.Second)
		if !lists(s.last(t, 3, false), ref) {
			t.Error("the CRL of the new partition does not list a certificate in it")
		}
		if n := len(s.all(t, 2, false)); n != 1 {
			t.Errorf("%d CRLs of partition 2 were signed, want 1", n)
		}
		before := len(s.outlet.Published())
		if err := s.AddPoints(t.Context(), []crl.Point{a1, b1}); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		if after := len(s.outlet.Published()); after != before {
			t.Errorf("adding known points published %d CRLs", after-before)
		}
	})
}

// TestPartitionHasFewURLs adds URLs until AddPoints refuses, and starts again with what is on record.
func TestPartitionHasFewURLs(t *testing.T) {
	s := newScene(t, revtest.Never)
	var refused error
	for n := range 65 {
		refused = s.AddPoints(t.Context(), []crl.Point{s.pointIn(1, fmt.Sprintf("h%d.example", n))})
		if refused != nil && n < 64 {
			t.Fatalf("URL %d is refused: %v", n, refused)
		}
	}
	if refused == nil || !strings.Contains(refused.Error(), "more than 64 URLs") {
		t.Errorf("65 URLs: %v", refused)
	}
	s.start(t, revtest.Never)
}

func TestPartitionsHaveOwnSchedules(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		s.points = []crl.Point{s.pointIn(1, "pki.example"), s.pointIn(2, "pki.example")}
		s.start(t, revtest.Never)
		s.running(t)
		wait(time.Second)
		count := func() string {
			return fmt.Sprint(len(s.all(t, 0, false)), len(s.all(t, 1, false)), len(s.all(t, 1, true)), len(s.all(t, 2, false)), len(s.all(t, 2, true)))
		}
		expect := func(what, want string) {
			t.Helper()
			if got := count(); got != want {
				t.Errorf("%s: %s CRLs, want %s", what, got, want)
			}
		}
		expect("at the start", "1 1 1 1 1")
		_, ref := s.issueIn(t, s.points[0])
		s.revoke(t, ref, pki.Superseded)
		wait(time.Second)
		expect("after a change in partition 1", "2 2 2 1 1")
		wait(3*time.Hour + time.Minute)
		expect("after half a delta's lifetime", "2 2 3 1 2")
		wait(9 * time.Hour)
		if got := s.last(t, 2, false); len(s.all(t, 2, false)) != 2 || time.Until(got.NextUpdate) < 23*time.Hour {
			t.Errorf("after half a lifetime the numbers of CRLs are %s", count())
		}
		for hours := 0; hours < 72; hours++ {
			wait(time.Hour)
			for _, delta := range []bool{false, true} {
				for partition := uint16(1); partition <= 2; partition++ {
					if left := time.Until(s.last(t, partition, delta).NextUpdate); left < crl.DefaultLifetime/9 {
						t.Fatalf("after %d hours, the CRL of partition %d, delta %v, is valid for another %v only", hours, partition, delta, left)
					}
				}
			}
		}
	})
}

// TestDeltasWorkWithScheduledBases publishes CRLs for some days, and combines the deltas with the bases that relying
// parties may still have.
func TestDeltasWorkWithScheduledBases(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		s.points = []crl.Point{s.pointIn(1, "pki.example")}
		s.start(t, revtest.Never)
		s.running(t)
		for range 30 {
			_, ref := s.issueIn(t, s.points[0])
			s.revoke(t, ref, pki.Superseded)
			wait(5 * time.Hour)
			delta := s.last(t, 1, true)
			served := 0
			for _, base := range s.all(t, 1, false) {
				if time.Now().After(base.NextUpdate) || base.Number.Cmp(delta.Number) >= 0 {
					continue
				}
				if base.Number.Cmp(baseNumber(t, delta)) >= 0 {
					served++
				} else if time.Since(base.ThisUpdate) < crl.DefaultLifetime/2 {
					t.Errorf("delta %v has base %v, and base %v is %v old", delta.Number, baseNumber(t, delta), base.Number, time.Since(base.ThisUpdate))
				}
			}
			if served == 0 && len(s.all(t, 1, false)) > 1 {
				t.Errorf("delta %v works with no base", delta.Number)
			}
		}
	})
}

// TestPartitionsWithoutTheKey starts the updater without the key of a CA. All CRLs of that CA must stay published,
// including those of partitions.
func TestPartitionsWithoutTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		s.points = []crl.Point{{Issuer: s.ca.ID(), Partition: 1, URL: "http://pki.example/1.crl", DeltaURL: "http://pki.example/1-delta.crl"}}
		s.start(t, revtest.Never)
		if err := s.PublishNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.outlet, s.further = &revtest.Outlet{}, []string{t.TempDir()}
		u, err := crl.New(t.Context(), crl.Config{
			Elsewhere: []*x509.Certificate{s.root.Certificate, s.ca.Certificate}, Store: s.book, Publisher: s.outlet,
			Directory: s.dir, Mirrors: s.further, Log: slog.New(slog.NewTextHandler(s.log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Updater = u
		s.running(t)
		wait(time.Minute)
		for _, scope := range []crl.Scope{{Issuer: s.ca.ID()}, {Issuer: s.ca.ID(), Partition: 1}, {Issuer: s.ca.ID(), Partition: 1, Delta: true}} {
			if !slices.ContainsFunc(s.outlet.Published(), func(c crl.CRL) bool { return c.Scope() == scope }) {
				t.Errorf("%s is not published", scope.Path())
			}
			if _, err := os.Stat(filepath.Join(s.further[0], filepath.FromSlash(scope.Path()))); err != nil {
				t.Error(err)
			}
		}
	})
}
