package rotation_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/revocation/rotation"
)

var (
	operator = pki.ActorCommand("test")
	issuer   = func() pki.IssuerID {
		id, err := pki.IssuerIDFromBytes(slices.Repeat([]byte{7}, 32))
		if err != nil {
			panic(err)
		}
		return id
	}()
)

const life = 90 * time.Hour

func refOf(tb testing.TB, n int, issued time.Time) pki.CertRef {
	tb.Helper()
	serial, err := pki.MakeSerial(issued, [pki.SerialRandomSize]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	if err != nil {
		tb.Fatal(err)
	}
	return pki.CertRef{Issuer: issuer, Serial: serial}
}

func good(ref pki.CertRef) pki.StatusChange {
	return pki.StatusChange{Ref: ref, NotAfter: ref.Serial.Time().Add(life), Status: pki.Status{State: pki.Good, Version: 1}}
}

// statuses are the statuses of a Responder that is always complete.
type statuses struct{ *responder.Responder }

func (statuses) CurrentAt() time.Time { return time.Now() }

func newStatuses(tb testing.TB) statuses {
	tb.Helper()
	r, err := responder.New(responder.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return statuses{r}
}

// testStore records rotations in memory. Each affects the certificates in members.
type testStore struct {
	mu      sync.Mutex
	all     []rotation.Rotation
	members map[int64][]pki.CertRef
	due     int
	fail    error
}

func (s *testStore) locked(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	return do()
}

func (s *testStore) CountRotation(context.Context, rotation.Request) (rotation.Counts, error) {
	return rotation.Counts{Affected: 1, Living: 100}, nil
}

func (s *testStore) StartRotation(_ context.Context, r rotation.Request) (started rotation.Rotation, err error) {
	err = s.locked(func() error {
		started = rotation.Rotation{ID: int64(len(s.all) + 1), Request: r}
		s.all = append(s.all, started)
		return nil
	})
	return started, err
}

func (s *testStore) EndRotation(_ context.Context, e rotation.End) (ended rotation.Rotation, err error) {
	err = s.locked(func() error {
		r := &s.all[e.ID-1]
		r.EndedAt, r.Stopped, r.Final = e.At, e.Stopped, e.Final
		ended = *r
		return nil
	})
	return ended, err
}

func (s *testStore) Rotation(_ context.Context, id int64) (r rotation.Rotation, err error) {
	err = s.locked(func() error { r = s.all[id-1]; return nil })
	return r, err
}

func (s *testStore) Rotations(context.Context, int64, int) ([]rotation.Rotation, int64, error) {
	return nil, 0, nil
}

func (s *testStore) OpenRotations(context.Context) (open []rotation.Rotation, err error) {
	err = s.locked(func() error {
		for _, r := range s.all {
			if r.State() == rotation.Open {
				open = append(open, r)
			}
		}
		return nil
	})
	return open, err
}

func (s *testStore) RotationMembers(_ context.Context, id int64, visit func([]pki.CertRef) error) error {
	var refs []pki.CertRef
	err := s.locked(func() error { refs = s.members[id]; return nil })
	for batch := range slices.Chunk(refs, 3) {
		err = errors.Join(err, visit(batch))
	}
	return err
}

func (s *testStore) RotationProgress(context.Context, int64, time.Time) (p rotation.Progress, err error) {
	err = s.locked(func() error { p.Due = s.due; return nil })
	return p, err
}

// fixture is a Manager that runs in a synctest bubble, with a fleet of certificates.
type fixture struct {
	*rotation.Manager
	statuses statuses
	store    *testStore
	fleet    []pki.CertRef
}

func inBubble(t *testing.T, test func(t *testing.T, f *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{statuses: newStatuses(t), store: &testStore{members: map[int64][]pki.CertRef{}, due: 1}}
		for n := range 10 {
			f.fleet = append(f.fleet, refOf(t, n, time.Now()))
			f.statuses.Apply(good(f.fleet[n]))
		}
		var err error
		f.Manager, err = rotation.New(rotation.Config{Store: f.store, Statuses: f.statuses, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- f.Run(ctx) }()
		test(t, f)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// start starts a rotation of some certificates over an hour, and waits until it is active.
func (f *fixture) start(t *testing.T, refs ...pki.CertRef) rotation.Rotation {
	t.Helper()
	f.store.mu.Lock()
	f.store.members[int64(len(f.store.all)+1)] = refs
	f.store.mu.Unlock()
	r, err := f.Start(t.Context(), rotation.Request{Selection: pki.Selection{Profile: "device"}, Over: time.Hour, Actor: operator})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return r
}

// mustBeIn fails unless the renewal window of a certificate is in a period.
func (f *fixture) mustBeIn(t *testing.T, ref pki.CertRef, from, until time.Time) {
	t.Helper()
	start, end, retryAfter, err := f.RenewalInfo(ref)
	if err != nil {
		t.Fatal(err)
	}
	if start.Before(from) || end.After(until) || !start.Before(end) {
		t.Errorf("the window is from %s to %s, want it between %s and %s", start, end, from, until)
	}
	if retryAfter != 6*time.Hour {
		t.Errorf("the holder should poll again after %s", retryAfter)
	}
}

func (f *fixture) mustBeUsual(t *testing.T, ref pki.CertRef) {
	t.Helper()
	issued := ref.Serial.Time()
	f.mustBeIn(t, ref, issued.Add(life*6/10), issued.Add(life*74/100))
}

func TestRotation(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.mustBeUsual(t, f.fleet[0])
		time.Sleep(time.Hour)
		r := f.start(t, f.fleet[:5]...)
		for n, ref := range f.fleet {
			if n < 5 {
				f.mustBeIn(t, ref, r.At, r.At.Add(time.Hour))
			} else {
				f.mustBeUsual(t, ref)
			}
		}
		// A second rotation does not move a window to a later time.
		second := f.start(t, f.fleet...)
		f.mustBeIn(t, f.fleet[0], r.At, r.At.Add(time.Hour))
		f.mustBeIn(t, f.fleet[9], second.At, second.At.Add(time.Hour))
		if _, err := f.Stop(t.Context(), r.ID, operator); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f.mustBeIn(t, f.fleet[0], second.At, second.At.Add(time.Hour))
		if _, err := f.Stop(t.Context(), second.ID, operator); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, ref := range f.fleet {
			f.mustBeUsual(t, ref)
		}
		// The mark of the rotation that has ended names another one now, without its certificates.
		third := f.start(t, f.fleet[9])
		f.mustBeUsual(t, f.fleet[0])
		f.mustBeIn(t, f.fleet[9], third.At, third.At.Add(time.Hour))
	})
}

func TestRotationCompletes(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		r := f.start(t, f.fleet...)
		time.Sleep(24 * time.Hour) // holders that were off still have a window in the past
		f.mustBeIn(t, f.fleet[0], r.At, r.At.Add(time.Hour))
		f.store.mu.Lock()
		f.store.due = 0
		f.store.mu.Unlock()
		time.Sleep(time.Minute)
		have, _, err := f.Rotation(t.Context(), r.ID)
		if err != nil || have.State() != rotation.Completed {
			t.Errorf("the rotation is %+v, %v", have, err)
		}
		f.mustBeUsual(t, f.fleet[0])
		if again, err := f.Stop(t.Context(), r.ID, operator); err != nil || again.Stopped {
			t.Errorf("stopping it again returned %+v, %v", again, err)
		}
	})
}

// A certificate may be recorded before its status is in memory. A failing store only delays the rotation.
func TestRotationIsActivatedLate(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		late := refOf(t, 100, time.Now())
		r := f.start(t, late, f.fleet[0])
		if _, _, _, err := f.RenewalInfo(late); err == nil {
			t.Error("the window of an unknown certificate is known")
		} else if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleNotFound {
			t.Errorf("got the error %v", err)
		}
		f.statuses.Apply(good(late))
		time.Sleep(2 * time.Second)
		f.mustBeIn(t, late, r.At, r.At.Add(time.Hour))

		f.store.mu.Lock()
		f.store.members[2] = f.fleet[5:]
		f.store.all = append(f.store.all, rotation.Rotation{ID: 2, Request: rotation.Request{Over: time.Hour, At: r.At}}) // by another server
		f.store.fail = errors.New("disk full")
		f.store.mu.Unlock()
		time.Sleep(time.Minute)
		f.mustBeUsual(t, f.fleet[9])
		f.store.mu.Lock()
		f.store.fail = nil
		f.store.mu.Unlock()
		time.Sleep(time.Minute)
		f.mustBeIn(t, f.fleet[9], r.At, r.At.Add(time.Hour))
	})
}

