package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// bench is an agent in a bubble of synctest: hours pass in no time.
type bench struct {
	*testing.T
	ca     *testCA
	config Config
	agent  *Agent
	log    *testLog
	pairs  []*Pair
	jumped time.Duration // how far the wall clock is off
	stop   func() error  // ends Run and returns its error
}

func newBench(t *testing.T, configure func(*bench)) *bench {
	b := &bench{T: t, ca: newTestCA(t), log: new(testLog)}
	token := b.ca.token(t, "device/1")
	dir := openTestDirectory(t, t.TempDir(), b.log.logger())
	dir.disk = powered
	b.config = Config{
		Directory: dir, Authority: b.ca, Log: b.log.logger(), OnChange: func(p *Pair) { b.pairs = append(b.pairs, p) },
		Token: func() (Token, error) { return token, nil },
	}
	if configure != nil {
		configure(b)
	}
	b.restart()
	return b
}

func (b *bench) restart() {
	b.Helper()
	var err error
	if b.agent, err = NewAgent(b.config); err != nil {
		b.Fatal(err)
	}
	b.agent.now = func() time.Time { return time.Now().Add(b.jumped) }
}

// run starts the agent's loop.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- b.agent.Run(ctx) }()
	b.stop = func() error { cancel(); return <-done }
	synctest.Wait()
}

// pass lets time go by.
func (b *bench) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) status() Status {
	b.Helper()
	s, err := ReadStatus(b.config.Directory.path)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func inBubble(t *testing.T, configure func(*bench), body func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { body(newBench(t, configure)) })
}

func TestAgentEnrollsAndRenews(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour, 90 * 24 * time.Hour} {
		for _, backdate := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprintf("%s back-dated %s", life, backdate), func(t *testing.T) {
				inBubble(t, func(b *bench) { b.ca.lifetime, b.ca.backdate = life, backdate }, func(b *bench) {
					b.run()
					b.pass(life * 3)
					if err := b.stop(); err != nil {
						t.Fatal(err)
					}
					calls := b.ca.callTimes()
					if len(calls) < 4 || len(calls) > 6 {
						t.Fatalf("%d certificates in three lifetimes", len(calls))
					}
					slack := float64(time.Second)/float64(life) + 0.001 // certificates end at whole seconds
					for i, at := range calls[1:] {
						part := float64(at.Sub(calls[i])) / float64(life)
						if part < renewFrom-slack || part > renewFrom+renewSpread+slack {
							t.Errorf("renewal %d came after %.3f of the lifetime", i+1, part)
						}
					}
					if len(b.pairs) != len(calls) || b.pairs[0].Key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(b.pairs[1].Key) {
						t.Errorf("%d pairs; a renewal kept the key", len(b.pairs))
					}
					if s := b.status(); s.Failure != nil || s.Serial != b.agent.Pair().Serial() || !s.RenewAt.After(time.Now()) {
						t.Errorf("status %+v", s)
					}
				})
			})
		}
	}
}

// A fleet that was enrolled in one instant renews over an eighth of the lifetime, evenly.
func TestRenewalsSpread(t *testing.T) {
	p := newTestCA(t).pairFor(t, "device/1")
	start, end := p.span()
	var tenths [10]int
	for range 2000 {
		part := float64(renewal(p).Sub(start)) / float64(end.Sub(start))
		at := int((part - renewFrom) / renewSpread * 10)
		if at < 0 || at > 9 {
			t.Fatalf("a renewal at %.4f of the lifetime", part)
		}
		tenths[at]++
	}
	if slices.Min(tenths[:]) < 100 {
		t.Errorf("2000 renewals fall into %v", tenths)
	}
}

func TestAgentRestartsWithWhatItHas(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		had := b.agent.Pair()
		b.restart()
		b.run()
		b.pass(time.Minute)
		if err := b.stop(); err != nil || b.agent.Pair().Serial() != had.Serial() || len(b.ca.calls) != 1 {
			t.Fatalf("%v, %d calls", err, len(b.ca.calls))
		}
	})
}

