package revocation_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var operator = pki.ActorCommand("test")

// An outlet is told of changes and CRLs, and remembers them, with what their files hold.
type outlet struct {
	mu      sync.Mutex
	changes []pki.StatusChange
	crls    []revocation.CRL
}

func (o *outlet) Apply(changes ...pki.StatusChange) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes = append(o.changes, changes...)
}

func (o *outlet) PublishCRL(c revocation.CRL, path string) error {
	der, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if int64(len(der)) != c.Size || sha256.Sum256(der) != c.SHA256 {
		return fmt.Errorf("%s has %d octets, and its record is of another file", path, len(der))
	}
	c.DER = der
	o.mu.Lock()
	defer o.mu.Unlock()
	o.crls = append(o.crls, c)
	return nil
}

func (o *outlet) published() []revocation.CRL {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.crls)
}

// faulty is a Book that fails as told: fail gets the name of a call before it is carried out, and says whether it is
// carried out all the same, and what is returned.
type faulty struct {
	*revtest.Book
	fail func(call string) (applied bool, err error)
}

func (f *faulty) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	applied, err := f.fail("Apply")
	if err == nil || applied {
		out, bookErr := f.Book.Apply(ctx, o)
		if err == nil {
			return out, bookErr
		}
	}
	return revocation.ChangeResult{}, err
}

func (f *faulty) TakeNumber(ctx context.Context, issuer pki.IssuerID) (*big.Int, error) {
	applied, err := f.fail("TakeNumber")
	if err == nil || applied {
		number, bookErr := f.Book.TakeNumber(ctx, issuer)
		if err == nil {
			return number, bookErr
		}
	}
	return nil, err
}

func (f *faulty) PutCRLs(ctx context.Context, crls []revocation.CRL, by pki.Actor, at time.Time) error {
	applied, err := f.fail("PutCRLs")
	if err == nil || applied {
		if bookErr := f.Book.PutCRLs(ctx, crls, by, at); err == nil {
			return bookErr
		}
	}
	return err
}

func (f *faulty) CRLs(ctx context.Context) ([]revocation.CRL, error) {
	if _, err := f.fail("CRLs"); err != nil {
		return nil, err
	}
	return f.Book.CRLs(ctx)
}

// flakyKey fails while it is told to.
type flakyKey struct {
	crypto.Signer
	fail func(call string) (applied bool, err error)
}

func (k flakyKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, err := k.fail("Sign"); err != nil {
		return nil, err
	}
	return k.Signer.Sign(random, digest, opts)
}

func never(string) (bool, error) { return false, nil }

// A scene is an authority for one issuing CA below an offline root.
type scene struct {
	*revocation.Authority
	root, ca revtest.CA
	book     *revtest.Book
	outlet   *outlet
	log      *logBook
	dir      string                         // of CRLs
	further  []string                       // directories
	points   []revocation.DistributionPoint // that certificates name from the next start on
	clock    func() time.Time               // nil for the real one
}

func newScene(t testing.TB, fail func(call string) (bool, error)) *scene {
	t.Helper()
	root := revtest.NewRoot(t, "Offline Root", "p256")
	s := &scene{root: root, ca: root.Intermediate(t, "Issuing CA", "p256"), book: revtest.NewBook(), outlet: &outlet{}, log: &logBook{}, dir: t.TempDir()}
	s.start(t, fail)
	return s
}

// start makes a new authority over the scene's records, as a restart does.
func (s *scene) start(t testing.TB, fail func(call string) (bool, error)) {
	t.Helper()
	a, err := revocation.New(t.Context(), revocation.Config{
		Issuers:   []revocation.Issuer{{Certificate: s.ca.Certificate, Signer: flakyKey{s.ca.Key, fail}}},
		Elsewhere: []*x509.Certificate{s.root.Certificate},
		Store:     &faulty{s.book, fail}, Sink: s.outlet, Publisher: s.outlet,
		Directory: s.dir, Directories: s.further, Points: s.points, Clock: s.clock, Log: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Authority = a
}

// issue makes a certificate and records it.
func (s *scene) issue(t testing.TB) (*x509.Certificate, pki.CertRef) {
	t.Helper()
	leaf := s.ca.Leaf(t, "device")
	ref := s.ca.Ref(t, leaf)
	s.book.Issue(ref, leaf.NotAfter)
	return leaf, ref
}

func (s *scene) revoke(t testing.TB, ref pki.CertRef, reason pki.Reason) {
	t.Helper()
	if _, err := s.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Reason: reason, Certificate: ref, Actor: operator}); err != nil {
		t.Fatal(err)
	}
}