func TestWindowByStatus(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.start(t, f.fleet[1])
		now := time.Now().UTC().Truncate(time.Second)
		change := func(ref pki.CertRef, state pki.State, version uint64) {
			c := good(ref)
			c.Status = pki.Status{State: state, Version: version}
			if state != pki.Good {
				c.Status.RevokedAt = now
			}
			f.statuses.Apply(c)
		}
		change(f.fleet[0], pki.Revoked, 2)
		f.mustBeIn(t, f.fleet[0], now.Add(-time.Hour), now)
		change(f.fleet[2], pki.Hold, 2)
		f.mustBeUsual(t, f.fleet[2])
		change(f.fleet[1], pki.Hold, 2) // the mark stays
		f.mustBeIn(t, f.fleet[1], now.Add(-time.Second), now.Add(time.Hour))
		change(f.fleet[1], pki.Good, 3)
		f.mustBeIn(t, f.fleet[1], now.Add(-time.Second), now.Add(time.Hour))
		change(f.fleet[1], pki.Revoked, 4)
		f.mustBeIn(t, f.fleet[1], now.Add(-time.Hour), now)
	})
}

func TestRequestsAreChecked(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		all := pki.Selection{Profile: "device"}
		for name, req := range map[string]rotation.Request{
			"an empty selection": {Over: time.Hour},
			"a lineage":          {Selection: pki.Selection{LineageOf: f.fleet[0]}, Over: time.Hour},
			"no period":          {Selection: all},
			"a negative period":  {Selection: all, Over: -time.Hour},
			"a long period":      {Selection: all, Over: rotation.MaxOver + 1},
			"a bad comment":      {Selection: all, Over: time.Hour, Comment: "\x00"},
			"a bad label":        {Selection: pki.Selection{Label: pki.Label{Value: "x"}}, Over: time.Hour},
		} {
			req.Actor = operator
			_, countErr := f.Count(t.Context(), req)
			_, startErr := f.Start(t.Context(), req)
			for _, err := range []error{countErr, startErr} {
				if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleRequest {
					t.Errorf("%s: got the error %v", name, err)
				}
			}
		}
	})
}

