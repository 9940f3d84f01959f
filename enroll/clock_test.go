package enroll

import (
	"strings"
	"testing"
	"time"
)

// The agent obtains a certificate while the clock is ahead. When the clock is right, the certificate is not yet valid,
// and the agent renews it once.
func TestAgentRenewsEarlyCertificateAfterClockCorrection(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 10 * time.Hour }, func(b *harness) {
		b.clockOffset.Store(int64(time.Hour))
		b.ca.set(func() { b.ca.backdate = -time.Hour }) // the CA's clock is ahead as well
		b.run()
		b.clockOffset.Store(0)
		b.ca.set(func() { b.ca.backdate = time.Minute })
		b.advance(wakeInterval)
		if p := b.agent.Pair(); len(b.pairs) != 2 || !p.validAt(time.Now()) {
			t.Errorf("%d certificates, want 2; the current one is valid from %s, but it is %s",
				len(b.pairs), p.Certificate.NotBefore, time.Now())
		}
		b.advance(time.Hour)
		if err := b.stop(); err != nil || len(b.pairs) != 2 {
			t.Errorf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// If the agent's clock is set back to a time before the certificate's NotBefore, the agent renews once, and not in a
// loop.
func TestAgentWithClockBehindRenewsOnce(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime, b.ca.backdate = 10*time.Hour, time.Minute }, func(b *harness) {
		b.run()
		b.clockOffset.Store(-int64(time.Hour))
		b.advance(55 * time.Minute)
		if calls := len(b.ca.callTimes()); len(b.pairs) != 2 || calls != 2 {
			t.Errorf("%d certificates of %d calls, want 2", len(b.pairs), calls)
		}
		b.clockOffset.Store(0)
		b.advance(time.Hour)
		if err := b.stop(); err != nil || len(b.pairs) != 2 || !b.agent.Pair().validAt(time.Now()) {
			t.Errorf("after the clock was corrected: %v, %d certificates", err, len(b.pairs))
		}
	})
}

// A server whose clock is an hour ahead issues a certificate that is not yet valid. The agent keeps the current
// certificate until the new one is valid.
func TestAgentKeepsValidCertificateUntilSuccessorIsValid(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 10 * time.Hour }, func(b *harness) {
		b.run()
		b.ca.set(func() { b.ca.backdate = -time.Hour })
		for range 9 * 12 {
			b.advance(5 * time.Minute)
			if p := b.agent.Pair(); !p.validAt(time.Now()) {
				t.Fatalf("the certificate in use is valid from %s, but it is %s", p.Certificate.NotBefore, time.Now())
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