// newest returns the last published CRL of the issuing CA, as Go reads it.
func (s *scene) newest(t testing.TB) *x509.RevocationList {
	t.Helper()
	for _, c := range slices.Backward(s.outlet.published()) {
		if c.Scope() == (revocation.Scope{Issuer: s.ca.ID()}) {
			return parse(t, c)
		}
	}
	t.Fatal("no CRL was published")
	return nil
}

func parse(t testing.TB, c revocation.CRL) *x509.RevocationList {
	t.Helper()
	list, err := x509.ParseRevocationList(c.DER)
	if err != nil {
		t.Fatal(err)
	}
	if list.Number.Cmp(c.Number) != 0 || !list.ThisUpdate.Equal(c.ThisUpdate) || !list.NextUpdate.Equal(c.NextUpdate) {
		t.Fatalf("the CRL says number %v, %v to %v, and its record %v, %v to %v",
			list.Number, list.ThisUpdate, list.NextUpdate, c.Number, c.ThisUpdate, c.NextUpdate)
	}
	return list
}

func lists(list *x509.RevocationList, ref pki.CertRef) bool {
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(ref.Serial.Int()) == 0
	})
}

// logBook collects what is logged.
type logBook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func TestOrdersThatMakeNoSense(t *testing.T) {
	s := newScene(t, never)
	_, ref := s.issue(t)
	id, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/1")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		order revocation.Change
		rule  pki.Rule
	}{
		"nothing":              {revocation.Change{Action: revocation.Revoke}, pki.RuleRequest},
		"both":                 {revocation.Change{Action: revocation.Revoke, Certificate: ref, Identity: id}, pki.RuleRequest},
		"no action":            {revocation.Change{Certificate: ref}, pki.RuleRequest},
		"another action":       {revocation.Change{Action: 9, Certificate: ref}, pki.RuleRequest},
		"the future":           {revocation.Change{Action: revocation.Revoke, Certificate: ref, At: time.Now().Add(time.Hour)}, pki.RuleRequest},
		"revoke to hold":       {revocation.Change{Action: revocation.Revoke, Certificate: ref, Reason: pki.CertificateHold}, pki.RuleReason},
		"no such reason":       {revocation.Change{Action: revocation.Revoke, Certificate: ref, Reason: 7}, pki.RuleReason},
		"removeFromCRL":        {revocation.Change{Action: revocation.Revoke, Certificate: ref, Reason: 8}, pki.RuleReason},
		"hold with a reason":   {revocation.Change{Action: revocation.Hold, Certificate: ref, Reason: pki.KeyCompromise}, pki.RuleReason},
		"release with one":     {revocation.Change{Action: revocation.Unhold, Certificate: ref, Reason: pki.CertificateHold}, pki.RuleReason},
		"retire a certificate": {revocation.Change{Action: revocation.Revoke, Certificate: ref, State: pki.Retired}, pki.RuleRequest},
		"revoke and suspend":   {revocation.Change{Action: revocation.Revoke, Identity: id, State: pki.Suspended}, pki.RuleRequest},
		"hold and leave":       {revocation.Change{Action: revocation.Hold, Identity: id}, pki.RuleRequest},
		"hold and retire":      {revocation.Change{Action: revocation.Hold, Identity: id, State: pki.Retired}, pki.RuleRequest},
		"release to a state":   {revocation.Change{Action: revocation.Unhold, Identity: id, State: pki.Enrolled}, pki.RuleRequest},
		"what is not there":    {revocation.Change{Action: revocation.Revoke, Identity: id}, pki.RuleNotFound}, // as the records say
	} {
		changes, err := s.Apply(t.Context(), c.order)
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != c.rule || refusal.Hint == "" || changes.All() != nil {
			t.Errorf("%s: %v, %v; want a refusal by %s", name, changes, err, c.rule)
		}
	}
	if len(s.outlet.changes) != 0 {
		t.Errorf("refused orders were told: %v", s.outlet.changes)
	}
}

