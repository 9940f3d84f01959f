package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// mustHaveRoots fails the test unless an agent and its directory have these roots, beside the same certificate and key.
func (b *harness) mustHaveRoots(had *Pair, want ...*x509.Certificate) {
	b.Helper()
	p, err := ReadPair(b.config.Directory.path)
	if err != nil {
		b.Fatal(err)
	}
	next := *had
	next.Roots = want
	if !p.sameAs(&next) || !b.agent.Pair().sameAs(&next) || !sameKey(p.Key, had.Key) {
		b.Errorf("%d roots on disk, %d in use, want %d and the same certificate and key", len(p.Roots), len(b.agent.Pair().Roots), len(want))
	}
}

func TestAgentFollowsTrustBundle(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		had, renewAt := b.agent.Pair(), b.agent.renewAt
		pending, err := b.config.Directory.preparePending("certificate "+had.Serial(), b.agent.config.KeyType)
		if err != nil {
			t.Fatal(err)
		}
		root := newRoot(t)
		b.ca.roots = []*x509.Certificate{b.ca.root, root}
		if err := b.agent.followBundle(b.Context(), "01"); err != nil {
			t.Fatal(err)
		}
		b.mustHaveRoots(had, b.ca.root) // the revision is that of the trust bundle in use
		b.advance(time.Minute)
		if err := b.agent.followBundle(b.Context(), "02"); err != nil {
			t.Fatal(err)
		}
		b.mustHaveRoots(had, b.ca.root, root)
		synctest.Wait()
		if len(b.pairs) != 2 || b.agent.renewAt != renewAt {
			t.Errorf("the watcher got %d pairs, and the renewal is at %s, was at %s", len(b.pairs), b.agent.renewAt, renewAt)
		}
		want := had.Origin
		want.BundleRevision = "02"
		p, err := ReadPair(b.config.Directory.path)
		if err != nil || fmt.Sprint(p.Origin) != fmt.Sprint(want) { // times differ in their location
			t.Errorf("origin %+v, want %+v, %v", p.Origin, want, err)
		}
		if r, err := b.config.Directory.readPending(); err != nil || r.id != pending.id {
			t.Errorf("the request in progress is lost: %v", err)
		}
		versions, err := filepath.Glob(filepath.Join(b.config.Directory.path, versionPrefix+"*"))
		if err != nil || len(versions) != 2 {
			t.Errorf("versions %v, %v: want the current and the previous one", versions, err)
		}
		if err := step(b.agent); err != nil {
			t.Fatal(err)
		}
		b.mustHaveRoots(b.agent.Pair(), b.ca.root, root)
	})
}

// An agent keeps the root of its own certificate until it has a certificate under another one.
func TestAgentKeepsRootOfItsCertificate(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		had, second, third := b.agent.Pair(), newRoot(t), newRoot(t)
		b.ca.roots = []*x509.Certificate{second, third}
		if err := b.agent.followBundle(b.Context(), "02"); err != nil {
			t.Fatal(err)
		}
		b.mustHaveRoots(had, second, third, b.ca.root)
		if err := b.agent.followBundle(b.Context(), "02"); err != nil || len(b.agent.Pair().Roots) != 3 {
			t.Errorf("the second time: %v", err)
		}
	})
}

// Without a valid certificate, an agent gets no trust bundle.
func TestTrustBundleNeedsValidCertificate(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.followBundle(b.Context(), "02"); err != nil {
			t.Errorf("without a certificate: %v", err)
		}
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		had := b.agent.Pair()
		b.ca.roots = []*x509.Certificate{b.ca.root, newRoot(t)}
		b.advance(2 * b.ca.lifetime)
		if err := b.agent.followBundle(b.Context(), "02"); err != nil || b.agent.Pair() != had {
			t.Errorf("with an expired certificate: %v", err)
		}
	})
}

// A running agent gets the trust bundle when it starts, and runs the reload command for it.
func TestAgentFollowsTrustBundleAtStart(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	configure := func(b *harness) { b.config.Reload = []string{"sh", "-c", `echo x >> "$0"`, runs} }
	inSynctest(t, configure, func(b *harness) {
		b.run()
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		had, root := b.agent.Pair(), newRoot(t)
		b.ca.roots = []*x509.Certificate{b.ca.root, root}
		for range 2 { // the second start changes nothing
			b.restart()
			b.run()
			if err := b.stop(); err != nil {
				t.Fatal(err)
			}
			b.mustHaveRoots(had, b.ca.root, root)
			if data, err := os.ReadFile(runs); err != nil || string(data) != "x\nx\n" {
				t.Errorf("the command wrote %q, %v: want one run for the certificate and one for the trust bundle", data, err)
			}
		}
		if s := b.status(); s.Reloaded != had.Serial() || s.ReloadedBundle != "02" {
			t.Errorf("status %+v", s)
		}
	})
}

