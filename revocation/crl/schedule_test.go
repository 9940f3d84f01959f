package crl_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"math/big"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// running runs the authority until the test is over.
func (s *scene) running(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// wait lets time pass, and everything happen that is due.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// synctestScene has a test play in a time of its own.
func synctestScene(t *testing.T, test func(t *testing.T, s *scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newScene(t, revtest.Never)) })
}

func TestCRLsOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		s.running(t)
		wait(0)
		if n := len(s.outlet.Published()); n != 1 {
			t.Fatalf("%d CRLs at the start, want 1", n)
		}
		list := s.newest(t)
		if err := list.CheckSignatureFrom(s.ca.Certificate); err != nil {
			t.Error(err)
		}
		if list.NextUpdate.Sub(list.ThisUpdate) != crl.DefaultLifetime || list.ThisUpdate.After(time.Now()) {
			t.Errorf("the CRL is valid from %v to %v", list.ThisUpdate, list.NextUpdate)
		}
		wait(11*time.Hour + 59*time.Minute)
		if n := len(s.outlet.Published()); n != 1 {
			t.Fatalf("%d CRLs before half a lifetime, want 1", n)
		}
		wait(2 * time.Minute)
		if n := len(s.outlet.Published()); n != 2 {
			t.Fatalf("%d CRLs after half a lifetime, want 2", n)
		}
		wait(10 * 24 * time.Hour)
		if n := len(s.outlet.Published()); n != 22 {
			t.Errorf("%d CRLs after ten days and a half, want 22", n)
		}
		if left := time.Until(s.newest(t).NextUpdate); left < 11*time.Hour {
			t.Errorf("the newest CRL is good for another %v only", left)
		}
	})
}

func TestChangesShareACRL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		s.running(t)
		wait(time.Minute)
		var refs []pki.CertRef
		for range 20 {
			_, ref := s.issue(t)
			s.revoke(t, ref, pki.Unspecified)
			refs = append(refs, ref)
		}
		wait(time.Second)
		if n := len(s.outlet.Published()); n != 2 {
			t.Fatalf("%d CRLs, want the first and one for all changes", n)
		}
		for _, ref := range refs {
			if !lists(s.newest(t), ref) {
				t.Errorf("%v is not in the CRL", ref.Serial)
			}
		}
		// A hold is listed, until it is released.
		_, ref := s.issue(t)
		for _, action := range []revocation.Action{revocation.Hold, revocation.Unhold} {
			if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: action, Certificate: ref}); err != nil {
				t.Fatal(err)
			}
			wait(time.Second)
			if listed := lists(s.newest(t), ref); listed != (action == revocation.Hold) {
				t.Errorf("after %v: in the CRL is %v", action, listed)
			}
		}
	})
}

// What others have recorded is in a CRL within a second, and what no CRL has asks for none.
func TestWhatOthersRecordReachesTheCRL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		s.running(t)
		wait(time.Minute)
		_, ref := s.issue(t)
		_, next := s.issue(t)
		good := s.book.Issue(next, time.Now().Add(time.Hour))
		s.Apply(good)
		wait(time.Minute)
		if n := len(s.outlet.Published()); n != 1 {
			t.Fatalf("%d CRLs, want the first alone", n)
		}
		changes, err := s.book.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: ref, At: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		s.Apply(append(changes.Changed, good)...)
		wait(time.Second)
		if !lists(s.newest(t), ref) || lists(s.newest(t), next) {
			t.Error("the CRL does not have what was revoked, and that alone")
		}
	})
}

func TestExpiredEntriesAppearOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		s.running(t)
		_, ref := s.issue(t)
		s.book.Issue(ref, time.Now().Add(30*time.Minute))
		s.revoke(t, ref, pki.Superseded)
		wait(time.Hour)
		if !lists(s.newest(t), ref) {
			t.Fatal("the entry is missing from the CRL after its revocation")
		}
		wait(12 * time.Hour)
		if !lists(s.newest(t), ref) {
			t.Error("the entry is missing from the first CRL beyond the certificate's validity (RFC 5280 section 3.3)")
		}
		wait(12 * time.Hour)
		if lists(s.newest(t), ref) {
			t.Error("the entry stays in the CRLs of an expired certificate")
		}
	})
}

