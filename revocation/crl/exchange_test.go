package crl_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// fleet has servers that share a store.
type fleet struct {
	book     *revtest.Book
	shared   *revtest.Shared
	root, ca revtest.CA
}

// member is one of them.
type member struct {
	*crl.Updater
	exchange *revtest.Exchange
	outlet   *revtest.Outlet
	log      *revtest.LogBook
	dir      string
	broken   atomic.Bool  // its HSM
	slow     atomic.Int64 // the time that its HSM takes for a signature
	stop     func()
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	root := revtest.NewRoot(t, "Offline Root", "p256")
	return &fleet{book: revtest.NewBook(), shared: revtest.NewShared(), root: root, ca: root.Intermediate(t, "Issuing CA", "p256")}
}

// join starts a server, with or without the key of the CA.
func (f *fleet) join(t *testing.T, hasKey bool) *member {
	t.Helper()
	m := &member{exchange: revtest.NewExchange(f.book, f.shared), outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()}
	c := crl.Config{
		Elsewhere: []*x509.Certificate{f.root.Certificate}, Store: f.book, Exchange: m.exchange, Publisher: m.outlet, Directory: m.dir,
		Lifetime: 10 * time.Minute, Log: slog.New(slog.NewTextHandler(m.log, nil)),
	}
	if hasKey {
		c.Issuers = []crl.Issuer{{Certificate: f.ca.Certificate, Signer: revtest.FaultyKey{Signer: f.ca.Key, Fail: func(string) (bool, error) {
			if m.broken.Load() {
				return false, errDown
			}
			time.Sleep(time.Duration(m.slow.Load()))
			return false, nil
		}}}}
	} else {
		c.Elsewhere = append(c.Elsewhere, f.ca.Certificate)
	}
	var err error
	if m.Updater, err = crl.New(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(m.stop)
	return m
}

// published returns the CRL that a server publishes for a scope.
func (m *member) published(t *testing.T, s crl.Scope) *x509.RevocationList {
	t.Helper()
	der, err := os.ReadFile(filepath.Join(m.dir, filepath.FromSlash(s.Path())))
	if err != nil {
		t.Fatal(err)
	}
	var served []byte
	for _, c := range m.outlet.Published() {
		if c.Scope() == s {
			served = c.DER
		}
	}
	if !bytes.Equal(served, der) {
		t.Errorf("the responder does not have the file of %s", s.Path())
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (f *fleet) full() crl.Scope { return crl.Scope{Issuer: f.ca.ID()} }

// TestOneServerSigns has two servers with clones of one key. Only one may sign, and both must publish the same CRLs.
func TestOneServerSigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first := f.join(t, true)
		wait(2 * time.Second)
		second, third := f.join(t, true), f.join(t, false)
		wait(2 * time.Second)
		servers := []*member{first, second, third}
		for _, m := range servers {
			if !m.Ready() {
				t.Error("a server is not ready")
			}
		}
		same := func(revoked int) {
			t.Helper()
			var want *x509.RevocationList
			for _, m := range servers {
				list := m.published(t, f.full())
				if want == nil {
					want = list
				}
				if !bytes.Equal(list.Raw, want.Raw) || len(list.RevokedCertificateEntries) != revoked {
					t.Errorf("a server publishes CRL %v with %d certificates, want CRL %v with %d", list.Number, len(list.RevokedCertificateEntries), want.Number, revoked)
				}
			}
		}
		same(0)
		ref := f.ca.Ref(t, f.ca.Leaf(t, "device"))
		f.book.Issue(ref, time.Now().Add(time.Hour))
		if _, err := f.book.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: ref, Actor: operator, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		wait(4 * time.Second) // the leader finds it
		same(1)
		second.RequestAll() // which is not its to sign
		wait(4 * time.Second)
		same(1)
		wait(90 * time.Minute)
		same(0) // the certificate has expired
		if leader := f.shared.Leader(f.ca.ID()); leader != first.exchange {
			t.Error("another server leads")
		}
	})
}