// The CA is away from the first renewal on, until just before the certificate ends.
func TestAgentNeverGivesUp(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour, 30 * 24 * time.Hour} {
		for name, outage := range map[string]error{
			"unreachable": &callErrorForTest, "asks for a year": temporary{after: 365 * 24 * time.Hour}, "unknown": errors.New("no route"),
		} {
			t.Run(life.String()+" "+name, func(t *testing.T) {
				inBubble(t, func(b *bench) { b.ca.lifetime = life }, func(b *bench) {
					b.run()
					b.ca.set(func() { b.ca.before = func() error { return outage } })
					b.pass(life * 9 / 10)
					tries := len(b.ca.callTimes()) - 1
					if tries < 2 || tries > 1300 { // a try every 7 to 15 minutes for eight days
						t.Fatalf("%d tries", tries)
					}
					if f := b.status().Failure; f == nil || f.Final || f.Tries != tries {
						t.Fatalf("status after %d tries: %+v", tries, f)
					}
					b.ca.set(func() { b.ca.before = nil })
					b.pass(life/10 - life/100)
					if err := b.stop(); err != nil || len(b.pairs) != 2 || b.status().Failure != nil {
						t.Fatalf("%v, %d certificates, status %+v", err, len(b.pairs), b.status())
					}
				})
			})
		}
	}
}

var callErrorForTest = callError{server: "ca.example:7443", code: 14, message: "connection refused"}

// temporary is an error of another package than this.
type temporary struct{ after time.Duration }

func (temporary) Error() string               { return "busy" }
func (temporary) Temporary() bool             { return true }
func (e temporary) RetryAfter() time.Duration { return e.after }

func TestAgentHonoursRetryAfter(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.before = func() error { return temporary{after: 10 * time.Minute} } }, func(b *bench) {
		b.run()
		b.pass(time.Hour)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		calls := b.ca.callTimes()
		for i, at := range calls[1:] {
			if d := at.Sub(calls[i]); d < 10*time.Minute || d > 13*time.Minute {
				t.Errorf("try %d came after %s", i+1, d)
			}
		}
		if len(calls) < 4 {
			t.Errorf("%d calls in an hour", len(calls))
		}
	})
}

