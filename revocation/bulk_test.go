package revocation_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// running runs the authority and the updater until stop is called or the test ends.
func (s *scene) running(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{"authority": s.Run, "updater": s.updater.Run} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("Run of the %s: %v", name, err)
			}
		})
	}
	stop = func() { cancel(); parts.Wait() }
	t.Cleanup(stop)
	return stop
}

// wait lets the time d pass, and then waits until all goroutines of the bubble are blocked.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *scene) selectIssuer() revocation.BulkRequest {
	return revocation.BulkRequest{Selection: pki.Selection{Issuer: s.ca.ID()}, Reason: pki.CACompromise, Actor: operator}
}

// notified returns the number of certificates that the observer knows to be revoked.
func (s *scene) notified() int {
	revoked := map[pki.CertRef]bool{}
	for _, c := range s.outlet.Changes() {
		revoked[c.Ref] = c.Status.State == pki.Revoked
	}
	return len(revoked)
}

// RevokeBulk notifies the observer of all certificates before it returns. Run later updates the records and the CRL.
func TestRevokeBulkNotifiesBeforeRecordsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const members = 300
		s := newScene(t, revtest.Never)
		for range members {
			s.issue(t)
		}
		o := s.selectIssuer()
		n, err := s.CountBulk(t.Context(), o)
		if err != nil || n.Valid != members || s.notified() != 0 {
			t.Errorf("CountBulk = %v, %v, and the observer was notified of %d", n, err, s.notified())
		}
		bulk, err := s.RevokeBulk(t.Context(), o)
		if err != nil || bulk.Total != members || bulk.Done {
			t.Errorf("RevokeBulk = %+v, %v", bulk, err)
		}
		if s.notified() != members {
			t.Errorf("when RevokeBulk returned, the observer was notified of %d certificates, want %d", s.notified(), members)
		}
		stop := s.running(t)
		wait(5 * time.Second)
		stop()
		if bulk, err = s.BulkRevocation(t.Context(), bulk.ID); err != nil || !bulk.Done || bulk.Applied != members {
			t.Errorf("after Run, the bulk revocation is %+v, %v", bulk, err)
		}
		if n := len(s.newest(t).RevokedCertificateEntries); n != members {
			t.Errorf("the CRL has %d entries, want %d", n, members)
		}
	})
}

// A new process continues a bulk revocation of the process before, and notifies its own observer.
func TestRunContinuesAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, revtest.Never)
		for range 10 {
			s.issue(t)
		}
		if _, err := s.RevokeBulk(t.Context(), s.selectIssuer()); err != nil {
			t.Fatal(err)
		}
		s.outlet = &revtest.Outlet{}
		s.start(t, revtest.Never)
		stop := s.running(t)
		wait(5 * time.Second)
		stop()
		if s.notified() != 10 || len(s.newest(t).RevokedCertificateEntries) != 10 {
			t.Errorf("the observer was notified of %d certificates, and the CRL has %d entries; want 10", s.notified(), len(s.newest(t).RevokedCertificateEntries))
		}
	})
}

// A call of the store fails, before or after it takes effect. In the end every certificate must be revoked, listed in
// the CRL, and known to the observer.
func TestBulkRevocationRecoversFromFailures(t *testing.T) {
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
					_, _ = s.RevokeBulk(t.Context(), s.selectIssuer()) // the operator repeats the request
					wait(time.Second)
				}
				wait(10 * time.Second)
				stop()
				if failures != 2 || s.notified() != 200 || len(s.newest(t).RevokedCertificateEntries) != 200 {
					t.Errorf("%s failed, applied %v: the observer was notified of %d, and the CRL has %d entries; want 200", call, applied, s.notified(), len(s.newest(t).RevokedCertificateEntries))
				}
			})
		}
	}
}

