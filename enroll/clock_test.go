package enroll

import (
	"strings"
	"testing"
	"time"
)

// What was obtained while the clock was ahead is of no use once the clock is right, so it is renewed then, once.
func TestAgentRenewsWhatItsClockMadeEarly(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.lifetime = 10 * time.Hour }, func(b *bench) {
		b.jumped.Store(int64(time.Hour))
		b.ca.set(func() { b.ca.backdate = -time.Hour }) // of one machine with the agent
		b.run()
		b.jumped.Store(0)
		b.ca.set(func() { b.ca.backdate = time.Minute })
		b.pass(glance)
		if p := b.agent.Pair(); len(b.pairs) != 2 || !p.validAt(time.Now()) {
			t.Errorf("%d certificates, and the one in use is valid from %s, not at %s", len(b.pairs), p.Certificate.NotBefore, time.Now())
		}
		b.pass(time.Hour)
		if err := b.stop(); err != nil || len(b.pairs) != 2 {
			t.Errorf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// Where the agent's clock is set back below the certificate's beginning, it asks once and not for ever.
func TestAgentBehindDoesNotSpin(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.lifetime, b.ca.backdate = 10*time.Hour, time.Minute }, func(b *bench) {
		b.run()
		b.jumped.Store(-int64(time.Hour))
		b.pass(55 * time.Minute)
		if calls := len(b.ca.callTimes()); len(b.pairs) != 2 || calls != 2 {
			t.Errorf("%d certificates of %d calls, want 2", len(b.pairs), calls)
		}
		b.jumped.Store(0)
		b.pass(time.Hour)
		if err := b.stop(); err != nil || len(b.pairs) != 2 || !b.agent.Pair().validAt(time.Now()) {
			t.Errorf("with the clock right again: %v, %d certificates", err, len(b.pairs))
		}
	})
}

// A server that is an hour ahead renews with what is not valid yet. What works stays in use until that is.
func TestAgentKeepsWhatIsValid(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.lifetime = 10 * time.Hour }, func(b *bench) {
		b.run()
		b.ca.set(func() { b.ca.backdate = -time.Hour })
		for range 9 * 12 {
			b.pass(5 * time.Minute)
			if p := b.agent.Pair(); !p.validAt(time.Now()) {
				t.Fatalf("in use is what is valid from %s on, at %s", p.Certificate.NotBefore, time.Now())
			}
		}
		b.ca.set(func() { b.ca.backdate = 0 })
		if err := b.stop(); err != nil || len(b.pairs) != 2 {
			t.Errorf("%v, %d certificates, want 2", err, len(b.pairs))
		}
		if calls := len(b.ca.callTimes()); calls < 3 || calls > 40 {
			t.Errorf("%d calls for two certificates", calls)
		}
		if !strings.Contains(b.log.String(), "check this machine's clock, then the server's") {
			t.Error("the log does not say that a clock is wrong")
		}
	})
}