// A running agent gets the trust bundle within hours, without another certificate.
func TestAgentFollowsTrustBundleWhenItPolls(t *testing.T) {
	inSynctest(t, func(b *harness) { b.ca.lifetime = 90 * 24 * time.Hour }, func(b *harness) {
		b.ca.info = func(p *Pair) (RenewalInfo, error) {
			return RenewalInfo{Window: p.Origin.Renewal, BundleRevision: b.ca.bundle().Revision}, nil
		}
		b.run()
		had, root := b.agent.Pair(), newRoot(t)
		b.advance(defaultPollInterval)
		b.ca.set(func() { b.ca.roots = []*x509.Certificate{b.ca.root, root} })
		b.advance(defaultPollInterval)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		b.mustHaveRoots(had, b.ca.root, root)
		if n := len(b.ca.callTimes()); n != 1 {
			t.Errorf("%d certificates, want one", n)
		}
	})
}

// A failed command for a trust bundle runs again.
func TestReloadForTrustBundleIsRetried(t *testing.T) {
	dir := t.TempDir()
	configure := func(b *harness) { b.config.Reload = []string{"test", "!", "-e", filepath.Join(dir, "bad")} }
	inSynctest(t, configure, func(b *harness) {
		b.run()
		if err := errors.Join(b.stop(), os.WriteFile(filepath.Join(dir, "bad"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		b.ca.roots = []*x509.Certificate{b.ca.root, newRoot(t)}
		b.restart()
		b.run()
		if s := b.status(); s.ReloadFailure == nil || s.ReloadedBundle != "01" {
			t.Errorf("status after a failure: %+v", s)
		}
		if err := os.Remove(filepath.Join(dir, "bad")); err != nil {
			t.Fatal(err)
		}
		b.advance(15 * time.Minute)
		if s := b.status(); s.ReloadFailure != nil || s.ReloadedBundle != "02" {
			t.Errorf("status after a success: %+v", s)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSourceLoadsNewTrustBundle(t *testing.T) {
	inSynctest(t, nil, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSource(b.config.Directory.path, b.config.Log)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		b.ca.roots = []*x509.Certificate{b.ca.root, newRoot(t)}
		if err := b.agent.followBundle(b.Context(), "02"); err != nil {
			t.Fatal(err)
		}
		b.advance(2 * sourcePoll)
		if !s.Pair().sameAs(b.agent.Pair()) || len(s.Pair().Roots) != 2 {
			t.Errorf("the source has %d roots", len(s.Pair().Roots))
		}
		cancel()
		<-done
	})
}

// An agent installs no trust bundle of a server that it does not trust, and none that is empty or malformed.
func TestAgentRejectsTrustBundles(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	many := make([][]byte, maxRoots+1)
	for i := range many {
		many[i] = ca.root.Raw
	}
	device := func(c *x509.Certificate) { c.URIs[0].Path = "/device/2" }
	for name, c := range map[string]struct {
		server  *tls.Config
		service testService
		want    string
	}{
		"a server under another root":   {other.config(t, nil), testService{revision: []byte{2}}, "does not chain to a trusted root"},
		"a device as the server":        {ca.config(t, device), testService{revision: []byte{2}}, "this is not the server of fleet.example"},
		"no revision":                   {ca.config(t, nil), testService{}, "has no revision"},
		"no roots":                      {ca.config(t, nil), testService{roots: [][]byte{}, revision: []byte{2}}, "has 0 roots"},
		"too many roots":                {ca.config(t, nil), testService{roots: many, revision: []byte{2}}, "has 17 roots"},
		"a root that is no certificate": {ca.config(t, nil), testService{roots: [][]byte{{0x30, 0}}, revision: []byte{2}}, "does not parse"},
	} {
		t.Run(name, func(t *testing.T) {
			c.service.ca = ca
			dir := openTestDirectory(t, t.TempDir(), new(testLog).logger())
			agent, err := NewAgent(Config{Directory: dir, Authority: newTestClient(t, serve(t, &c.service, c.server)), Log: dir.log})
			if err != nil {
				t.Fatal(err)
			}
			had := ca.pairFor(t, "device/1")
			if err := agent.install(had); err != nil {
				t.Fatal(err)
			}
			if err := agent.followBundle(t.Context(), "02"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
			if p, err := ReadPair(dir.path); err != nil || !p.sameAs(had) || agent.Pair() != had {
				t.Errorf("the credential in use changed: %v", err)
			}
		})
	}
}

// bundleScenario records the changes of an agent that enrolls, and then follows a trust bundle while a renewal is in
// progress. It returns the certificate, and the number of changes before the trust bundle was requested.
func bundleScenario(t *testing.T, root *x509.Certificate) (s *scenario, had *Pair, enrolled int) {
	t.Helper()
	s = &scenario{ca: newTestCA(t), dir: t.TempDir()}
	s.use = evidenceCases()["token"](t, s.ca)
	agent := newTestAgent(t, s.ca, s.use, s.dir, func(c change) error {
		s.changes = append(s.changes, c)
		return apply(c)
	})
	if err := step(agent); err != nil {
		t.Fatal(err)
	}
	had = agent.Pair()
	if _, err := agent.config.Directory.preparePending("certificate "+had.Serial(), agent.config.KeyType); err != nil {
		t.Fatal(err)
	}
	enrolled = len(s.changes)
	s.ca.roots = []*x509.Certificate{s.ca.root, root}
	if err := agent.followBundle(t.Context(), "02"); err != nil {
		t.Fatal(err)
	}
	return s, had, enrolled
}

// TestPowerLossInTrustBundle cuts the power after every change to the disk. A new agent must find the certificate with
// the old or the new trust bundle, and the request in progress.
func TestPowerLossInTrustBundle(t *testing.T) {
	root := newRoot(t)
	s, had, enrolled := bundleScenario(t, root)
	bundles := map[int]int{} // number of results, by the number of roots
	phase := func(n int) string { return fmt.Sprint(n >= enrolled, n == len(s.changes)) }
	s.losePower(t, phase, func(t *testing.T, dir string, n int) error {
		if n < enrolled {
			return nil // TestPowerLoss checks the enrollment
		}
		agent := newTestAgent(t, s.ca.clone(), s.use, dir, skipFlush)
		defer agent.config.Directory.Close()
		p := agent.Pair()
		switch {
		case p == nil || !p.Certificate.Equal(had.Certificate) || !sameKey(p.Key, had.Key):
			return errors.Join(errors.New("the credential is lost"), agent.broken)
		case n == len(s.changes) && len(p.Roots) != 2:
			return errors.New("the new trust bundle is lost")
		}
		bundles[len(p.Roots)]++
		if r, err := agent.config.Directory.readPending(); err != nil || r.by != "certificate "+had.Serial() {
			return fmt.Errorf("the request in progress is lost: %w", err)
		}
		if err := agent.followBundle(t.Context(), "02"); err != nil || len(agent.Pair().Roots) != 2 {
			return fmt.Errorf("following the trust bundle again: %w", err)
		}
		return nil
	})
	if bundles[1] == 0 || bundles[2] == 0 || len(bundles) != 2 {
		t.Errorf("results by the number of roots: %v", bundles)
	}
}

// TestDiskFaultsInTrustBundle makes each change to the disk fail once, with and without its effect. The credential must
// stay complete, and the agent follows the trust bundle with its next try.
func TestDiskFaultsInTrustBundle(t *testing.T) {
	full := errors.New("no space left on device")
	root := newRoot(t)
	s, _, enrolled := bundleScenario(t, root)
	for at := range len(s.changes) - enrolled {
		for _, applied := range []bool{false, true} {
			ca, counting, seen := newTestCA(t), false, 0
			agent := newTestAgent(t, ca, evidenceCases()["token"](t, ca), t.TempDir(), func(c change) error {
				if !counting {
					return skipFlush(c)
				}
				seen++
				if seen-1 != at {
					return skipFlush(c)
				}
				if applied {
					return errors.Join(full, skipFlush(c))
				}
				return full
			})
			if err := step(agent); err != nil {
				t.Fatal(err)
			}
			had := agent.Pair()
			counting, ca.roots = true, []*x509.Certificate{ca.root, root}
			for tries := 0; len(agent.Pair().Roots) != 2; tries++ {
				if err := agent.followBundle(t.Context(), "02"); err != nil && !errors.Is(err, full) || tries > 1 {
					t.Fatalf("change %d fails (applied: %v), try %d: %v", at, applied, tries, err)
				}
				p, err := ReadPair(agent.config.Directory.path)
				if err != nil || !p.Certificate.Equal(had.Certificate) || !sameKey(p.Key, had.Key) {
					t.Fatalf("change %d fails (applied: %v): %v", at, applied, err)
				}
			}
			if seen <= at {
				t.Fatalf("change %d was never made", at)
			}
		}
	}
}

// An agent that recovers accepts a server under any root of its trust bundle, also if that is not the root of its
// expired certificate. It does not accept another one.
func TestRecoveryTrustsEveryRootOfTheBundle(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	server := serve(t, &testService{ca: ca}, ca.config(t, nil))
	expired := other.pairFor(t, "device/1")
	request := enrollRequest(t, ca.token(t, "device/1"))
	request.Bootstrap = Bootstrap{TrustDomain: testDomain}
	request.Expired = expired
	if _, err := newTestClient(t, server).Enroll(t.Context(), request); err == nil || !strings.Contains(err.Error(), "does not chain to a trusted root") {
		t.Errorf("a server under another root: %v", err)
	}
	var err error
	request.Expired, err = expired.withBundle(TrustBundle{Roots: []*x509.Certificate{other.root, ca.root}, Revision: "02"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newTestClient(t, server).Enroll(t.Context(), request); err != nil {
		t.Errorf("a server under the other root of the trust bundle: %v", err)
	}
}
