package enroll

import (
	"errors"
	"testing"
	"time"
)

const polledLife = 90 * time.Hour

// inPolledSynctest runs body with an agent that has a certificate of polledLife, and with a CA that returns windows.
func inPolledSynctest(t *testing.T, info func(*Pair) (RenewalInfo, error), body func(*harness)) {
	t.Helper()
	inSynctest(t, func(b *harness) { b.ca.lifetime, b.ca.info = polledLife, info }, func(b *harness) {
		b.run()
		body(b)
		if err := b.stop(); err != nil {
			t.Error(err)
		}
	})
}

func (ca *testCA) pollTimes() []time.Time {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return append([]time.Time(nil), ca.polls...)
}

// mustRenew fails unless the agent has renewed once, in the given period after the start.
func (b *harness) mustRenew(from, until time.Duration) {
	b.Helper()
	calls := b.ca.callTimes()
	if len(calls) != 2 {
		b.Fatalf("%d requests for certificates", len(calls))
	}
	if after := calls[1].Sub(calls[0]); after < from || after > until {
		b.Errorf("the agent renewed after %s, want %s to %s", after, from, until)
	}
}

func TestAgentPollsAtIntervals(t *testing.T) {
	usual := func(p *Pair) RenewalInfo { return RenewalInfo{Window: p.Origin.Renewal} }
	for name, c := range map[string]struct {
		info              func(*Pair) (RenewalInfo, error)
		life              time.Duration
		shortest, longest time.Duration // between two polls
	}{
		"a tenth of the lifetime":    {func(p *Pair) (RenewalInfo, error) { return usual(p), nil }, 30 * time.Hour, 90 * time.Minute, 3 * time.Hour},
		"the default":                {func(p *Pair) (RenewalInfo, error) { return usual(p), nil }, 90 * 24 * time.Hour, 3 * time.Hour, 6 * time.Hour},
		"as the server wants it":     {func(p *Pair) (RenewalInfo, error) { i := usual(p); i.RetryAfter = time.Hour; return i, nil }, polledLife, 30 * time.Minute, time.Hour},
		"the server wants it often":  {func(p *Pair) (RenewalInfo, error) { i := usual(p); i.RetryAfter = 1; return i, nil }, polledLife, 5 * time.Minute, 10 * time.Minute},
		"the server wants it rarely": {func(p *Pair) (RenewalInfo, error) { i := usual(p); i.RetryAfter = 1 << 60; return i, nil }, 90 * 24 * time.Hour, 12 * time.Hour, 24 * time.Hour},
		"an old server":              {nil, polledLife, 3 * time.Hour, 6 * time.Hour},
		"the polls fail":             {func(*Pair) (RenewalInfo, error) { return RenewalInfo{}, errors.New("no route") }, polledLife, 3 * time.Hour, 6 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			inSynctest(t, func(b *harness) { b.ca.lifetime, b.ca.info = c.life, c.info }, func(b *harness) {
				b.run()
				b.advance(c.life)
				if err := b.stop(); err != nil {
					t.Fatal(err)
				}
				polled := b.ca.pollTimes()
				if len(polled) < int(c.life/c.longest)/2 {
					t.Fatalf("%d polls in %s", len(polled), c.life)
				}
				renewed := b.ca.callTimes()[1]
				for i, at := range polled[1:] {
					d := at.Sub(polled[i])
					if polled[i].Before(renewed) && renewed.Before(at) {
						continue // a new certificate begins another interval
					}
					if d < c.shortest || d > c.longest+time.Second {
						t.Errorf("polls %s apart, want %s to %s", d, c.shortest, c.longest)
					}
				}
				b.mustRenew(time.Duration(renewStart*float64(c.life))-time.Second, time.Duration(renewEnd*float64(c.life))+time.Second)
			})
		})
	}
}

func TestAgentDoesNotPollShortLives(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 59 * time.Minute }, func(b *harness) {
		b.run()
		b.advance(10 * time.Hour)
		if err := b.stop(); err != nil || len(b.ca.polls) > 0 || len(b.ca.calls) < 10 {
			t.Errorf("%v, %d polls, %d requests", err, len(b.ca.polls), len(b.ca.calls))
		}
	})
}

func TestRenewalMovesIntoWindow(t *testing.T) {
	var window RenewalWindow
	inPolledSynctest(t, func(p *Pair) (RenewalInfo, error) {
		if p.Origin.Renewal.Start.Before(window.End) { // a certificate of the time before the rotation
			return RenewalInfo{Window: p.Origin.Renewal}, nil
		}
		return RenewalInfo{Window: window}, nil
	}, func(b *harness) {
		start := time.Now()
		b.ca.set(func() { window = RenewalWindow{start.Add(20 * time.Hour), start.Add(21 * time.Hour)} })
		b.advance(12 * time.Hour)
		if at := b.status().RenewAt; at.Before(window.Start) || at.After(window.End) {
			t.Errorf("the status names %s", at.Sub(start))
		}
		b.ca.set(func() { b.ca.info = nil }) // later responses do not matter
		b.advance(13 * time.Hour)
		b.mustRenew(20*time.Hour, 21*time.Hour)
	})
}