func TestFailuresHeal(t *testing.T) {
	for _, call := range []string{"CRLs", "TakeNumber", "Sign", "PutCRLs"} {
		for _, applied := range []bool{false, true} {
			t.Run(call, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var down atomic.Bool
					down.Store(true)
					s := newScene(t, func(c string) (bool, error) {
						if c == call && down.Load() {
							return applied, errDown
						}
						return false, nil
					})
					if s.Ready() {
						t.Error("it has begun before it runs")
					}
					s.running(t)
					wait(2 * time.Minute)
					if n := len(s.outlet.Published()); n != 0 {
						t.Fatalf("%d CRLs published without %s", n, call)
					}
					if s.Ready() != (call != "CRLs") { // without that nothing was tried
						t.Errorf("without %s it has begun: %v", call, s.Ready())
					}
					if n := s.log.Count(errDown.Error()); n < 3 || n > 30 {
						t.Errorf("%d complaints in two minutes, want a few", n)
					}
					_, ref := s.issue(t)
					s.revoke(t, ref, pki.KeyCompromise)
					down.Store(false)
					wait(time.Minute)
					if !lists(s.newest(t), ref) {
						t.Errorf("the revocation is in no CRL after %s came back", call)
					}
					// However often it failed, no number came twice.
					last := big.NewInt(0)
					for _, c := range s.outlet.Published() {
						if c.Number.Cmp(last) <= 0 {
							t.Errorf("CRL %v was published after %v", c.Number, last)
						}
						last = c.Number
					}
				})
			})
		}
	}
}

// shyOutlet takes no CRL while it is told not to.
type shyOutlet struct {
	*revtest.Outlet
	shy *atomic.Bool
}

func (o shyOutlet) PublishCRL(c crl.CRL, path string) error {
	if o.shy.Load() {
		return errDown
	}
	return o.Outlet.PublishCRL(c, path)
}

// What the schedule asked for, and is on record but not out, does not wait for the schedule's next time.
func TestACRLThatDidNotGetOutFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		var shy atomic.Bool
		u, err := crl.New(t.Context(), crl.Config{
			Issuers: []crl.Issuer{{Certificate: s.ca.Certificate, Signer: s.ca.Key}}, Store: s.book,
			Publisher: shyOutlet{s.outlet, &shy}, Directory: s.dir, Log: slog.New(slog.NewTextHandler(s.log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Updater = u
		s.running(t)
		wait(11 * time.Hour)
		shy.Store(true)
		wait(time.Hour + time.Minute)
		if n := s.log.Count("signing CRLs failed, retrying"); n < 2 {
			t.Errorf("%d complaints about a CRL that does not get out, want one for each try", n)
		}
		shy.Store(false)
		wait(time.Minute)
		if age := time.Since(s.newest(t).ThisUpdate); age > 2*time.Minute {
			t.Errorf("the newest CRL that is out is %v old", age)
		}
	})
}

func TestChangeBehindAnErrorReachesTheCRL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, func(call string) (bool, error) {
			if call == "Apply" {
				return true, errDown // the answer is lost, the change is not
			}
			return false, nil
		})
		s.running(t)
		wait(time.Second)
		_, ref := s.issue(t)
		if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Certificate: ref}); err == nil {
			t.Fatal("the order succeeds")
		}
		wait(time.Second)
		if !lists(s.newest(t), ref) {
			t.Error("the revocation is in no CRL")
		}
	})
}

