package enroll

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// harness is an agent with a test CA in a synctest bubble, in which hours pass at once.
type harness struct {
	*testing.T
	ca          *testCA
	config      Config
	agent       *Agent
	token       atomic.Pointer[Token] // returned by Config.Token
	log         *testLog
	pairs       []*Pair
	clockOffset atomic.Int64 // offset of the agent's wall clock in nanoseconds
	stop        func() error // ends Run and returns its error
}

func newHarness(t *testing.T, configure func(*harness)) *harness {
	b := &harness{T: t, ca: newTestCA(t), log: new(testLog)}
	b.issueToken("device/1")
	dir := openTestDirectory(t, t.TempDir(), b.log.logger())
	dir.disk = skipFlush
	b.config = Config{
		Directory: dir, Authority: b.ca, Log: b.log.logger(),
		Token: func() (Token, error) { return *b.token.Load(), nil },
	}
	if configure != nil {
		configure(b)
	}
	b.restart()
	return b
}

// issueToken creates a token, which the agent's configuration then returns.
func (b *harness) issueToken(path string) Token {
	b.Helper()
	token := b.ca.token(b, path)
	b.token.Store(&token)
	return token
}

func (b *harness) restart() {
	b.Helper()
	var err error
	if b.agent, err = NewAgent(b.config); err != nil {
		b.Fatal(err)
	}
	go b.agent.Watch(b.Context(), func(p *Pair) { b.pairs = append(b.pairs, p) })
	b.agent.now = func() time.Time { return time.Now().Add(time.Duration(b.clockOffset.Load())) }
}

// run starts [Agent.Run].
func (b *harness) run() {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- b.agent.Run(ctx) }()
	b.stop = func() error { cancel(); defer synctest.Wait(); return <-done }
	synctest.Wait()
}

// advance lets the time d pass in the bubble.
func (b *harness) advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *harness) status() Status {
	b.Helper()
	s, err := ReadStatus(b.config.Directory.path)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// inSynctest runs body with a new harness in a synctest bubble.
func inSynctest(t *testing.T, configure func(*harness), body func(*harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { body(newHarness(t, configure)) })
}

func TestAgentEnrollsAndRenews(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour, 90 * 24 * time.Hour} {
		for _, backdate := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprintf("%s back-dated %s", life, backdate), func(t *testing.T) {
				inSynctest(t, func(b *harness) { b.ca.lifetime, b.ca.backdate = life, backdate }, func(b *harness) {
					b.run()
					b.advance(life * 3)
					if err := b.stop(); err != nil {
						t.Fatal(err)
					}
					calls := b.ca.callTimes()
					if len(calls) < 4 || len(calls) > 6 {
						t.Fatalf("%d certificates in three lifetimes", len(calls))
					}
					slack := float64(time.Second)/float64(life) + 0.001 // certificates expire at whole seconds
					for i, at := range calls[1:] {
						part := float64(at.Sub(calls[i])) / float64(life)
						if part < renewStart-slack || part > renewEnd+slack {
							t.Errorf("renewal %d came after %.3f of the lifetime", i+1, part)
						}
					}
					if len(b.pairs) != len(calls) || b.pairs[0].Key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(b.pairs[1].Key) {
						t.Errorf("%d pairs for %d requests, or a renewal kept the key", len(b.pairs), len(calls))
					}
					if s := b.status(); s.Failure != nil || s.Serial != b.agent.Pair().Serial() || !s.RenewAt.After(time.Now()) {
						t.Errorf("status %+v", s)
					}
				})
			})
		}
	}
}

// Devices that enroll at the same time spread their renewals evenly over the renewal window from the CA.
func TestRenewalsSpread(t *testing.T) {
	p := newTestCA(t).pairFor(t, "device/1")
	arrival := p.Certificate.NotBefore.Add(time.Minute)
	window := RenewalWindow{arrival.Add(20 * time.Minute), arrival.Add(30 * time.Minute)}
	p.Origin = Origin{Obtained: arrival, Renewal: window}
	var tenths [10]int
	for range 2000 {
		at := int(renewal(p).Sub(window.Start) / time.Minute)
		if at < 0 || at > 9 {
			t.Fatalf("a renewal %d minutes into the window", at)
		}
		tenths[at]++
	}
	if slices.Min(tenths[:]) < 100 {
		t.Errorf("2000 renewals, by tenths of the spread: %v", tenths)
	}
}