func TestAgentReportsRefusalAndStopsHammering(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.lifetime = 24 * time.Hour }, func(b *bench) {
		b.run()
		b.ca.revoke(b.agent.Pair().Certificate)
		b.pass(23 * time.Hour)
		calls := len(b.ca.callTimes()) - 1
		if calls < 2 || calls > 14 {
			t.Errorf("%d calls in the last third of a day", calls)
		}
		f := b.status().Failure
		if f == nil || !f.Final || f.Rule != pki.RuleRevoked || f.Fix == "" || !strings.Contains(f.Error, "keyCompromise") {
			t.Errorf("status %+v", f)
		}
		if log := b.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "rule=certificate.revoked") {
			t.Errorf("log: %s", log)
		}
		b.pass(3 * time.Hour)
		err := b.stop()
		if !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "ask an operator for an enrollment token") {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func TestAgentTakesANewTokenAfterRefusal(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.run()
		b.ca.revoke(b.agent.Pair().Certificate)
		fresh := b.ca.token(t, "device/1")
		b.agent.config.Token = func() (Token, error) { return fresh, nil }
		b.pass(50 * time.Minute)
		if err := b.stop(); err != nil || len(b.pairs) != 2 || b.agent.Pair().Origin.Token != fresh.Secret.ID().String() {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// A refusal that was reported before a restart is looked into at once after it.
func TestAgentAsksAgainAfterRestart(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.lifetime = 24 * time.Hour }, func(b *bench) {
		b.run()
		b.ca.revoke(b.agent.Pair().Certificate)
		b.pass(18 * time.Hour)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		calls := len(b.ca.callTimes())
		b.restart()
		b.run()
		if got := len(b.ca.callTimes()); got != calls+1 {
			t.Errorf("%d calls after the restart", got-calls)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAgentWithoutTokenSaysSo(t *testing.T) {
	inBubble(t, func(b *bench) { b.config.Token = nil }, func(b *bench) {
		err := b.agent.Run(b.Context())
		if !errors.Is(err, ErrNoToken) || len(b.ca.calls) != 0 {
			t.Errorf("Run: %v", err)
		}
		if err := b.agent.Ensure(b.Context()); !errors.Is(err, ErrNoToken) {
			t.Errorf("Ensure: %v", err)
		}
	})
}

func TestAgentReturnsRefusedToken(t *testing.T) {
	other := newTestCA(t).token(t, "device/1")
	inBubble(t, func(b *bench) { b.config.Token = func() (Token, error) { return other, nil } }, func(b *bench) {
		err := b.agent.Run(b.Context())
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleToken {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestAgentReEnrollsAfterExpiry(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		b.pass(2 * time.Hour)
		err := b.agent.Ensure(b.Context())
		if !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "ended at") || !strings.Contains(err.Error(), "spent") {
			t.Fatalf("with the spent token: %v", err)
		}
		fresh := b.ca.token(t, "device/1")
		b.agent.config.Token = func() (Token, error) { return fresh, nil }
		if err := b.agent.Ensure(b.Context()); err != nil || b.agent.Pair().Expired(time.Now()) {
			t.Fatal(err)
		}
	})
}

// The device sleeps past the moment: timers stand still, and the wall clock is elsewhere when it wakes.
func TestAgentRenewsOnWake(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.lifetime = 10 * time.Hour }, func(b *bench) {
		b.run()
		b.pass(time.Minute)
		b.jumped = 8 * time.Hour
		b.pass(glance)
		if err := b.stop(); err != nil || len(b.pairs) != 2 {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// A clock that was wrong while a try failed does not put the next one off for as long as it was wrong.
func TestAgentSurvivesClockSetBack(t *testing.T) {
	inBubble(t, func(b *bench) { b.ca.before = func() error { return temporary{} } }, func(b *bench) {
		b.jumped = 365 * 24 * time.Hour
		b.run()
		b.jumped = 0
		b.ca.set(func() { b.ca.before = nil })
		b.pass(glance)
		if err := b.stop(); err != nil || len(b.pairs) != 1 {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// A clock that is behind makes no certificate useless; one that is ahead of its end does.
func TestAgentJudgesByItsClock(t *testing.T) {
	for name, c := range map[string]struct {
		jump time.Duration
		why  string
	}{
		"behind": {-24 * time.Hour, ""}, "ahead": {24 * time.Hour, "set the clock"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b *bench) {
				b.jumped = c.jump
				err := b.agent.Ensure(b.Context())
				if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
					t.Errorf("Ensure: %v", err)
				}
			})
		})
	}
}

// What the CA answers with is not put in use unless it is the agent's, for the same identity, and chains.
func TestAgentRefusesUselessCredentials(t *testing.T) {
	other := newTestCA(t)
	for name, c := range map[string]struct {
		answer func(*bench, RenewRequest) (Credential, error)
		why    string
	}{
		"another key": {func(b *bench, _ RenewRequest) (Credential, error) { return b.ca.pairFor(b, "device/1").Credential, nil }, "another key"},
		"another identity": {func(b *bench, r RenewRequest) (Credential, error) {
			return b.ca.renew(b.Context(), b.ca.pairFor(b, "device/2").Certificate, r)
		}, "instead of"},
		"another CA": {func(b *bench, r RenewRequest) (Credential, error) {
			c, err := b.ca.Renew(b.Context(), r)
			c.Roots = other.pairFor(b, "device/1").Roots
			return c, err
		}, "chain"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b *bench) {
				if err := b.agent.Ensure(b.Context()); err != nil {
					t.Fatal(err)
				}
				had := b.agent.Pair()
				b.agent.config.Authority = renewer{b.ca, func(r RenewRequest) (Credential, error) { return c.answer(b, r) }}
				err := step(b.agent)
				if err == nil || !strings.Contains(err.Error(), c.why) {
					t.Errorf("renewal: %v", err)
				}
				if p, err := ReadPair(b.config.Directory.path); err != nil || p.Serial() != had.Serial() || b.agent.Pair() != had {
					t.Errorf("the credential in use changed: %v", err)
				}
			})
		})
	}
}

type renewer struct {
	Authority
	renew func(RenewRequest) (Credential, error)
}

func (r renewer) Renew(_ context.Context, q RenewRequest) (Credential, error) { return r.renew(q) }

func TestAgentDrawsANewKeyWhenItsKeyIsRefused(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		b.ca.before = func() error { return pki.Refuse(pki.RuleKeyType, "use P-384", "the profile allows P-384 only") }
		if err := b.agent.Ensure(b.Context()); err == nil {
			t.Fatal("the refusal got lost")
		}
		b.ca.before = nil
		b.agent.config.KeyType = P384
		if err := b.agent.Ensure(b.Context()); err != nil || b.agent.Pair().Key.Public().(*ecdsa.PublicKey).Params().BitSize != 384 {
			t.Fatalf("%v, %T", err, b.agent.Pair())
		}
	})
}

func TestKeyTypes(t *testing.T) {
	for _, kind := range []KeyType{P256, P384, Ed25519} {
		if got, err := ParseKeyType(kind.String()); err != nil || got != kind {
			t.Errorf("%s reads back as %s, %v", kind, got, err)
		}
		inBubble(t, func(b *bench) { b.config.KeyType = kind; b.config.Lifetime = 2 * time.Hour }, func(b *bench) {
			if err := b.agent.Ensure(b.Context()); err != nil {
				t.Fatal(err)
			}
			p := b.agent.Pair()
			if _, ok := p.Key.(ed25519.PrivateKey); ok != (kind == Ed25519) {
				t.Errorf("%s: the key is a %T", kind, p.Key)
			}
			if left := time.Until(p.Certificate.NotAfter).Round(time.Minute); left != 2*time.Hour {
				t.Errorf("asked for 2h, got %s", left)
			}
		})
	}
	if _, err := ParseKeyType("rsa"); err == nil {
		t.Error("rsa passed")
	}
}

func TestReloadCommand(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	cases := map[string]struct {
		argv []string
		log  string
		runs string
	}{
		"succeeds":  {[]string{"sh", "-c", `echo "$1" >> "$0"`, out, "a b"}, "", "a b\n"},
		"fails":     {[]string{"sh", "-c", `echo x >> "$0"; echo broken >&2; exit 3`, out}, "broken", "x\nx\n"},
		"not there": {[]string{"/no/such/command"}, "no such file", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(out)
			inBubble(t, func(b *bench) { b.config.Reload = c.argv }, func(b *bench) {
				if err := b.agent.Ensure(b.Context()); err != nil {
					t.Fatal(err)
				}
				b.restart() // a command that did not succeed runs again, and one that did does not
				b.run()
				if err := b.stop(); err != nil || b.agent.Pair() == nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(out); string(got) != c.runs {
					t.Errorf("the command wrote %q", got)
				}
				if log := b.log.String(); !strings.Contains(log, c.log) || strings.Contains(log, "reload") != (c.log != "") {
					t.Errorf("log: %s", log)
				}
			})
		})
	}
}

// A reload command that hangs is ended when the next renewal is due.
func TestReloadCommandHangs(t *testing.T) {
	b := newBench(t, func(b *bench) { b.ca.lifetime = 3 * time.Second; b.config.Reload = []string{"sleep", "600"} })
	if err := b.agent.Ensure(t.Context()); err != nil || b.agent.Pair() == nil {
		t.Fatal(err)
	}
	if log := b.log.String(); !strings.Contains(log, "deadline") {
		t.Errorf("log: %s", log)
	}
}

func TestDamagedCredentialNeedsAToken(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(b.config.Directory.path, currentName, certName), 9); err != nil {
			t.Fatal(err)
		}
		b.config.Token = nil
		b.restart()
		if err := b.agent.Run(b.Context()); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "does not load") {
			t.Errorf("Run: %v", err)
		}
		fresh := b.ca.token(t, "device/1")
		b.config.Token = func() (Token, error) { return fresh, nil }
		b.restart()
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestGettersBeforeAndAfter(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
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
	})
}