func TestApplyTellsTheSinkFirst(t *testing.T) {
	s := newScene(t, never)
	_, ref := s.issue(t)
	for _, c := range []struct {
		order revocation.Change
		want  pki.Status
	}{
		{revocation.Change{Action: revocation.Hold}, pki.Status{State: pki.Hold, Reason: pki.CertificateHold, Version: 2}},
		{revocation.Change{Action: revocation.Unhold}, pki.Status{State: pki.Good, Version: 3}},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded}, pki.Status{State: pki.Revoked, Reason: pki.Superseded, Version: 4}},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise}, pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, Version: 5}},
	} {
		c.order.Certificate, c.order.Actor = ref, operator
		before := time.Now().Truncate(time.Second)
		changes, err := s.Apply(t.Context(), c.order)
		if err != nil || len(changes.Changed) != 1 || changes.Affected != (revocation.Affected{Valid: 1}) {
			t.Fatalf("%v: %v, %v", c.order.Action, changes, err)
		}
		told := s.outlet.changes[len(s.outlet.changes)-1]
		if told.Status != changes.Changed[0].Status || told.Ref != ref {
			t.Errorf("%v: the sink was told %+v, and the caller %+v", c.order.Action, told, changes.Changed[0])
		}
		at := told.Status.RevokedAt
		if told.Status.State != pki.Good && (at.Before(before) || at.After(time.Now()) || at.Nanosecond() != 0) {
			t.Errorf("%v at %v, want a whole second that is now", c.order.Action, at)
		}
		told.Status.RevokedAt = time.Time{}
		if told.Status != c.want {
			t.Errorf("%v: status %+v, want %+v", c.order.Action, told.Status, c.want)
		}
	}
	again := revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: ref, Actor: operator}
	if changes, err := s.Apply(t.Context(), again); err != nil || len(changes.All()) != 0 {
		t.Errorf("the same order again: %v, %v; want nothing", changes, err)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	root := revtest.NewRoot(t, "Root", "p256")
	noKeyID := *root.Certificate
	noKeyID.SubjectKeyId = nil
	own := revocation.Issuer{Certificate: root.Certificate, Signer: root.Key}
	for name, c := range map[string]revocation.Config{
		"nothing":            {},
		"short lifetime":     {Lifetime: time.Second},
		"no CA":              {Issuers: []revocation.Issuer{{Certificate: root.Leaf(t, "leaf"), Signer: root.Key}}},
		"no key ID":          {Issuers: []revocation.Issuer{{Certificate: &noKeyID, Signer: root.Key}}},
		"another's key":      {Issuers: []revocation.Issuer{{Certificate: root.Certificate, Signer: revtest.Key(t, "p256")}}},
		"here and elsewhere": {Issuers: []revocation.Issuer{own}, Elsewhere: []*x509.Certificate{root.Certificate}},
		"no CA elsewhere":    {Elsewhere: []*x509.Certificate{root.Leaf(t, "leaf")}},
		"full partition":     {Issuers: []revocation.Issuer{own}, Points: []revocation.DistributionPoint{{Issuer: root.ID(), URL: "http://pki.example/a"}}},
		"no partition":       {Issuers: []revocation.Issuer{own}, Points: []revocation.DistributionPoint{{Issuer: root.ID(), Partition: 4097, URL: "http://pki.example/a"}}},
		"no URL":             {Issuers: []revocation.Issuer{own}, Points: []revocation.DistributionPoint{{Issuer: root.ID(), Partition: 1, URL: "/crl/1.crl"}}},
		"a delta's URL":      {Issuers: []revocation.Issuer{own}, Points: []revocation.DistributionPoint{{Issuer: root.ID(), Partition: 1, DeltaURL: "http://pki.example/a"}}},
		"another's point":    {Points: []revocation.DistributionPoint{{Issuer: root.ID(), Partition: 1, URL: "http://pki.example/a"}}},
	} {
		if name != "nothing" {
			c.Store, c.Sink, c.Publisher, c.Directory = revtest.NewBook(), &outlet{}, &outlet{}, t.TempDir()
		}
		if _, err := revocation.New(t.Context(), c); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

var errDown = errors.New("the database is away")