func TestBulkRefusesInvalidRequests(t *testing.T) {
	s := newScene(t, revtest.Never)
	now := time.Now()
	for name, c := range map[string]struct {
		edit func(*revocation.BulkRequest)
		rule pki.Rule
	}{
		"empty selection":               {func(o *revocation.BulkRequest) { o.Selection = pki.Selection{} }, pki.RuleRequest},
		"certificateHold":               {func(o *revocation.BulkRequest) { o.Reason = pki.CertificateHold }, pki.RuleReason},
		"unknown reason":                {func(o *revocation.BulkRequest) { o.Reason = 7 }, pki.RuleReason},
		"label without a name":          {func(o *revocation.BulkRequest) { o.Label.Value = "x" }, pki.RuleRequest},
		"future time":                   {func(o *revocation.BulkRequest) { o.At = now.Add(time.Hour) }, pki.RuleRequest},
		"invalidity date in the future": {func(o *revocation.BulkRequest) { o.InvalidSince = now.Add(24 * time.Hour) }, pki.RuleRequest},
		"invalidity date before 1970":   {func(o *revocation.BulkRequest) { o.InvalidSince = time.Unix(-1, 0) }, pki.RuleRequest},
		"invalidity date zero":          {func(o *revocation.BulkRequest) { o.InvalidSince = time.Unix(0, 0) }, pki.RuleRequest},
		"times in the wrong order":      {func(o *revocation.BulkRequest) { o.IssuedFrom, o.IssuedUntil = now, now.Add(-time.Hour) }, pki.RuleRequest},
		"time of issue out of range":    {func(o *revocation.BulkRequest) { o.IssuedFrom = time.Unix(1, 0) }, pki.RuleRequest},
		"control character":             {func(o *revocation.BulkRequest) { o.Comment = "\a" }, pki.RuleRequest},
		"comment too long":              {func(o *revocation.BulkRequest) { o.Comment = string(make([]byte, 257)) }, pki.RuleRequest},
	} {
		o := s.selectIssuer()
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
		"two subjects":                 {Action: revocation.Revoke, Certificate: ref, Key: pki.HashSPKI(nil), Reason: pki.KeyCompromise},
		"hold a key":                   {Action: revocation.Hold, Key: pki.HashSPKI(nil)},
		"revoke a key as superseded":   {Action: revocation.Revoke, Key: pki.HashSPKI(nil), Reason: pki.Superseded},
		"hold with an invalidity date": {Action: revocation.Hold, Certificate: ref, InvalidSince: now.Add(-time.Hour)},
		"escape in the comment":        {Action: revocation.Revoke, Certificate: ref, Comment: "\x1b[2J"},
	} {
		if _, err := s.Apply(t.Context(), o); err == nil {
			t.Errorf("%s: Apply accepts it", name)
		}
	}
}

// follower is the store as a server sees it that does not lead. A change of an issuer's certificates is a bulk revocation.
type follower struct {
	*revtest.Faulty
	bulk revocation.BulkRequest
}

func (f follower) Apply(ctx context.Context, _ revocation.Change) (revocation.ChangeResult, error) {
	bulk, _, err := f.CreateBulk(ctx, f.bulk)
	return revocation.ChangeResult{BulkRevocation: bulk.ID}, err
}

// A server that does not lead notifies its responders of a bulk revocation, whichever server has created it, and leaves the
// records to the leader. A caller who waits for the records gets a result when the leader has changed them. Nothing is logged.
func TestFollowerWaitsForTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const members = 300
		s := newScene(t, revtest.Never)
		for range members {
			s.issue(t)
		}
		_, ref := s.issue(t)
		o := s.selectIssuer()
		o.At = time.Now()
		var leads atomic.Bool
		store := follower{&revtest.Faulty{Book: s.book, Fail: func(call string) (bool, error) {
			if call == "ApplyBulk" && !leads.Load() {
				return false, fmt.Errorf("apply a bulk revocation: %w", pki.ErrNotLeader)
			}
			return false, nil
		}}, o}
		var err error
		s.Authority, err = revocation.New(revocation.Config{Store: store, Observer: s.outlet, CRLs: s.updater, Log: slog.New(slog.NewTextHandler(s.log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		s.running(t)
		wait(time.Minute)
		other, _, err := s.book.CreateBulk(t.Context(), o) // by the leader
		if err != nil {
			t.Fatal(err)
		}
		wait(5 * time.Second)
		if n := s.notified(); n != members+1 {
			t.Errorf("the observer was notified of %d certificates, want %d", n, members+1)
		}
		if bulk, err := s.BulkRevocation(t.Context(), other.ID); err != nil || bulk.Applied > 0 {
			t.Errorf("the follower has changed records: %+v, %v", bulk, err)
		}
		result := make(chan error, 1)
		go func() {
			_, err := s.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Certificate: ref, Actor: operator})
			result <- err
		}()
		wait(time.Minute)
		select {
		case err := <-result:
			t.Fatalf("Apply returned %v before the records were changed", err)
		default:
		}
		for id := other.ID; id <= other.ID+1; id++ { // the leader
			if _, bulk, err := s.book.ApplyBulk(t.Context(), id, 1000, time.Now()); err != nil || !bulk.Done {
				t.Fatalf("the leader's step: %+v, %v", bulk, err)
			}
		}
		if err := <-result; err != nil {
			t.Errorf("Apply returned %v", err)
		}
		leads.Store(true)
		s.issue(t)
		last, err := s.RevokeBulk(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		wait(5 * time.Second)
		if last, err = s.BulkRevocation(t.Context(), last.ID); err != nil || !last.Done {
			t.Errorf("the bulk revocation of the new leader is %+v, %v", last, err)
		}
		if s.log.Count("retrying") > 0 {
			t.Errorf("logged:\n%s", s.log.String())
		}
	})
}