// An agent ignores a renewal window in which it would renew at once, never, or too late.
func TestRenewalWindow(t *testing.T) {
	p := newTestCA(t).pairFor(t, "device/1")
	from, until := p.Certificate.NotBefore, p.Certificate.NotAfter
	at := from.Add(10 * time.Minute)
	left := until.Sub(at)
	half, latest := at.Add(left/2), at.Add(left/10*7)
	for name, c := range map[string]struct{ window, want RenewalWindow }{
		"named":                   {RenewalWindow{at.Add(time.Minute), at.Add(2 * time.Minute)}, RenewalWindow{at.Add(time.Minute), at.Add(2 * time.Minute)}},
		"none":                    {RenewalWindow{}, RenewalWindow{half, latest}},
		"over on arrival":         {RenewalWindow{at.Add(-2 * time.Minute), at.Add(-time.Minute)}, RenewalWindow{half, latest}},
		"open on arrival":         {RenewalWindow{at.Add(-time.Minute), at.Add(time.Minute)}, RenewalWindow{half, latest}},
		"ends before it starts":   {RenewalWindow{at.Add(2 * time.Minute), at.Add(time.Minute)}, RenewalWindow{half, latest}},
		"ends with the life":      {RenewalWindow{at.Add(time.Minute), until}, RenewalWindow{half, latest}},
		"starts within a second":  {RenewalWindow{at.Add(time.Millisecond), at.Add(time.Minute)}, RenewalWindow{at.Add(minRenewal), at.Add(time.Minute)}},
		"is over within a second": {RenewalWindow{at.Add(time.Millisecond), at.Add(time.Millisecond)}, RenewalWindow{at.Add(minRenewal), at.Add(minRenewal)}},
	} {
		t.Run(name, func(t *testing.T) {
			p.Origin = Origin{Obtained: at, Renewal: c.window}
			if start, end := p.renewalWindow(); !start.Equal(c.want.Start) || !end.Equal(c.want.End) || !latestRenewal(p).Equal(end) {
				t.Errorf("%s to %s, want %s to %s", start.Sub(at), end.Sub(at), c.want.Start.Sub(at), c.want.End.Sub(at))
			}
		})
	}
}

func TestAgentRestartsWithWhatItHas(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		had := b.agent.Pair()
		b.restart()
		b.run()
		b.advance(time.Minute)
		if err := b.stop(); err != nil || b.agent.Pair().Serial() != had.Serial() || len(b.ca.calls) != 1 {
			t.Fatalf("%v, %d calls", err, len(b.ca.calls))
		}
	})
}

// The CA is unreachable from the first renewal until just before the certificate expires. Then the agent renews.
func TestAgentRetriesUntilRenewed(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour, 30 * 24 * time.Hour} {
		for name, outage := range map[string]error{
			"unreachable": &callErrorForTest, "asks for a year": temporary{after: 365 * 24 * time.Hour}, "unknown": errors.New("no route"),
		} {
			t.Run(life.String()+" "+name, func(t *testing.T) {
				inSynctest(t, func(b *harness) { b.ca.lifetime = life }, func(b *harness) {
					b.run()
					b.ca.set(func() { b.ca.before = func() error { return outage } })
					b.advance(life * 9 / 10)
					tries := len(b.ca.callTimes()) - 1
					if tries < 2 || tries > 4700 { // in 30 days: a try every 2.5 to 5 minutes for eight days
						t.Fatalf("%d tries", tries)
					}
					if f := b.status().Failure; f == nil || f.Final || f.Tries != tries {
						t.Fatalf("status after %d tries: %+v", tries, f)
					}
					b.ca.set(func() { b.ca.before = nil })
					b.advance(life/10 - life/100)
					if err := b.stop(); err != nil || len(b.pairs) != 2 || b.status().Failure != nil {
						t.Fatalf("%v, %d certificates, status %+v", err, len(b.pairs), b.status())
					}
				})
			})
		}
	}
}

var callErrorForTest = callError{server: "ca.example:7443", code: 14, message: "connection refused"}

// temporary is a temporary error that does not come from an RPC.
type temporary struct{ after time.Duration }

func (temporary) Error() string               { return "busy" }
func (temporary) Temporary() bool             { return true }
func (e temporary) RetryAfter() time.Duration { return e.after }