// TestOthersPublishSoon has the leader sign CRLs, and checks that the other servers publish each within a second. The time of
// the test stands still while the servers work, so half of the second is left to them.
func TestOthersPublishSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first := f.join(t, true)
		wait(2 * time.Second)
		second, third := f.join(t, true), f.join(t, false)
		wait(2 * time.Second)
		for n := range 5 {
			wait(time.Duration(n) * 130 * time.Millisecond) // not in step with the polling
			before := first.published(t, f.full())
			first.RequestAll()
			for first.published(t, f.full()).Number.Cmp(before.Number) == 0 {
				wait(10 * time.Millisecond)
			}
			wait(500 * time.Millisecond)
			for _, m := range []*member{second, third} {
				if have, want := m.published(t, f.full()).Number, first.published(t, f.full()).Number; have.Cmp(want) != 0 {
					t.Errorf("a server publishes CRL %v half a second after CRL %v was signed", have, want)
				}
			}
		}
	})
}

// TestLeaderIsReplaced stops the leader, and later breaks the HSM of the next one.
func TestLeaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first := f.join(t, true)
		wait(2 * time.Second)
		second := f.join(t, true)
		wait(2 * time.Second)
		before := second.published(t, f.full())
		first.stop()
		wait(crl.LeaseTime + 3*time.Second)
		if f.shared.Leader(f.ca.ID()) != second.exchange {
			t.Fatal("no server has taken over")
		}
		after := second.published(t, f.full())
		if after.Number.Cmp(before.Number) <= 0 {
			t.Errorf("the new leader publishes CRL %v after %v", after.Number, before.Number)
		}
		third := f.join(t, true)
		second.broken.Store(true)
		second.RequestAll()
		wait(10 * time.Second)
		if f.shared.Leader(f.ca.ID()) != third.exchange {
			t.Error("the server whose HSM fails still leads")
		}
		list := third.published(t, f.full())
		if list.Number.Cmp(after.Number) <= 0 || !bytes.Equal(second.published(t, f.full()).Raw, list.Raw) {
			t.Errorf("the servers publish CRL %v, and other bytes", list.Number)
		}
	})
}

// TestFormerLeaderFollows has a round of the leader take long, so that the pause after it is long. Another server takes the
// lease meanwhile, as after an outage. The former leader must publish the CRLs of the new one at once, not after the pause.
func TestFormerLeaderFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first := f.join(t, true)
		wait(2 * time.Second)
		second := f.join(t, true)
		wait(2 * time.Second)
		first.slow.Store(int64(20 * time.Second)) // four times of it is the pause
		first.RequestAll()
		wait(22 * time.Second)
		first.slow.Store(0)
		if f.shared.Leader(f.ca.ID()) != first.exchange {
			t.Fatal("the server has lost its lease during the round")
		}
		first.RequestAll()
		wait(time.Second)
		if err := first.exchange.Yield(t.Context(), f.ca.ID()); err != nil {
			t.Fatal(err)
		}
		if leads, err := second.exchange.Lead(t.Context(), f.ca.ID()); err != nil || !leads {
			t.Fatal(leads, err)
		}
		wait(2 * time.Second)
		if have, want := first.published(t, f.full()).Number, second.published(t, f.full()).Number; have.Cmp(want) != 0 {
			t.Errorf("the former leader publishes CRL %v, and the leader CRL %v", have, want)
		}
	})
}

