package enroll

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// scenario records the disk writes of a run that the tests interrupt. In the run an agent enrolls and then renews once.
type scenario struct {
	ca      *testCA
	use     func(*Config) // sets the evidence of the agent
	changes []change      // all changes to the disk, in order; their paths are below dir
	dir     string
	// For the enrollment and the renewal: the number of changes before the request to the CA, and before the agent
	// returned.
	requestedAt, doneAt [2]int
	// The state of the CA before each request, and at the end.
	caStates [3]*testCA
}

// recordScenario runs the agent and records its changes.
func recordScenario(t *testing.T, with func(testing.TB, *testCA) func(*Config)) *scenario {
	t.Helper()
	s := &scenario{ca: newTestCA(t), dir: t.TempDir()}
	s.use = with(t, s.ca)
	agent := newTestAgent(t, s.ca, s.use, s.dir, func(c change) error {
		s.changes = append(s.changes, c)
		return apply(c)
	})
	for i := range 2 {
		s.caStates[i] = s.ca.clone()
		requested := 0
		s.ca.before = func() error { requested = len(s.changes); return nil }
		if err := step(agent); err != nil {
			t.Fatal(err)
		}
		s.requestedAt[i], s.doneAt[i] = requested, len(s.changes)
	}
	s.ca.before = nil
	s.caStates[2] = s.ca.clone()
	return s
}

// step runs one iteration of the agent's loop.
func step(a *Agent) error {
	return a.recordResult(context.Background(), a.obtain(context.Background()))
}

