package enroll

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// The responses to the first requests are lost, also to a request after a restart. The agent repeats its request with new
// challenges and JWTs, and gets the one certificate.
func TestLostResponses(t *testing.T) {
	for name, with := range evidenceCases() {
		t.Run(name, func(t *testing.T) {
			inSynctest(t, func(b *harness) { b.config.Token = nil; with(b, b.ca)(&b.config) }, func(b *harness) {
				lost := &callErrorForTest
				b.ca.after = func() error { return lost }
				for range 2 {
					if err := b.agent.Ensure(b.Context()); !errors.Is(err, lost) {
						t.Fatalf("a lost response: %v", err)
					}
					b.restart()
				}
				b.ca.after = nil
				if err := b.agent.Ensure(b.Context()); err != nil {
					t.Fatal(err)
				}
				if len(b.ca.issued) != 1 || len(b.ca.calls) != 3 {
					t.Errorf("%d certificates for %d requests, want one for three", len(b.ca.issued), len(b.ca.calls))
				}
				b.run()
				b.advance(3 * time.Hour)
				if err := b.stop(); err != nil || len(b.ca.issued) < 4 {
					t.Errorf("%v, %d certificates after three lifetimes", err, len(b.ca.issued))
				}
			})
		})
	}
}

// Evidence of another device is a new request, and so is evidence of another kind.
func TestRequestIsRepeatedOnlyForTheSameSubject(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		claims := `{"sub":"web","jti":"1"}`
		evidence := func() ([]Evidence, error) { return []Evidence{testJWT(t, claims)}, nil }
		b.agent.config.Token, b.agent.config.Evidence = nil, evidence
		b.ca.before = func() error { return temporary{} }
		var keys []pki.KeyHash
		ensure := func(with string) {
			claims = with
			if err := b.agent.Ensure(b.Context()); err == nil {
				t.Fatal("the request succeeded")
			}
			r, err := b.config.Directory.readPending()
			if err != nil {
				t.Fatal(err)
			}
			hash, err := pki.HashKey(r.key.Public())
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, hash)
		}
		ensure(`{"sub":"web","jti":"1"}`)
		ensure(`{"sub":"web","jti":"2"}`)
		ensure(`{"sub":"db","jti":"3"}`)
		b.agent.config.Token = b.config.Token
		ensure(`{"sub":"db","jti":"4"}`)
		if keys[0] != keys[1] || keys[1] == keys[2] || keys[2] == keys[3] {
			t.Errorf("the keys of the requests are %s", keys)
		}
	})
}

// The agent waits for a file that another system writes late, and reads it at each try.
func TestAgentWaitsForItsEvidence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	inSynctest(t, func(b *harness) {
		b.config.Token, b.config.Bootstrap = nil, Bootstrap{sha256.Sum256(b.ca.root.Raw), testDomain, "127.0.0.1:7443"}
		b.config.Evidence = func() ([]Evidence, error) {
			j, err := ReadJWT(path)
			return []Evidence{j}, err
		}
	}, func(b *harness) {
		b.run()
		b.advance(time.Hour)
		f := b.status().Failure
		if f == nil || f.Final || f.Tries < 10 || !strings.Contains(f.Error, "there is no credential yet, and the agent cannot enroll: read the JWT: ") {
			t.Errorf("status %+v", f)
		}
		if len(b.ca.calls) != 0 {
			t.Errorf("%d requests without evidence", len(b.ca.calls))
		}
		if err := os.WriteFile(path, []byte(jwtText(`{"sub":"web"}`)), 0o600); err != nil {
			t.Fatal(err)
		}
		b.advance(maxRetryDelay)
		if err := b.stop(); err != nil || len(b.pairs) != 1 {
			t.Errorf("%v, %d certificates", err, len(b.pairs))
		}
	})
}

// The agent sends no evidence to a server of another CA, which a token could name.
func TestTokenOfAnotherCAIsNotUsed(t *testing.T) {
	other := newTestCA(t).token(t, "device/1")
	inSynctest(t, func(b *harness) {
		evidenceCases()["JWT"](t, b.ca)(&b.config)
		b.config.Token = func() (Token, error) { return other, nil }
	}, func(b *harness) {
		for _, err := range []error{b.agent.Ensure(b.Context()), b.agent.Enroll(b.Context(), other)} {
			if err == nil || !strings.Contains(err.Error(), "the token is for the trust domain") || len(b.ca.calls) != 0 {
				t.Errorf("a token of another CA: %v, %d requests", err, len(b.ca.calls))
			}
		}
		b.config.Token = func() (Token, error) { return b.ca.token(t, "workload/web"), nil }
		b.restart()
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Errorf("a token of the configured CA: %v", err)
		}
	})
}

// A refused renewal is a reason to enroll again if there is a new token, and none if there is only other evidence: the
// agent keeps its credential until it expires.
func TestRefusedRenewalNeedsToken(t *testing.T) {
	inSynctest(t, func(b *harness) { b.config.Token = nil; evidenceCases()["JWT"](t, b.ca)(&b.config) }, func(b *harness) {
		b.run()
		first := b.agent.Pair()
		b.ca.revoke(first.Certificate)
		b.advance(59 * time.Minute)
		if b.agent.Pair() != first || b.status().RenewalFailure == nil {
			t.Errorf("the agent enrolled again after a refused renewal: %+v", b.status())
		}
		b.advance(time.Hour)
		if err := b.stop(); err != nil || b.agent.Pair() == first {
			t.Errorf("the agent did not enroll again after its certificate expired: %v", err)
		}
	})
}

func TestAgentWithoutTokenNeedsFingerprint(t *testing.T) {
	dir := openTestDirectory(t, t.TempDir(), new(testLog).logger())
	c := Config{Directory: dir, Authority: newTestCA(t), Log: dir.log, Evidence: func() ([]Evidence, error) { return nil, nil }}
	if _, err := NewAgent(c); err == nil || !strings.Contains(err.Error(), "fingerprint") {
		t.Errorf("got %v", err)
	}
}
