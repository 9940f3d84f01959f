package crl_test

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	operator = pki.ActorCommand("test")
	errDown  = errors.New("the database is away")
)

// scene holds a CRL updater for one issuing CA under an offline root, and an authority that changes statuses.
type scene struct {
	*crl.Updater
	authority *revocation.Authority
	root, ca  revtest.CA
	book      *revtest.Book
	outlet    *revtest.Outlet
	log       *revtest.LogBook
	dir       string           // directory of the CRLs
	further   []string         // paths of the mirrors
	points    []crl.Point      // distribution points of new certificates; they take effect at the next start
	clock     func() time.Time // nil for time.Now
}

func newScene(t testing.TB, fail func(call string) (bool, error)) *scene {
	t.Helper()
	root := revtest.NewRoot(t, "Offline Root", "p256")
	s := &scene{root: root, ca: root.Intermediate(t, "Issuing CA", "p256"), book: revtest.NewBook(), outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()}
	s.start(t, fail)
	return s
}

// start creates a new updater and a new authority for the scene's store, as after a restart.
func (s *scene) start(t testing.TB, fail func(call string) (bool, error)) {
	t.Helper()
	log, store := slog.New(slog.NewTextHandler(s.log, nil)), &revtest.Faulty{Book: s.book, Fail: fail}
	u, err := crl.New(t.Context(), crl.Config{
		Issuers:   []crl.Issuer{{Certificate: s.ca.Certificate, Signer: revtest.FaultyKey{Signer: s.ca.Key, Fail: fail}}},
		Elsewhere: []*x509.Certificate{s.root.Certificate},
		Store:     store, Publisher: s.outlet, Directory: s.dir, Mirrors: s.further, Clock: s.clock, Log: log,
	})
	if err == nil {
		err = u.AddPoints(t.Context(), s.points)
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := revocation.New(revocation.Config{Store: store, Observer: s.outlet, CRLs: u, Clock: s.clock, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.Updater, s.authority = u, a
}

// issue issues a certificate and records it in the store.
func (s *scene) issue(t testing.TB) (*x509.Certificate, pki.CertRef) {
	t.Helper()
	leaf := s.ca.Leaf(t, "device")
	ref := s.ca.Ref(t, leaf)
	s.book.Issue(ref, leaf.NotAfter)
	return leaf, ref
}

func (s *scene) revoke(t testing.TB, ref pki.CertRef, reason pki.Reason) {
	t.Helper()
	if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Reason: reason, Certificate: ref, Actor: operator}); err != nil {
		t.Fatal(err)
	}
}

// newest returns the last published CRL of the issuing CA, as parsed by crypto/x509.
func (s *scene) newest(t testing.TB) *x509.RevocationList {
	t.Helper()
	for _, c := range slices.Backward(s.outlet.Published()) {
		if c.Scope() == (crl.Scope{Issuer: s.ca.ID()}) {
			return parse(t, c)
		}
	}
	t.Fatal("no CRL was published")
	return nil
}

func parse(t testing.TB, c crl.CRL) *x509.RevocationList {
	t.Helper()
	list, err := x509.ParseRevocationList(c.DER)
	if err != nil {
		t.Fatal(err)
	}
	if list.Number.Cmp(c.Number) != 0 || !list.ThisUpdate.Equal(c.ThisUpdate) || !list.NextUpdate.Equal(c.NextUpdate) {
		t.Fatalf("the CRL has number %v, %v to %v, but its metadata says %v, %v to %v",
			list.Number, list.ThisUpdate, list.NextUpdate, c.Number, c.ThisUpdate, c.NextUpdate)
	}
	return list
}

func lists(list *x509.RevocationList, ref pki.CertRef) bool {
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(ref.Serial.Int()) == 0
	})
}

func TestNewRefusesConfigurations(t *testing.T) {
	root := revtest.NewRoot(t, "Root", "p256")
	noKeyID := *root.Certificate
	noKeyID.SubjectKeyId = nil
	own := crl.Issuer{Certificate: root.Certificate, Signer: root.Key}
	for name, c := range map[string]crl.Config{
		"empty":              {},
		"short lifetime":     {Lifetime: time.Second},
		"no CA":              {Issuers: []crl.Issuer{{Certificate: root.Leaf(t, "leaf"), Signer: root.Key}}},
		"no key ID":          {Issuers: []crl.Issuer{{Certificate: &noKeyID, Signer: root.Key}}},
		"other key":          {Issuers: []crl.Issuer{{Certificate: root.Certificate, Signer: revtest.Key(t, "p256")}}},
		"here and elsewhere": {Issuers: []crl.Issuer{own}, Elsewhere: []*x509.Certificate{root.Certificate}},
		"no CA elsewhere":    {Elsewhere: []*x509.Certificate{root.Leaf(t, "leaf")}},
	} {
		if name != "empty" {
			c.Store, c.Publisher, c.Directory = revtest.NewBook(), &revtest.Outlet{}, t.TempDir()
		}
		if _, err := crl.New(t.Context(), c); err == nil {
			t.Errorf("New accepts the configuration %q", name)
		}
	}
}

func TestAddPointsRefusesPoints(t *testing.T) {
	s := newScene(t, nil)
	for name, p := range map[string]crl.Point{
		"full partition": {Issuer: s.ca.ID(), URL: "http://pki.example/a"},
		"no partition":   {Issuer: s.ca.ID(), Partition: 4097, URL: "http://pki.example/a"},
		"no URL":         {Issuer: s.ca.ID(), Partition: 1, URL: "/crl/1.crl"},
		"delta URL only": {Issuer: s.ca.ID(), Partition: 1, DeltaURL: "http://pki.example/a"},
		"other CA":       {Issuer: s.root.ID(), Partition: 1, URL: "http://pki.example/a"},
	} {
		if err := s.AddPoints(t.Context(), []crl.Point{s.pointIn(1, "pki.example"), p}); err == nil {
			t.Errorf("AddPoints accepts the point %q", name)
		}
	}
	if have, err := s.book.Points(t.Context()); err != nil || len(have) > 0 {
		t.Errorf("refused points are on record: %v, %v", have, err)
	}
}
