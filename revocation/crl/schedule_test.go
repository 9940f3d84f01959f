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

// running runs the updater until stop is called or the test ends.
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

// wait lets the time d pass, and then waits until all goroutines of the bubble are blocked.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// synctestScene runs a test in a synctest bubble, which has its own clock.
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
			t.Errorf("the newest CRL is valid for another %v only", left)
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
			t.Fatalf("%d CRLs, want the first one and one for all changes", n)
		}
		for _, ref := range refs {
			if !lists(s.newest(t), ref) {
				t.Errorf("%v is not in the CRL", ref.Serial)
			}
		}
		// A certificate on hold is listed until the hold is removed.
		_, ref := s.issue(t)
		for _, action := range []revocation.Action{revocation.Hold, revocation.Unhold} {
			if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: action, Certificate: ref}); err != nil {
				t.Fatal(err)
			}
			wait(time.Second)
			if listed := lists(s.newest(t), ref); listed != (action == revocation.Hold) {
				t.Errorf("after %v, the certificate is in the CRL: %v", action, listed)
			}
		}
	})
}

// If the issuing of a certificate revokes another one, a CRL lists that within one second. If it revokes none, no CRL is
// signed.
func TestChangesByIssuingReachTheCRL(t *testing.T) {
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
			t.Fatalf("%d CRLs, want the first one only", n)
		}
		changes, err := s.book.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: ref, At: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		s.Apply(append(changes.Changed, good)...)
		wait(time.Second)
		if !lists(s.newest(t), ref) || lists(s.newest(t), next) {
			t.Error("the CRL must list the revoked certificate, and nothing else")
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

func TestFailuresRecover(t *testing.T) {
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
						t.Error("Ready is true before Run")
					}
					s.running(t)
					wait(2 * time.Minute)
					if n := len(s.outlet.Published()); n != 0 {
						t.Fatalf("%d CRLs are published although %s fails", n, call)
					}
					if s.Ready() != (call != "CRLs") { // if the recorded CRLs cannot be read, Run signs none
						t.Errorf("while %s fails, Ready is %v", call, s.Ready())
					}
					if n := s.log.Count(errDown.Error()); n < 3 || n > 30 {
						t.Errorf("%d log messages in two minutes, want 3 to 30", n)
					}
					_, ref := s.issue(t)
					s.revoke(t, ref, pki.KeyCompromise)
					down.Store(false)
					wait(time.Minute)
					if !lists(s.newest(t), ref) {
						t.Errorf("the revocation is in no CRL after %s works again", call)
					}
					// No CRL number may be used twice, in spite of the failures.
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

// shyOutlet is an Outlet that fails to publish while a flag is set.
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

// If a scheduled CRL is recorded but could not be published, Run retries soon, and not at the next scheduled time.
func TestUnpublishedCRLIsRetried(t *testing.T) {
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
			t.Errorf("%d log messages about a CRL that is not published, want one for each attempt", n)
		}
		shy.Store(false)
		wait(time.Minute)
		if age := time.Since(s.newest(t).ThisUpdate); age > 2*time.Minute {
			t.Errorf("the newest published CRL is %v old", age)
		}
	})
}

func TestChangeWithLostResultReachesTheCRL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, func(call string) (bool, error) {
			if call == "Apply" {
				return true, errDown // the change is applied, but the caller gets an error
			}
			return false, nil
		})
		s.running(t)
		wait(time.Second)
		_, ref := s.issue(t)
		if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Certificate: ref}); err == nil {
			t.Fatal("Apply returns no error")
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
		s.revoke(t, ref, pki.KeyCompromise) // then the process crashes before the next CRL

		// At first the HSM is unavailable. Relying parties then get the recorded CRL.
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
			t.Fatalf("%d CRLs are published while the HSM is unavailable, want the recorded one", n)
		}
		away.Store(false)
		wait(time.Minute)
		if !lists(s.newest(t), ref) {
			t.Error("the certificate revoked just before the crash is in no CRL")
		}
	})
}

// rootCRL returns a CRL signed by the offline root.
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

func TestWarningsBeforeTheRootsCRLExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		stop := s.running(t)
		wait(time.Second)
		if n := s.log.Count("a CA has no CRL, import one"); n != 1 {
			t.Errorf("%d warnings that the root has no CRL, want 1", n)
		}
		if _, err := s.Import(t.Context(), rootCRL(t, s.root, nil), operator); err != nil {
			t.Fatal(err)
		}
		wait(334 * 24 * time.Hour)
		if n := s.log.Count("expires soon"); n != 0 {
			t.Errorf("%d warnings more than a month before the expiry, want none", n)
		}
		wait(3 * 24 * time.Hour)
		if n := s.log.Count("expires soon"); n < 1 || n > 3 {
			t.Errorf("%d warnings in the first days of the last month, want one a day", n)
		}
		wait(30 * 24 * time.Hour)
		if s.log.Count("level=ERROR msg=\"a CA's CRL has expired") == 0 {
			t.Error("the root's CRL has expired without an ERROR message")
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
		t.Fatal("the CRL was not recorded and published with the operator as its actor")
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
		"empty":         nil,
		"certificate":   s.root.Certificate.Raw,
		"trailing data": append(append([]byte(nil), good...), 0),
		"signature":     bent,
		"stranger":      rootCRL(t, stranger, nil),
		"namesake":      rootCRL(t, namesake, nil),
		"our own":       rootCRL(t, s.ca, nil),
		"expired": next(func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"future":      next(func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(time.Hour) }),
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
		t.Fatalf("%d CRLs are published, want only the first", n)
	}
	for range 2 { // importing the same CRL again must succeed
		c, err := s.Import(t.Context(), good, operator)
		if err != nil || c.Number.Int64() != 6 || c.Issuer != s.root.ID() {
			t.Errorf("import: %v, %v", c.Number, err)
		}
	}
}