// evidenceCases returns the evidence that agents in the tests enroll with: functions that configure an agent of a CA.
func evidenceCases() map[string]func(testing.TB, *testCA) func(*Config) {
	withToken := func(t testing.TB, ca *testCA) func(*Config) {
		token := ca.token(t, "device/1")
		return func(c *Config) { c.Token = func() (Token, error) { return token, nil } }
	}
	bootstrap := func(ca *testCA) Bootstrap { return Bootstrap{sha256.Sum256(ca.root.Raw), testDomain, "127.0.0.1:7443"} }
	newJWT := func(t testing.TB) Evidence { // a token with another ID, like those that an issuer writes over old ones
		return testJWT(t, fmt.Sprintf(`{"iss":"cluster","sub":"web","jti":%q}`, rand.Text()))
	}
	camera := func(t testing.TB) Evidence {
		e, err := FactoryCertificate(factoryPair(t, testKey(t)))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	return map[string]func(testing.TB, *testCA) func(*Config){
		"token": withToken,
		"JWT": func(t testing.TB, ca *testCA) func(*Config) {
			return func(c *Config) {
				c.Bootstrap, c.Evidence = bootstrap(ca), func() ([]Evidence, error) { return []Evidence{newJWT(t)}, nil }
			}
		},
		"factory certificate and JWT": func(t testing.TB, ca *testCA) func(*Config) {
			device := camera(t)
			return func(c *Config) {
				c.Bootstrap, c.Evidence = bootstrap(ca), func() ([]Evidence, error) { return []Evidence{device, newJWT(t)}, nil }
			}
		},
		"token and factory certificate": func(t testing.TB, ca *testCA) func(*Config) {
			device, use := camera(t), withToken(t, ca)
			return func(c *Config) {
				use(c)
				c.Evidence = func() ([]Evidence, error) { return []Evidence{device}, nil }
			}
		},
	}
}

func newTestAgent(t testing.TB, ca Authority, use func(*Config), dir string, on disk) *Agent {
	t.Helper()
	d, err := OpenDirectory(dir, new(testLog).logger())
	if err != nil {
		t.Fatal(err)
	}
	d.disk = on
	t.Cleanup(func() { _ = d.Close() })
	config := Config{Directory: d, Authority: ca, Log: d.log}
	use(&config)
	a, err := NewAgent(config)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// durable says which parts of a change survive a power failure: the directory entry, and the content of the file.
type durable struct{ entry, content bool }

// unflushed returns functions that lose those parts of the first n changes that no flush has made durable yet.
func (s *scenario) unflushed(n int) (open []func([]durable)) {
	flushed := func(path string, after int) bool {
		for _, c := range s.changes[after:n] {
			if c.kind == flush && c.path == path {
				return true
			}
		}
		return false
	}
	for i, c := range s.changes[:n] {
		if c.kind == flush {
			continue
		}
		if !flushed(filepath.Dir(c.path), i) {
			open = append(open, func(l []durable) { l[i].entry = false })
		}
		if c.kind == create && !flushed(c.path, i) {
			open = append(open, func(l []durable) { l[i].content = false })
		}
	}
	return open
}

// replay applies to dir the surviving parts of the changes, as in lasts.
func (s *scenario) replay(t *testing.T, dir string, lasts []durable) {
	t.Helper()
	at := func(path string) string { return strings.Replace(path, s.dir, dir, 1) }
	for i, l := range lasts {
		c := s.changes[i]
		if !l.entry || c.kind == flush {
			continue
		}
		c.path = at(c.path)
		if c.kind == move {
			c.to = at(c.to)
		}
		if !l.content {
			c.data = c.data[:len(c.data)/2]
		}
		_ = apply(c) // fails if the change depends on an earlier one that was lost
	}
}

// TestPowerLoss cuts the power after every change to the disk. For each cut, it loses every combination of the changes
// that were not yet flushed, and then starts a new agent. If the agent had a credential, the new agent must find that
// one or a later one, and it must be complete. The CA, in its state at the time of the cut, must never refuse the
// agent's request.
func TestPowerLoss(t *testing.T) {
	for name, with := range evidenceCases() {
		t.Run(name, func(t *testing.T) {
			s := recordScenario(t, with)
			cuts, results := s.losePower(t, func(n int) string {
				return fmt.Sprint(n >= s.requestedAt[0], n >= s.doneAt[0], n >= s.requestedAt[1], n >= s.doneAt[1])
			}, s.resume)
			if cuts < 400 || results < 50 {
				t.Errorf("only %d power cuts with %d results, want at least 400 and 50", cuts, results)
			}
		})
	}
}

// losePower cuts the power after each change, and calls resume with each directory that can remain. phase says what the
// agent had done after a number of changes. losePower returns the number of cuts, and of different results.
func (s *scenario) losePower(
	t *testing.T, phase func(n int) string, resume func(t *testing.T, dir string, n int) error,
) (cuts, results int) {
	t.Helper()
	base := t.TempDir()
	seen := map[string]bool{} // tested states, because many cuts leave the same state
	for n := range len(s.changes) + 1 {
		open := s.unflushed(n)
		if len(open) > 10 {
			t.Fatalf("%d changes are not flushed after %d", len(open), n)
		}
		for lost := range 1 << len(open) {
			lasts := make([]durable, n)
			for i := range lasts {
				lasts[i] = durable{true, true}
			}
			for i, lose := range open {
				if lost&(1<<i) != 0 {
					lose(lasts)
				}
			}
			cuts++
			dir := filepath.Join(base, fmt.Sprint(cuts))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			s.replay(t, dir, lasts)
			state := phase(n) + tree(t, dir)
			if seen[state] {
				continue
			}
			seen[state] = true
			if err := resume(t, dir, n); err != nil {
				t.Fatalf("power lost after change %d of %d, losing %b of %d unflushed: %v",
					n, len(s.changes), lost, len(open), err)
			}
		}
	}
	t.Logf("%d changes, %d power cuts, %d different results", len(s.changes), cuts, len(seen))
	return cuts, len(seen)
}

// tree returns the paths and contents of all files in a directory as text.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		content := ""
		switch {
		case e.Type() == fs.ModeSymlink:
			content, err = os.Readlink(path)
		case e.Type().IsRegular():
			var data []byte
			data, err = os.ReadFile(path)
			content = string(data)
		}
		fmt.Fprintf(&b, "%s %q\n", strings.TrimPrefix(path, dir), content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// skipFlush is a disk that skips flushes, which are slow and only matter if the power fails.
func skipFlush(c change) error {
	if c.kind == flush {
		return nil
	}
	return apply(c)
}

// resume starts an agent on the directory that remains after n changes, and checks its credential and its next request.
func (s *scenario) resume(t *testing.T, dir string, n int) error {
	ca := s.caStates[0]
	for i := range 2 {
		if n >= s.requestedAt[i] {
			ca = s.caStates[i+1]
		}
	}
	agent := newTestAgent(t, ca.clone(), s.use, dir, skipFlush)
	defer agent.config.Directory.Close()
	if agent.broken != nil {
		return agent.broken
	}
	switch p := agent.Pair(); {
	case p == nil && n >= s.doneAt[0]:
		return errors.New("the first credential is lost")
	case p != nil && n >= s.doneAt[1] && p.Serial() != s.pair(t).Serial():
		return errors.New("the second credential is lost")
	}
	if err := step(agent); err != nil {
		return err
	}
	p, err := ReadPair(dir)
	if err == nil && p.Serial() != agent.Pair().Serial() {
		err = errors.New("the pair on disk is not the agent's")
	}
	return err
}

// pair returns the credential at the end of the recorded run.
func (s *scenario) pair(t *testing.T) *Pair {
	t.Helper()
	p, err := ReadPair(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDiskFaults makes each change to the disk fail once, both with and without its effect. The agent then retries. The
// pair in use must stay complete, and the CA must never refuse a request.
func TestDiskFaults(t *testing.T) {
	for name, with := range evidenceCases() {
		t.Run(name, func(t *testing.T) { failDisk(t, with) })
	}
}

func failDisk(t *testing.T, with func(testing.TB, *testCA) func(*Config)) {
	t.Helper()
	full := errors.New("no space left on device")
	changes := len(recordScenario(t, with).changes)
	for at := range changes {
		for _, applied := range []bool{false, true} {
			ca := newTestCA(t)
			seen, failed, dir := 0, false, t.TempDir()
			agent := newTestAgent(t, ca, with(t, ca), dir, func(c change) error {
				seen++
				if seen-1 != at {
					return skipFlush(c)
				}
				failed = true
				if applied {
					return errors.Join(full, skipFlush(c))
				}
				return full
			})
			for tries := 0; agent.Pair() == nil || len(ca.issued) < 2 || seen <= at; tries++ {
				had := agent.Pair()
				err := step(agent)
				if err != nil && !errors.Is(err, full) || tries > 3 {
					t.Fatalf("change %d fails (applied: %v), try %d: %v", at, applied, tries, err)
				}
				p, loadErr := ReadPair(dir)
				if had != nil && loadErr != nil || loadErr != nil && !errors.Is(loadErr, ErrNoCredential) {
					t.Fatalf("change %d fails (applied: %v): %v", at, applied, loadErr)
				}
				if err == nil && p.Serial() != agent.Pair().Serial() {
					t.Fatalf("change %d fails (applied: %v): the pair on disk is not the agent's", at, applied)
				}
			}
			if !failed {
				t.Fatalf("change %d was never made", at)
			}
		}
	}
}
