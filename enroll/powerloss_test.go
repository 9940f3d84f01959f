package enroll

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The story that every test here breaks off: an agent enrolls, then renews once.
type story struct {
	ca      *testCA
	token   Token
	changes []change // as the disk saw them, below dir
	dir     string
	// Of the two certificates: how many changes came before the CA was asked, and before the agent said that it has it.
	asked, held [2]int
	// What the CA knew before it was asked for each, and at the end.
	known [3]*testCA
}

func tellStory(t *testing.T) *story {
	t.Helper()
	s := &story{ca: newTestCA(t), dir: t.TempDir()}
	s.token = s.ca.token(t, "device/1")
	agent := newTestAgent(t, s.ca, s.token, s.dir, func(c change) error {
		s.changes = append(s.changes, c)
		return apply(c)
	})
	for i := range 2 {
		s.known[i] = s.ca.clone()
		asked := 0
		s.ca.before = func() error { asked = len(s.changes); return nil }
		if err := step(agent); err != nil {
			t.Fatal(err)
		}
		s.asked[i], s.held[i] = asked, len(s.changes)
	}
	s.ca.before = nil
	s.known[2] = s.ca.clone()
	return s
}

// step is what the agent's loop does once.
func step(a *Agent) error { return a.settled(context.Background(), a.obtain(context.Background())) }

func newTestAgent(t testing.TB, ca Authority, token Token, dir string, on disk) *Agent {
	t.Helper()
	d, err := OpenDirectory(dir, new(testLog).logger())
	if err != nil {
		t.Fatal(err)
	}
	d.disk = on
	t.Cleanup(func() { _ = d.Close() })
	a, err := NewAgent(Config{
		Directory: d, Authority: ca, Log: d.log,
		Token: func() (Token, error) { return token, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// lasting is the part of a change that reaches the medium: its entry in the directory, and the content of a file.
type lasting struct{ entry, content bool }

// unflushed lists what of the first n changes no flush has made durable yet: pairs of a change and "entry" or "content".
func (s *story) unflushed(n int) (open []func([]lasting)) {
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
			open = append(open, func(l []lasting) { l[i].entry = false })
		}
		if c.kind == create && !flushed(c.path, i) {
			open = append(open, func(l []lasting) { l[i].content = false })
		}
	}
	return open
}

// replay leaves in dir what the first n changes leave there after a power cut that loses what is not lasting.
func (s *story) replay(t *testing.T, dir string, lasts []lasting) {
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
		_ = apply(c) // fails where what it builds on was lost: then it is lost too
	}
}

// TestPowerLoss cuts the power after every change to the disk, with every combination of what was not flushed yet lost
// or not, and has an agent go on from there: what it finds is whole, is what it was told it holds, and the CA, which
// keeps what it knew at that moment, never has to refuse.
func TestPowerLoss(t *testing.T) {
	s := tellStory(t)
	base, cuts := t.TempDir(), 0
	seen := map[string]bool{} // what was gone on from: many cuts leave the same
	for n := range len(s.changes) + 1 {
		open := s.unflushed(n)
		if len(open) > 10 {
			t.Fatalf("%d changes are not flushed after %d", len(open), n)
		}
		for lost := range 1 << len(open) {
			lasts := make([]lasting, n)
			for i := range lasts {
				lasts[i] = lasting{true, true}
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
			state := fmt.Sprint(n >= s.asked[0], n >= s.held[0], n >= s.asked[1], n >= s.held[1]) + tree(t, dir)
			if seen[state] {
				continue
			}
			seen[state] = true
			if err := s.resume(t, dir, n); err != nil {
				t.Fatalf("power lost after change %d of %d, losing %b of %d unflushed: %v", n, len(s.changes), lost, len(open), err)
			}
		}
	}
	if cuts < 400 || len(seen) < 50 {
		t.Errorf("the story was cut only %d times, in %d ways", cuts, len(seen))
	}
	t.Logf("%d changes, %d power cuts that left %d different things", len(s.changes), cuts, len(seen))
}

// tree describes all that a directory holds.
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

// powered is a disk whose power stays on: flushes, which take long, make no difference.
func powered(c change) error {
	if c.kind == flush {
		return nil
	}
	return apply(c)
}

// resume goes on after n changes.
func (s *story) resume(t *testing.T, dir string, n int) error {
	ca := s.known[0]
	for i := range 2 {
		if n >= s.asked[i] {
			ca = s.known[i+1]
		}
	}
	agent := newTestAgent(t, ca.clone(), s.token, dir, powered)
	defer agent.config.Directory.Close()
	if agent.broken != nil {
		return agent.broken
	}
	switch p := agent.Pair(); {
	case p == nil && n >= s.held[0]:
		return errors.New("the first credential is gone")
	case p != nil && n >= s.held[1] && p.Serial() != s.pair(t).Serial():
		return errors.New("the second credential is gone")
	}
	if err := step(agent); err != nil {
		return err
	}
	p, err := ReadPair(dir)
	if err == nil && p.Serial() != agent.Pair().Serial() {
		err = errors.New("the disk holds another pair than the agent")
	}
	return err
}

// pair is what the story ends with.
func (s *story) pair(t *testing.T) *Pair {
	t.Helper()
	p, err := ReadPair(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDiskFaults fails each change to the disk in turn, once with and once without its effect, and has the agent try
// again: no pair in use is ever lost or half, and the CA never has to refuse.
func TestDiskFaults(t *testing.T) {
	full := errors.New("no space left on device")
	changes := len(tellStory(t).changes)
	for at := range changes {
		for _, applied := range []bool{false, true} {
			ca := newTestCA(t)
			dir, token := t.TempDir(), ca.token(t, "device/1")
			seen, failed := 0, false
			agent := newTestAgent(t, ca, token, dir, func(c change) error {
				seen++
				if seen-1 != at {
					return powered(c)
				}
				failed = true
				if applied {
					return errors.Join(full, powered(c))
				}
				return full
			})
			for tries := 0; agent.Pair() == nil || len(ca.answers) < 2 || seen <= at; tries++ {
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
					t.Fatalf("change %d fails (applied: %v): the disk holds another pair than the agent", at, applied)
				}
			}
			if !failed {
				t.Fatalf("change %d never came", at)
			}
		}
	}
}
