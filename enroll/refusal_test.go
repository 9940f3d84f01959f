package enroll

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
)

func TestAgentSlowsDownAfterRefusal(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 24 * time.Hour }, func(b *harness) {
		b.run()
		b.ca.revoke(b.agent.Pair().Certificate)
		b.advance(23 * time.Hour)
		calls := len(b.ca.callTimes()) - 1
		if calls < 2 || calls > 14 {
			t.Errorf("%d requests in the last third of a day", calls)
		}
		f := b.status().Failure
		if f == nil || !f.Final || f.Rule != pki.RuleRevoked || f.Hint == "" || !strings.Contains(f.Error, "keyCompromise") {
			t.Errorf("status %+v", f)
		}
		if log := b.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "rule=certificate.revoked") {
			t.Errorf("log: %s", log)
		}
		b.advance(3 * time.Hour)
		err := b.stop()
		if !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "ask an operator for an enrollment token") {
			t.Errorf("Run ended with %v", err)
		}
		b.restart() // like systemd after a failure: the status has the original cause and the current failure
		if err = b.agent.Run(b.Context()); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "keyCompromise") {
			t.Errorf("after a restart Run ended with %v", err)
		}
		if s := b.status(); s.RenewalFailure == nil || s.RenewalFailure.Rule != pki.RuleRevoked || !strings.Contains(s.Failure.Error, "no enrollment token") {
			t.Errorf("status after a restart: %+v", s)
		}
	})
}

func TestAgentEnrollsWithNewTokenAfterRefusal(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		b.run()
		b.ca.revoke(b.agent.Pair().Certificate)
		fresh := b.issueToken("device/1")
		b.advance(50 * time.Minute)
		if err := b.stop(); err != nil || len(b.pairs) != 2 || b.agent.Pair().Origin.Token != fresh.Secret.ID().String() {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// After a restart, an agent immediately retries a request that was refused, because the server may accept it by now.
func TestAgentRetriesRefusedRequestAfterRestart(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 24 * time.Hour }, func(b *harness) {
		b.run()
		b.ca.revoke(b.agent.Pair().Certificate)
		b.advance(18 * time.Hour)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		calls := len(b.ca.callTimes())
		b.restart()
		b.run()
		if got := len(b.ca.callTimes()); got != calls+1 {
			t.Errorf("%d requests after the restart", got-calls)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAgentWithoutTokenReturnsErrNoToken(t *testing.T) {
	inSynctest(t, func(b *harness) { b.config.Token = nil }, func(b *harness) {
		err := b.agent.Run(b.Context())
		if !errors.Is(err, ErrNoToken) || len(b.ca.calls) != 0 {
			t.Errorf("Run: %v", err)
		}
		if err := b.agent.Ensure(b.Context()); !errors.Is(err, ErrNoToken) {
			t.Errorf("Ensure: %v", err)
		}
	})
}

func TestAgentStopsIfTokenIsRefused(t *testing.T) {
	other := newTestCA(t).token(t, "device/1")
	inSynctest(t, func(b *harness) { b.config.Token = func() (Token, error) { return other, nil } }, func(b *harness) {
		err := b.agent.Run(b.Context())
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleToken {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestAgentEnrollsAgainAfterExpiry(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		b.advance(2 * time.Hour)
		err := b.agent.Ensure(b.Context())
		if !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "expired at") || !strings.Contains(err.Error(), "already used") {
			t.Fatalf("with the used token: %v", err)
		}
		b.issueToken("device/1")
		if err := b.agent.Ensure(b.Context()); err != nil || b.agent.Pair().Expired(time.Now()) {
			t.Fatal(err)
		}
	})
}

// The agent discards a response if it does not match the agent's key and identity, or does not chain to the roots.
func TestAgentDiscardsInvalidCredentials(t *testing.T) {
	other := newTestCA(t)
	for name, c := range map[string]struct {
		answer func(*harness, RenewRequest) (Credential, error)
		why    string
	}{
		"another key": {func(b *harness, _ RenewRequest) (Credential, error) {
			return b.ca.pairFor(b, "device/1").Credential, nil
		}, "another key"},
		"another identity": {func(b *harness, r RenewRequest) (Credential, error) {
			return b.ca.renew(b.Context(), b.ca.pairFor(b, "device/2").Certificate, r)
		}, "instead of"},
		"another CA": {func(b *harness, r RenewRequest) (Credential, error) {
			c, err := b.ca.Renew(b.Context(), r)
			c.Roots = other.pairFor(b, "device/1").Roots
			return c, err
		}, "chain"},
	} {
		t.Run(name, func(t *testing.T) {
			inSynctest(t, nil, func(b *harness) {
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

func TestAgentGeneratesNewKeyAfterKeyIsRefused(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		b.ca.before = func() error { return pki.Refuse(pki.RuleKeyType, "use P-384", "the profile allows P-384 only") }
		if err := b.agent.Ensure(b.Context()); err == nil {
			t.Fatal("the refusal is not in the error chain")
		}
		b.ca.before = nil
		b.agent.config.KeyType = pki.P384
		if err := b.agent.Ensure(b.Context()); err != nil || b.agent.Pair().Key.Public().(*ecdsa.PublicKey).Params().BitSize != 384 {
			t.Fatalf("%v, %T", err, b.agent.Pair())
		}
	})
}

// If a renewal is too early, the agent waits as long as the server requested. Until then it neither uses a token nor
// runs the reload command.
func TestAgentWaitsIfRenewalIsTooEarly(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	inSynctest(t, func(b *harness) {
		b.config.Reload = []string{"sh", "-c", `echo reload >> "$0"`, out}
		b.ca.lifetime = 240 * time.Hour
	}, func(b *harness) {
		b.run()
		b.advance(time.Minute)
		b.issueToken("device/1") // the agent must not use it: only a final refusal justifies a new enrollment
		const wait = 35 * time.Hour
		b.ca.set(func() {
			b.ca.before = func() error {
				return &callError{
					server: "ca.example:7443", code: codes.ResourceExhausted, after: wait,
					refusal: pki.Refuse(pki.RuleRenewalTooEarly, "wait", "half of its life is to come"),
				}
			}
		})
		b.advance(177 * time.Hour)
		calls := len(b.ca.callTimes())
		b.ca.set(func() { b.ca.before = nil })
		b.advance(50 * time.Hour)
		if err := b.stop(); err != nil || len(b.pairs) != 2 {
			t.Fatalf("%v, %d certificates", err, len(b.pairs))
		}
		if calls != 2 {
			t.Errorf("%d requests before the renewal succeeded, want the enrollment and one that was too early", calls)
		}
		if got, _ := os.ReadFile(out); string(got) != "reload\nreload\n" {
			t.Errorf("the command wrote %q", got)
		}
	})
}
