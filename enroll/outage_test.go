package enroll

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"
)

// A server is unreachable for hours. All agents of its fleet renew within minutes of its return, and not all at once.
func TestAgentRenewsSoonAfterALongOutage(t *testing.T) {
	var after []time.Duration
	for range 20 {
		inSynctest(t, func(b *harness) { b.ca.lifetime = 24 * time.Hour }, func(b *harness) {
			b.run()
			b.ca.set(func() { b.ca.before = func() error { return &callErrorForTest } })
			b.advance(22 * time.Hour)
			b.ca.set(func() { b.ca.before = nil })
			back := time.Now()
			b.advance(maxRetryDelay)
			if err := b.stop(); err != nil || len(b.pairs) != 2 {
				b.Fatalf("%s after the outage: %v, %d certificates, want 2", maxRetryDelay, err, len(b.pairs))
			}
			calls := b.ca.callTimes()
			after = append(after, calls[len(calls)-1].Sub(back))
		})
	}
	if slices.Max(after)-slices.Min(after) < time.Minute {
		t.Errorf("the renewals of 20 agents came %s after the outage", after)
	}
}

// Devices start at the same moment, after a power cut in which their renewals were due. The less time a certificate has
// left, the sooner its renewal comes.
func TestAgentsSpreadOverdueRenewalsAfterAStart(t *testing.T) {
	for left, latest := range map[time.Duration]time.Duration{
		6 * time.Hour: maxStartDelay, 10 * time.Minute: 30 * time.Second, 10 * time.Second: 500 * time.Millisecond,
	} {
		t.Run(left.String(), func(t *testing.T) {
			var after []time.Duration
			for range 20 {
				inSynctest(t, func(b *harness) { b.ca.lifetime = 24 * time.Hour }, func(b *harness) {
					if err := b.agent.Ensure(b.Context()); err != nil {
						b.Fatal(err)
					}
					b.advance(time.Until(b.agent.Pair().Certificate.NotAfter.Add(-left)))
					b.restart()
					begin := time.Now()
					b.run()
					if s := b.status(); s.RenewAt.After(begin.Add(latest)) {
						b.Errorf("the status says %s after the start", s.RenewAt.Sub(begin))
					}
					b.advance(latest)
					if err := b.stop(); err != nil || b.status().Failure != nil || !b.agent.Pair().validAt(begin.Add(left+time.Minute)) {
						b.Fatalf("%s after the start: %v, status %+v", latest, err, b.status())
					}
					calls := b.ca.callTimes()
					after = append(after, calls[len(calls)-1].Sub(begin))
				})
			}
			if slices.Max(after)-slices.Min(after) < latest/5 {
				t.Errorf("the renewals of 20 agents came %s after the start", after)
			}
		})
	}
}

// The delay at a start has the order in which certificates expire, but for its random part.
func TestStartDelayHasTheOrderOfExpiry(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	delays := func(left time.Duration) (all []time.Duration) {
		p := &Pair{Credential: Credential{Certificate: &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(24 * time.Hour)}}}
		for range 1000 {
			all = append(all, startDelay(p, p.Certificate.NotAfter.Add(-left)))
		}
		return all
	}
	const random = maxStartDelay / 2
	var before time.Duration
	for left := 20 * time.Minute; left <= 12*time.Hour; left += 20 * time.Minute {
		all := delays(left)
		first, last := slices.Min(all), slices.Max(all)
		if first < before || last-first > random || last > maxStartDelay {
			t.Errorf("with %s left, the delays are %s to %s, want %s or more", left, first, last, before)
		}
		before = time.Duration(float64(maxStartDelay/2) * float64(left) / float64(12*time.Hour))
	}
}

// A program that runs briefly renews at once, because its next run may be much later.
func TestRefreshIsNotDelayed(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 24 * time.Hour }, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.advance(20 * time.Hour)
		b.restart()
		if err := b.agent.Refresh(b.Context()); err != nil || len(b.ca.callTimes()) != 2 {
			b.Errorf("Refresh: %v, %d calls, want 2", err, len(b.ca.callTimes()))
		}
	})
}