// If the window is in the past, the agent renews within a minute.
func TestAgentRenewsNow(t *testing.T) {
	inPolledSynctest(t, func(p *Pair) (RenewalInfo, error) {
		now := time.Now()
		return RenewalInfo{Window: RenewalWindow{now.Add(-2 * time.Hour), now.Add(-time.Hour)}}, nil
	}, func(b *harness) {
		for len(b.ca.callTimes()) < 2 {
			b.advance(time.Minute)
		}
		polled, calls := b.ca.pollTimes(), b.ca.callTimes()
		if len(polled) != 1 {
			t.Fatalf("%d polls before the renewal", len(polled))
		}
		if d := calls[1].Sub(polled[0]); d < 0 || d > time.Minute+time.Second {
			t.Errorf("the agent renewed %s after the response", d)
		}
		// A server whose windows are always in the past causes one renewal for each poll, and polls are hours apart.
		b.advance(10 * 24 * time.Hour)
		if n, polls := len(b.ca.callTimes()), len(b.ca.pollTimes()); n > polls+1 || n > 10*24/3+2 {
			t.Errorf("%d requests for certificates and %d polls in ten days", n, polls)
		}
	})
}

// A rotation that is stopped gives the agent the time back at which it would have renewed.
func TestStoppedRotationMovesRenewalBack(t *testing.T) {
	var window RenewalWindow
	inPolledSynctest(t, func(p *Pair) (RenewalInfo, error) {
		if window.Start.IsZero() {
			return RenewalInfo{Window: p.Origin.Renewal}, nil
		}
		return RenewalInfo{Window: window}, nil
	}, func(b *harness) {
		planned, start := b.status().RenewAt, time.Now()
		b.ca.set(func() { window = RenewalWindow{start.Add(30 * time.Hour), start.Add(31 * time.Hour)} })
		b.advance(7 * time.Hour)
		if at := b.status().RenewAt; !at.Before(planned) {
			t.Errorf("the renewal did not move from %s", at)
		}
		b.ca.set(func() { window = RenewalWindow{} })
		b.advance(7 * time.Hour)
		if at := b.status().RenewAt; at.After(planned) || at.Before(start.Add(50*time.Hour)) {
			t.Errorf("after the stop, the renewal is at %s, was planned at %s", at, planned)
		}
		b.advance(52 * time.Hour)
		b.mustRenew(54*time.Hour, 66*time.Hour)
	})
}

// The agent never renews later than planned, whatever the window is.
func TestAgentIsNeverLate(t *testing.T) {
	for name, window := range map[string]func(now time.Time) RenewalWindow{
		"after the end": func(now time.Time) RenewalWindow {
			return RenewalWindow{now.Add(1000 * time.Hour), now.Add(2000 * time.Hour)}
		},
		"ends before it starts": func(now time.Time) RenewalWindow { return RenewalWindow{now.Add(time.Hour), now} },
		"without end":           func(now time.Time) RenewalWindow { return RenewalWindow{now.Add(80 * time.Hour), now.Add(1 << 62)} },
	} {
		t.Run(name, func(t *testing.T) {
			inPolledSynctest(t, func(*Pair) (RenewalInfo, error) { return RenewalInfo{Window: window(time.Now())}, nil }, func(b *harness) {
				b.advance(67 * time.Hour)
				b.mustRenew(54*time.Hour-time.Second, 66*time.Hour+time.Second)
			})
		})
	}
}

// A refused early renewal is repeated when the server allows it, and not at each poll.
func TestRefusedEarlyRenewal(t *testing.T) {
	inPolledSynctest(t, func(*Pair) (RenewalInfo, error) {
		now := time.Now()
		return RenewalInfo{Window: RenewalWindow{now.Add(-2 * time.Hour), now.Add(-time.Hour)}, RetryAfter: 10 * time.Minute}, nil
	}, func(b *harness) {
		early := time.Now().Add(polledLife / 2)
		b.ca.set(func() {
			b.ca.before = func() error {
				if left := time.Until(early); left > 0 {
					return temporary{after: left}
				}
				return nil
			}
		})
		b.advance(polledLife/2 - time.Minute)
		if n := len(b.ca.callTimes()); n > 4 {
			t.Errorf("%d requests before the renewal is allowed", n)
		}
	})
}

// After a restart, the first poll comes within one interval.
func TestRestartedAgentPolls(t *testing.T) {
	inPolledSynctest(t, func(p *Pair) (RenewalInfo, error) { return RenewalInfo{Window: p.Origin.Renewal}, nil }, func(b *harness) {
		b.advance(time.Minute)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		b.restart()
		b.run()
		b.advance(6*time.Hour + time.Minute)
		if n := len(b.ca.pollTimes()); n == 0 || n > 3 {
			t.Errorf("%d polls in six hours", n)
		}
	})
}

// A clock that is set back does not keep the agent from polling.
func TestAgentPollsAfterClockIsSetBack(t *testing.T) {
	inPolledSynctest(t, func(p *Pair) (RenewalInfo, error) { return RenewalInfo{Window: p.Origin.Renewal}, nil }, func(b *harness) {
		b.advance(20 * time.Hour)
		b.clockOffset.Store(int64(-10 * time.Hour))
		before := len(b.ca.pollTimes())
		b.advance(time.Minute)
		if n := len(b.ca.pollTimes()); n != before+1 {
			t.Errorf("%d polls after the clock was set back", n-before)
		}
	})
}