func TestConfirmation(t *testing.T) {
	for _, c := range []struct {
		affected, living, confirm int
		want                      pki.Rule
	}{
		{0, 10, 0, pki.RuleNotFound},
		{1, 10, 0, ""},
		{1, 10, 1, ""},
		{1, 10, 2, pki.RuleUnconfirmed},
		{2, 10, 0, pki.RuleUnconfirmed},
		{2, 10, 2, ""},
		{2, 10, 3, pki.RuleUnconfirmed},
		{10_000, 20_000, 9_900, ""},
		{10_000, 20_000, 10_100, ""},
		{10_000, 20_000, 9_899, pki.RuleUnconfirmed},
		{10_000, 20_000, 10_101, pki.RuleUnconfirmed},
		{5, 5, 1e17, pki.RuleUnconfirmed}, // times 100 it overflows, like the next one
		{5, 5, math.MaxInt, pki.RuleUnconfirmed},
	} {
		err := rotation.Counts{Affected: c.affected, Living: c.living}.Check(c.confirm)
		if refusal, ok := pki.AsRefusal(err); ok != (c.want != "") || ok && refusal.Rule != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func BenchmarkRenewalInfo(b *testing.B) {
	s := newStatuses(b)
	refs := make([]pki.CertRef, 100_000)
	for n := range refs {
		refs[n] = refOf(b, n, time.Now())
		s.Apply(good(refs[n]))
	}
	m, err := rotation.New(rotation.Config{Store: &testStore{}, Statuses: s})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if _, _, _, err := m.RenewalInfo(refs[n%len(refs)]); err != nil {
			b.Fatal(err)
		}
	}
}