func TestRestartPublishesTheRecordedCRL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		_, ref := s.issue(t)
		if err := s.PublishNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.revoke(t, ref, pki.KeyCompromise) // and a crash before the CRL

		// The token stays away at first: relying parties get what there is.
		var away atomic.Bool
		away.Store(true)
		s.outlet = &revtest.Outlet{}
		s.start(t, func(call string) (bool, error) {
			if call == "Sign" && away.Load() {
				return false, errDown
			}
			return false, nil
		})
		s.running(t)
		wait(time.Second)
		if n := len(s.outlet.Published()); n != 1 || lists(s.newest(t), ref) || !s.Ready() {
			t.Fatalf("%d CRLs are published while the token is away, want the recorded one", n)
		}
		away.Store(false)
		wait(time.Minute)
		if !lists(s.newest(t), ref) {
			t.Error("what was revoked just before the crash is in no CRL")
		}
	})
}

// rootCRL is a CRL that the offline root signs.
func rootCRL(t testing.TB, ca revtest.CA, edit func(*x509.RevocationList)) []byte {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(365 * 24 * time.Hour)}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.Certificate, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestWarningsBeforeTheRootsCRLGoesStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		stop := s.running(t)
		wait(time.Second)
		if n := s.log.Count("a CA has no CRL here"); n != 1 {
			t.Errorf("%d warnings that the root has no CRL, want 1", n)
		}
		if _, err := s.Import(t.Context(), rootCRL(t, s.root, nil), operator); err != nil {
			t.Fatal(err)
		}
		wait(334 * 24 * time.Hour)
		if n := s.log.Count("goes stale in"); n != 0 {
			t.Errorf("%d warnings a month and more before the end, want none", n)
		}
		wait(3 * 24 * time.Hour)
		if n := s.log.Count("goes stale in"); n < 1 || n > 3 {
			t.Errorf("%d warnings in the first days of the last month, want one a day", n)
		}
		wait(30 * 24 * time.Hour)
		if s.log.Count("level=ERROR msg=\"a CA's CRL is stale") == 0 {
			t.Error("the root's CRL went stale without an error")
		}
		stop()
	})
}

func TestImport(t *testing.T) {
	s := newScene(t, revtest.Never)
	stranger := revtest.NewRoot(t, "Stranger", "p256")
	namesake := revtest.NewRoot(t, "Offline Root", "p256")
	if _, err := s.Import(t.Context(), rootCRL(t, s.root, func(l *x509.RevocationList) { l.Number = big.NewInt(5) }), operator); err != nil {
		t.Fatal(err)
	}
	if s.book.PutBy(s.root.ID()) != operator || len(s.outlet.Published()) != 1 {
		t.Fatal("the CRL was not recorded and published under the operator's name")
	}
	next := func(edit func(*x509.RevocationList)) []byte {
		return rootCRL(t, s.root, func(l *x509.RevocationList) {
			l.Number = big.NewInt(6)
			edit(l)
		})
	}
	good := next(func(*x509.RevocationList) {})
	bent := append([]byte(nil), good...)
	bent[len(bent)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing":       nil,
		"no CRL":        s.root.Certificate.Raw,
		"trailing data": append(append([]byte(nil), good...), 0),
		"signature":     bent,
		"stranger":      rootCRL(t, stranger, nil),
		"namesake":      rootCRL(t, namesake, nil),
		"our own":       rootCRL(t, s.ca, nil),
		"stale": next(func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"yet to come": next(func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(time.Hour) }),
		"partial":     next(func(l *x509.RevocationList) { l.ExtraExtensions = onlyUsers() }),
		"older":       rootCRL(t, s.root, func(l *x509.RevocationList) { l.Number = big.NewInt(4) }),
		"same number": rootCRL(t, s.root, func(l *x509.RevocationList) { l.Number = big.NewInt(5) }),
	} {
		_, err := s.Import(t.Context(), der, operator)
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleCRL {
			t.Errorf("%s: %v, want a refusal by %s", name, err, pki.RuleCRL)
		}
	}
	if n := len(s.outlet.Published()); n != 1 {
		t.Fatalf("%d CRLs are published, want the first only", n)
	}
	for range 2 { // an import can be repeated
		c, err := s.Import(t.Context(), good, operator)
		if err != nil || c.Number.Int64() != 6 || c.Issuer != s.root.ID() {
			t.Errorf("import: %v, %v", c.Number, err)
		}
	}
}
