package revocation_test

import (
	"crypto/x509"
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

var operator = pki.ActorCommand("test")

// scene holds an authority and a CRL updater for one issuing CA under an offline root.
type scene struct {
	*revocation.Authority
	updater  *crl.Updater
	root, ca revtest.CA
	book     *revtest.Book
	outlet   *revtest.Outlet
	log      *revtest.LogBook
	dir      string // directory of the CRLs
}

func newScene(t testing.TB, fail func(call string) (bool, error)) *scene {
	t.Helper()
	root := revtest.NewRoot(t, "Offline Root", "p256")
	s := &scene{root: root, ca: root.Intermediate(t, "Issuing CA", "p256"), book: revtest.NewBook(), outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()}
	s.start(t, fail)
	return s
}

// start creates a new authority and a new updater for the scene's store, as after a restart.
func (s *scene) start(t testing.TB, fail func(call string) (bool, error)) {
	t.Helper()
	log, store := slog.New(slog.NewTextHandler(s.log, nil)), &revtest.Faulty{Book: s.book, Fail: fail}
	u, err := crl.New(t.Context(), crl.Config{
		Issuers:   []crl.Issuer{{Certificate: s.ca.Certificate, Signer: revtest.FaultyKey{Signer: s.ca.Key, Fail: fail}}},
		Elsewhere: []*x509.Certificate{s.root.Certificate},
		Store:     store, Publisher: s.outlet, Directory: s.dir, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := revocation.New(revocation.Config{Store: store, Observer: s.outlet, CRLs: u, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.Authority, s.updater = a, u
}

// issue issues a certificate and records it in the store.
func (s *scene) issue(t testing.TB) (*x509.Certificate, pki.CertRef) {
	t.Helper()
	leaf := s.ca.Leaf(t, "device")
	ref := s.ca.Ref(t, leaf)
	s.book.Issue(ref, leaf.NotAfter)
	return leaf, ref
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

func TestApplyRefusesInvalidChanges(t *testing.T) {
	s := newScene(t, revtest.Never)
	_, ref := s.issue(t)
	id, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/1")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change revocation.Change
		rule   pki.Rule
	}{
		"no subject":                   {revocation.Change{Action: revocation.Revoke}, pki.RuleRequest},
		"two subjects":                 {revocation.Change{Action: revocation.Revoke, Certificate: ref, Identity: id}, pki.RuleRequest},
		"no action":                    {revocation.Change{Certificate: ref}, pki.RuleRequest},
		"unknown action":               {revocation.Change{Action: 9, Certificate: ref}, pki.RuleRequest},
		"future time":                  {revocation.Change{Action: revocation.Revoke, Certificate: ref, At: time.Now().Add(time.Hour)}, pki.RuleRequest},
		"revoke for certificateHold":   {revocation.Change{Action: revocation.Revoke, Certificate: ref, Reason: pki.CertificateHold}, pki.RuleReason},
		"unknown reason":               {revocation.Change{Action: revocation.Revoke, Certificate: ref, Reason: 7}, pki.RuleReason},
		"revoke for removeFromCRL":     {revocation.Change{Action: revocation.Revoke, Certificate: ref, Reason: 8}, pki.RuleReason},
		"hold with another reason":     {revocation.Change{Action: revocation.Hold, Certificate: ref, Reason: pki.KeyCompromise}, pki.RuleReason},
		"unhold with a reason":         {revocation.Change{Action: revocation.Unhold, Certificate: ref, Reason: pki.CertificateHold}, pki.RuleReason},
		"retire a certificate":         {revocation.Change{Action: revocation.Revoke, Certificate: ref, State: pki.Retired}, pki.RuleRequest},
		"revoke and suspend":           {revocation.Change{Action: revocation.Revoke, Identity: id, State: pki.Suspended}, pki.RuleRequest},
		"hold an identity, keep state": {revocation.Change{Action: revocation.Hold, Identity: id}, pki.RuleRequest},
		"hold and retire":              {revocation.Change{Action: revocation.Hold, Identity: id, State: pki.Retired}, pki.RuleRequest},
		"unhold to a given state":      {revocation.Change{Action: revocation.Unhold, Identity: id, State: pki.Enrolled}, pki.RuleRequest},
		"identity that does not exist": {revocation.Change{Action: revocation.Revoke, Identity: id}, pki.RuleNotFound}, // the store refuses it
	} {
		changes, err := s.Apply(t.Context(), c.change)
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != c.rule || refusal.Hint == "" || changes.All() != nil {
			t.Errorf("%s: %v, %v; want a refusal by %s", name, changes, err, c.rule)
		}
	}
	if len(s.outlet.Changes()) != 0 {
		t.Errorf("the observer was notified of refused changes: %v", s.outlet.Changes())
	}
}

func TestApplyNotifiesTheObserver(t *testing.T) {
	s := newScene(t, revtest.Never)
	_, ref := s.issue(t)
	for _, c := range []struct {
		change revocation.Change
		want   pki.Status
	}{
		{revocation.Change{Action: revocation.Hold}, pki.Status{State: pki.Hold, Reason: pki.CertificateHold, Version: 2}},
		{revocation.Change{Action: revocation.Unhold}, pki.Status{State: pki.Good, Version: 3}},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded}, pki.Status{State: pki.Revoked, Reason: pki.Superseded, Version: 4}},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise}, pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, Version: 5}},
	} {
		c.change.Certificate, c.change.Actor = ref, operator
		before := time.Now().Truncate(time.Second)
		changes, err := s.Apply(t.Context(), c.change)
		if err != nil || len(changes.Changed) != 1 || changes.Affected != (revocation.Affected{Valid: 1}) {
			t.Fatalf("%v: %v, %v", c.change.Action, changes, err)
		}
		all := s.outlet.Changes()
		notified := all[len(all)-1]
		if notified.Status != changes.Changed[0].Status || notified.Ref != ref {
			t.Errorf("%v: the observer got %+v, and the caller %+v", c.change.Action, notified, changes.Changed[0])
		}
		at := notified.Status.RevokedAt
		if notified.Status.State != pki.Good && (at.Before(before) || at.After(time.Now()) || at.Nanosecond() != 0) {
			t.Errorf("%v: RevokedAt is %v, want the current time in whole seconds", c.change.Action, at)
		}
		notified.Status.RevokedAt = time.Time{}
		if notified.Status != c.want {
			t.Errorf("%v: status %+v, want %+v", c.change.Action, notified.Status, c.want)
		}
	}
	again := revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: ref, Actor: operator}
	if changes, err := s.Apply(t.Context(), again); err != nil || len(changes.All()) != 0 {
		t.Errorf("the same change again: %v, %v; want no change", changes, err)
	}
}