func TestAgentHonorsRetryAfter(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.before = func() error { return temporary{after: 10 * time.Minute} } }, func(b *harness) {
		b.run()
		b.advance(time.Hour)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		calls := b.ca.callTimes()
		for i, at := range calls[1:] {
			if d := at.Sub(calls[i]); d < 10*time.Minute || d > 13*time.Minute {
				t.Errorf("try %d after %s, want 10 to 13 minutes", i+1, d)
			}
		}
		if len(calls) < 4 {
			t.Errorf("%d calls in an hour", len(calls))
		}
	})
}

// A renewal becomes due while the device sleeps: timers stop, but the wall clock continues. The agent renews when the
// device wakes.
func TestAgentRenewsAfterSleep(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 10 * time.Hour }, func(b *harness) {
		b.run()
		b.advance(time.Minute)
		b.clockOffset.Store(int64(8 * time.Hour))
		b.advance(wakeInterval)
		if err := b.stop(); err != nil || len(b.pairs) != 2 {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// If a try fails while the clock is ahead, and the clock is then set back, the next try is not delayed.
func TestRetryAfterClockWasSetBack(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.before = func() error { return temporary{} } }, func(b *harness) {
		b.clockOffset.Store(int64(365 * 24 * time.Hour))
		b.run()
		b.clockOffset.Store(0)
		b.ca.set(func() { b.ca.before = nil })
		b.advance(wakeInterval)
		if err := b.stop(); err != nil || len(b.pairs) != 1 {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// The agent discards a new certificate that has already expired by its own clock. It accepts the certificate if its
// clock is behind.
func TestCertificateExpiredByAgentClockIsDiscarded(t *testing.T) {
	for name, c := range map[string]struct {
		jump time.Duration
		why  string
	}{
		"behind": {-24 * time.Hour, ""}, "ahead": {24 * time.Hour, "set the clock"},
	} {
		t.Run(name, func(t *testing.T) {
			inSynctest(t, nil, func(b *harness) {
				b.clockOffset.Store(int64(c.jump))
				err := b.agent.Ensure(b.Context())
				if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
					t.Errorf("Ensure: %v", err)
				}
			})
		})
	}
}

func TestKeyTypes(t *testing.T) {
	for _, kind := range []pki.KeyType{pki.P256, pki.P384, pki.Ed25519} {
		if err := CheckKeyType(kind); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		inSynctest(t, func(b *harness) { b.config.KeyType = kind; b.config.Lifetime = 2 * time.Hour }, func(b *harness) {
			if err := b.agent.Ensure(b.Context()); err != nil {
				t.Fatal(err)
			}
			p := b.agent.Pair()
			if _, ok := p.Key.(ed25519.PrivateKey); ok != (kind == pki.Ed25519) {
				t.Errorf("%s: the key is a %T", kind, p.Key)
			}
			if left := time.Until(p.Certificate.NotAfter).Round(time.Minute); left != 2*time.Hour {
				t.Errorf("requested 2h, got %s", left)
			}
		})
	}
	for _, text := range []pki.KeyType{"rsa", pki.RSA2048, ""} { // types of keys that devices do not generate
		if err := CheckKeyType(text); err == nil {
			t.Errorf("CheckKeyType accepted %q", text)
		}
	}
}

func TestDamagedCredentialNeedsAToken(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(b.config.Directory.path, currentName, certName), 9); err != nil {
			t.Fatal(err)
		}
		token := b.config.Token
		b.config.Token = nil
		b.restart()
		if err := b.agent.Run(b.Context()); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "does not load") {
			t.Errorf("Run: %v", err)
		}
		b.issueToken("device/1")
		b.config.Token = token
		b.restart()
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestGetCertificateBeforeAndAfterEnrollment(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		a := b.agent
		if _, err := a.GetCertificate(nil); !errors.Is(err, ErrNoCredential) || a.Certificate() != nil || a.Roots() != nil {
			t.Errorf("before: %v", err)
		}
		if err := a.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := a.GetClientCertificate(nil)
		if err != nil || c != a.Certificate() || c.Leaf == nil || len(c.Certificate) != 2 || a.Roots() == nil {
			t.Errorf("after: %v", err)
		}
		shown := a.Pair().TLSWith([]*x509.Certificate{b.ca.issuer, a.Pair().Root()}).Certificate
		if len(shown) != 3 || !slices.Equal(shown[2], b.ca.root.Raw) || len(a.Pair().TLS().Certificate) != 2 {
			t.Errorf("TLSWith has %d certificates, want 3 with the root last", len(shown))
		}
	})
}