// TestLeaderSurvivesAFailedExtension has the store fail once when the leader extends its lease. The leader must not sign all
// CRLs again, which would load the store further. If the store fails for longer, it no longer leads.
func TestLeaderSurvivesAFailedExtension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first := f.join(t, true)
		wait(4 * time.Second)
		before := first.published(t, f.full()).Number
		first.exchange.Failing.Store(1)
		wait(4 * time.Second)
		if now := first.published(t, f.full()).Number; now.Cmp(before) != 0 {
			t.Errorf("after one failure the server publishes CRL %v instead of %v", now, before)
		}
		second := f.join(t, true)
		first.exchange.Failing.Store(1000)
		wait(crl.LeaseTime + 4*time.Second)
		if f.shared.Leader(f.ca.ID()) != second.exchange {
			t.Error("a server that cannot extend its lease keeps it")
		}
	})
}

// TestPointOfAnotherServer records a distribution point at a server that does not sign.
func TestPointOfAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first := f.join(t, true)
		wait(2 * time.Second)
		second := f.join(t, true)
		wait(2 * time.Second)
		point := crl.Point{Issuer: f.ca.ID(), Partition: 7, URL: "http://pki.example/crl/7.crl", DeltaURL: "http://pki.example/crl/7-delta.crl"}
		if err := second.AddPoints(t.Context(), []crl.Point{point}); err != nil {
			t.Fatal(err)
		}
		wait(4 * time.Second)
		for _, m := range []*member{first, second} {
			m.published(t, crl.Scope{Issuer: f.ca.ID(), Partition: 7})
			m.published(t, crl.Scope{Issuer: f.ca.ID(), Partition: 7, Delta: true})
		}
	})
}

// unsigned returns the number of CAs whose CRLs no server signs, as a server reports them.
func (m *member) unsigned(t *testing.T, f *fleet) int {
	t.Helper()
	all := m.Unsigned()
	for _, c := range all {
		if !c.Equal(f.ca.Certificate) {
			t.Errorf("the server reports that no server signs the CRLs of %s", c.Subject)
		}
	}
	return len(all)
}

// TestNoServerSigns stops the only server with the key. The other one must report it, and publish the last CRL. It must
// report another server with the key, too.
func TestNoServerSigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		f.book.Issue(f.ca.Ref(t, f.ca.Leaf(t, "device")), time.Now().Add(time.Hour)) // the log is not empty
		first, other := f.join(t, true), f.join(t, false)
		wait(3 * time.Second)
		if n := other.unsigned(t, f); n != 0 || other.log.Count("no server with the key") > 0 {
			t.Error("the server reports that no server signs CRLs which one signs")
		}
		first.stop()
		wait(2*crl.LeaseTime + 3*time.Second)
		if n := other.unsigned(t, f); n != 1 || other.log.Count("no server with the key of a CA runs, its CRLs are not renewed") != 1 {
			t.Errorf("the server reports %d CAs whose CRLs no server signs, want one", n)
		}
		wait(5 * time.Minute)
		if other.log.Count("no server signs the CRLs of a CA") > 0 {
			t.Error("the server reports a CRL that is not overdue")
		}
		wait(3 * time.Minute)
		if other.log.Count("no server signs the CRLs of a CA") != 1 {
			t.Error("the server does not report that nothing signs the CRLs")
		}
		if !other.Ready() {
			t.Error("the server is not ready")
		}
		other.published(t, f.full())
		next := f.join(t, true)
		wait(4 * time.Second)
		if n := other.unsigned(t, f); n != 0 || other.log.Count("a server signs the CRLs of a CA again") != 1 || len(next.Unsigned()) != 0 {
			t.Errorf("the server reports %d CAs whose CRLs no server signs, after one has begun to", n)
		}
	})
}

// TestImportAtAnotherServer imports the root's CRL at one server. The other one must publish it.
func TestImportAtAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		first, other := f.join(t, true), f.join(t, true)
		wait(2 * time.Second)
		der := rootCRL(t, f.root, nil)
		if _, err := first.Import(t.Context(), der, operator); err != nil {
			t.Fatal(err)
		}
		wait(2 * time.Second)
		if list := other.published(t, crl.Scope{Issuer: f.root.ID()}); !bytes.Equal(list.Raw, der) {
			t.Error("the other server publishes other bytes")
		}
	})
}
