package revocation_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// running runs the authority and the updater until the test is over.
func (s *scene) running(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{"authority": s.Run, "updater": s.updater.Run} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("the %s runs: %v", name, err)
			}
		})
	}
	stop = func() { cancel(); parts.Wait() }
	t.Cleanup(stop)
	return stop
}

// wait lets time pass, and everything happen that is due.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *scene) ofIssuer() revocation.BulkRequest {
	return revocation.BulkRequest{Selection: pki.Selection{Issuer: s.ca.ID()}, Reason: pki.CACompromise, Actor: operator}
}

// told counts the certificates that the sink knows to be revoked.
func (s *scene) told() int {
	revoked := map[pki.CertRef]bool{}
	for _, c := range s.outlet.Changes() {
		revoked[c.Ref] = c.Status.State == pki.Revoked
	}
	return len(revoked)
}

// The sink knows all members when the order returns; their records, and the CRL, follow while Run runs.
func TestASetIsToldBeforeItsRecordsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const members = 300
		s := newScene(t, revtest.Never)
		for range members {
			s.issue(t)
		}
		o := s.ofIssuer()
		n, err := s.CountBulk(t.Context(), o)
		if err != nil || n.Valid != members || s.told() != 0 {
			t.Errorf("counted %v, %v, and told %d", n, err, s.told())
		}
		set, err := s.RevokeBulk(t.Context(), o)
		if err != nil || set.Total != members || set.Done {
			t.Errorf("the order returns %+v, %v", set, err)
		}
		if s.told() != members {
			t.Errorf("told were %d", s.told())
		}
		stop := s.running(t)
		wait(5 * time.Second)
		stop()
		if set, err = s.BulkRevocation(t.Context(), set.ID); err != nil || !set.Done || set.Applied != members {
			t.Errorf("afterwards it is %+v, %v", set, err)
		}
		if n := len(s.newest(t).RevokedCertificateEntries); n != members {
			t.Errorf("the CRL has %d entries", n)
		}
	})
}

// A next run takes up what one before it has left, and tells the sink by itself.
func TestANextRunHasRecordsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		for range 10 {
			s.issue(t)
		}
		if _, err := s.RevokeBulk(t.Context(), s.ofIssuer()); err != nil {
			t.Fatal(err)
		}
		s.outlet = &revtest.Outlet{}
		s.start(t, revtest.Never)
		stop := s.running(t)
		wait(5 * time.Second)
		stop()
		if s.told() != 10 || len(s.newest(t).RevokedCertificateEntries) != 10 {
			t.Errorf("told were %d, and the CRL has %d", s.told(), len(s.newest(t).RevokedCertificateEntries))
		}
	})
}

// Whatever fails on the way, before or after it has applied, in the end all is revoked, told and listed.
func TestSetsHeal(t *testing.T) {
	for _, call := range []string{"CreateBulk", "NotifyBulk", "ApplyBulk"} {
		for _, applied := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				failures := 0
				s := newScene(t, func(c string) (bool, error) {
					if c != call || failures == 2 {
						return false, nil
					}
					failures++
					return applied, errors.New("on purpose")
				})
				for range 200 {
					s.issue(t)
				}
				stop := s.running(t)
				wait(2 * time.Second)
				for range 3 {
					_, _ = s.RevokeBulk(t.Context(), s.ofIssuer()) // again, as an operator does who does not know
					wait(time.Second)
				}
				wait(10 * time.Second)
				stop()
				if failures != 2 || s.told() != 200 || len(s.newest(t).RevokedCertificateEntries) != 200 {
					t.Errorf("%s, applied %v: told were %d, and the CRL has %d", call, applied, s.told(), len(s.newest(t).RevokedCertificateEntries))
				}
			})
		}
	}
}

func TestSetsThatMakeNoSense(t *testing.T) {
	s := newScene(t, revtest.Never)
	now := time.Now()
	for name, c := range map[string]struct {
		edit func(*revocation.BulkRequest)
		rule pki.Rule
	}{
		"all there are":          {func(o *revocation.BulkRequest) { o.Selection = pki.Selection{} }, pki.RuleRequest},
		"hold":                   {func(o *revocation.BulkRequest) { o.Reason = pki.CertificateHold }, pki.RuleReason},
		"no reason":              {func(o *revocation.BulkRequest) { o.Reason = 7 }, pki.RuleReason},
		"a value alone":          {func(o *revocation.BulkRequest) { o.Label.Value = "x" }, pki.RuleRequest},
		"the future":             {func(o *revocation.BulkRequest) { o.At = now.Add(time.Hour) }, pki.RuleRequest},
		"invalid tomorrow":       {func(o *revocation.BulkRequest) { o.InvalidSince = now.Add(24 * time.Hour) }, pki.RuleRequest},
		"invalid before 1970":    {func(o *revocation.BulkRequest) { o.InvalidSince = time.Unix(-1, 0) }, pki.RuleRequest},
		"invalid as 1970 begins": {func(o *revocation.BulkRequest) { o.InvalidSince = time.Unix(0, 0) }, pki.RuleRequest},
		"a time backwards":       {func(o *revocation.BulkRequest) { o.IssuedFrom, o.IssuedUntil = now, now.Add(-time.Hour) }, pki.RuleRequest},
		"no time":                {func(o *revocation.BulkRequest) { o.IssuedFrom = time.Unix(1, 0) }, pki.RuleRequest},
		"a bell":                 {func(o *revocation.BulkRequest) { o.Comment = "\a" }, pki.RuleRequest},
		"a novel":                {func(o *revocation.BulkRequest) { o.Comment = string(make([]byte, 257)) }, pki.RuleRequest},
	} {
		o := s.ofIssuer()
		c.edit(&o)
		for _, try := range []func() error{
			func() error { _, err := s.CountBulk(t.Context(), o); return err },
			func() error { _, err := s.RevokeBulk(t.Context(), o); return err },
		} {
			if refusal, ok := pki.AsRefusal(try()); !ok || refusal.Rule != c.rule || refusal.Hint == "" {
				t.Errorf("%s: %v", name, try())
			}
		}
	}
	_, ref := s.issue(t)
	for name, o := range map[string]revocation.Change{
		"two subjects":     {Action: revocation.Revoke, Certificate: ref, Key: pki.HashSPKI(nil), Reason: pki.KeyCompromise},
		"a key on hold":    {Action: revocation.Hold, Key: pki.HashSPKI(nil)},
		"a key superseded": {Action: revocation.Revoke, Key: pki.HashSPKI(nil), Reason: pki.Superseded},
		"invalid on hold":  {Action: revocation.Hold, Certificate: ref, InvalidSince: now.Add(-time.Hour)},
		"an escape":        {Action: revocation.Revoke, Certificate: ref, Comment: "\x1b[2J"},
	} {
		if _, err := s.Apply(t.Context(), o); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
