package crl_test

import (
	"bytes"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// path returns the path of one of the issuing CA's CRLs below a directory.
func (s *scene) path(dir string, partition uint16, delta bool) string {
	return filepath.Join(dir, crl.Scope{Issuer: s.ca.ID(), Partition: partition, Delta: delta}.Path())
}

// numberIn returns the number of the CRL at a path, or zero if there is none.
func numberIn(t testing.TB, path string) int64 {
	t.Helper()
	der, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := crl.ReadNumber(bytes.NewReader(der), int64(len(der)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return n.Int64()
}

// TestRestartAfterEachCrash restarts the updater with every combination of records and files that a crash can leave.
func TestRestartAfterEachCrash(t *testing.T) {
	for name, c := range map[string]struct {
		leave     func(t *testing.T, s *scene, path string)
		published bool // whether the restart publishes the recorded CRL before it signs a new one
	}{
		"no crash": {func(*testing.T, *scene, string) {}, true},
		"recorded and not yet renamed": {func(t *testing.T, _ *scene, path string) {
			move(t, path, path+".new")
		}, true},
		"recorded and not yet renamed, over an older CRL": {func(t *testing.T, _ *scene, path string) {
			move(t, path, path+".new")
			write(t, path, []byte("older"))
		}, true},
		"a new one written and not recorded": {func(t *testing.T, _ *scene, path string) { write(t, path+".new", []byte("half")) }, true},
		"the file is missing":                {func(t *testing.T, _ *scene, path string) { remove(t, path) }, false},
		"the directory is missing":           {func(t *testing.T, s *scene, _ string) { remove(t, s.dir) }, false},
		"the file is damaged": {func(t *testing.T, _ *scene, path string) {
			der := read(t, path)
			write(t, path, append(der[:len(der)/2:len(der)/2], make([]byte, len(der)-len(der)/2)...))
		}, false},
		"the file is truncated": {func(t *testing.T, _ *scene, path string) { write(t, path, read(t, path)[:50]) }, false},
		"both files are damaged": {func(t *testing.T, _ *scene, path string) {
			write(t, path, []byte("torn"))
			write(t, path+".new", []byte("torn too"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, revtest.Never)
			_, ref := s.issue(t)
			s.revoke(t, ref, pki.Superseded)
			s.publishNow(t)
			want := s.newest(t).Raw
			c.leave(t, s, s.path(s.dir, 0, false))
			s.outlet = &revtest.Outlet{}
			s.start(t, revtest.Never)
			if err := crl.Recall(t.Context(), s.Updater); err != nil {
				t.Fatal(err)
			}
			if n := len(s.outlet.Published()); (n == 1) != c.published || n == 1 && !bytes.Equal(s.newest(t).Raw, want) {
				t.Errorf("after the restart %d CRLs are published; the recorded one must be: %v", n, c.published)
			}
			s.publishNow(t)
			if list := s.newest(t); !lists(list, ref) || list.Number.Int64() != 2 || numberIn(t, s.path(s.dir, 0, false)) != 2 {
				t.Errorf("the next published CRL is %v", list.Number)
			}
		})
	}
}

func TestImportedCRLIsRestored(t *testing.T) {
	s := newScene(t, revtest.Never)
	der := rootCRL(t, s.root, nil)
	if _, err := s.Import(t.Context(), der, operator); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, s.root.ID().Short()+".crl")
	if !bytes.Equal(read(t, path), der) {
		t.Error("the file differs from the imported CRL")
	}
	remove(t, s.dir)
	s.outlet = &revtest.Outlet{}
	s.start(t, revtest.Never)
	if err := crl.Recall(t.Context(), s.Updater); err != nil {
		t.Fatal(err)
	}
	if published := s.outlet.Published(); len(published) != 1 || !bytes.Equal(published[0].DER, der) || !bytes.Equal(read(t, path), der) {
		t.Errorf("%d CRLs are published", len(published))
	}
}

// TestDirectoryFailsAndRecovers makes the directory of published CRLs unusable, and later usable again.
func TestDirectoryFailsAndRecovers(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		s.points = []crl.Point{s.pointIn(1, "pki.example")}
		s.start(t, revtest.Never)
		blocked := filepath.Join(s.dir, s.ca.ID().Short())
		write(t, blocked, []byte("in the way"))
		s.running(t)
		wait(time.Minute)
		if n := len(s.outlet.Published()); n != 0 {
			t.Errorf("%d CRLs of a round that cannot be written are published", n)
		}
		if n := s.log.Count("signing CRLs failed, retrying"); n < 3 {
			t.Errorf("%d log messages, want at least 3", n)
		}
		remove(t, blocked)
		wait(time.Minute)
		if n := s.last(t, 1, false).Number; n.Int64() < 3 {
			t.Errorf("after failed rounds that took numbers, the CRL has number %v", n)
		}
	})
}

func TestMirrorsGetAllCRLs(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		one, two, away := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "not yet")
		s.further, s.points = []string{one, away, two}, []crl.Point{s.pointIn(1, "pki.example")}
		s.start(t, revtest.Never)
		if _, err := s.Import(t.Context(), rootCRL(t, s.root, nil), operator); err != nil {
			t.Fatal(err)
		}
		s.running(t)
		_, ref := s.issueIn(t, s.points[0])
		wait(time.Minute)
		s.revoke(t, ref, pki.Superseded)
		wait(time.Minute)
		same := func(dir string) {
			t.Helper()
			for partition, delta := range map[uint16]bool{0: false, 1: true} {
				path := s.path(dir, partition, delta)
				if !bytes.Equal(read(t, path), read(t, s.path(s.dir, partition, delta))) {
					t.Errorf("%s contains another CRL", path)
				}
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
					t.Errorf("%s: %v, %v; a web server reads it", path, info.Mode(), err)
				}
			}
			if got := read(t, filepath.Join(dir, s.root.ID().Short()+".crl")); !bytes.Equal(got, read(t, filepath.Join(s.dir, s.root.ID().Short()+".crl"))) {
				t.Errorf("%s contains another CRL of the root", dir)
			}
		}
		same(one)
		same(two)
		failures := s.Mirrors()
		if failures[one] != nil || failures[two] != nil || failures[away] == nil || s.log.Count("copying CRLs to a directory failed") < 3 {
			t.Errorf("the directories fail with %v", failures)
		}
		if err := os.Mkdir(away, 0o700); err != nil {
			t.Fatal(err)
		}
		wait(time.Minute)
		same(away)
		if failures := s.Mirrors(); failures[away] != nil {
			t.Errorf("a directory that is available again fails with %v", failures[away])
		}
		if left, err := filepath.Glob(filepath.Join(one, "*", ".unfinished*")); err != nil || len(left) > 0 {
			t.Errorf("temporary files are left: %v", left)
		}
	})
}

// TestMirrorKeepsNewerCRL publishes to a directory that contains a newer CRL from another process.
func TestMirrorKeepsNewerCRL(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		dir := t.TempDir()
		s.further = []string{dir}
		s.start(t, revtest.Never)
		path := s.path(dir, 0, false)
		older := rootCRL(t, s.ca, nil)
		for range 3 {
			s.publishNow(t)
		}
		write(t, path, []byte("what was left of a disk"))
		stop := s.running(t)
		wait(time.Minute)
		if n := numberIn(t, path); n != 4 {
			t.Errorf("the empty directory gets CRL %d, want 4", n)
		}
		write(t, path, older) // a CRL with number 1
		s.change(t, revocation.Hold, func() pki.CertRef { _, ref := s.issue(t); return ref }())
		wait(time.Minute)
		if n := numberIn(t, path); n != 5 {
			t.Errorf("CRL %d is in the directory instead of an older one, want 5", n)
		}
		stop()
		s.book = revtest.NewBook() // like an old backup, in which the CRL numbers are lower
		s.start(t, revtest.Never)
		s.running(t)
		wait(time.Minute)
		if n := numberIn(t, path); n != 5 || s.log.Count("the directory has a newer CRL from another process") == 0 {
			t.Errorf("CRL %d replaces CRL 5", n)
		}
	})
}

// TestTwoUpdatersShareAMirror runs two updaters for one CA, which publish to the same directory as fast as possible. A
// reader must find complete CRLs, and their numbers must never decrease.
func TestTwoUpdatersShareAMirror(t *testing.T) {
	one := newScene(t, revtest.Never)
	dir := t.TempDir()
	two := &scene{root: one.root, ca: one.ca, book: one.book, outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()}
	for _, s := range []*scene{one, two} {
		s.further = []string{dir}
		s.start(t, revtest.Never)
		s.running(t)
	}
	var publishing sync.WaitGroup
	for _, s := range []*scene{one, two} {
		publishing.Go(func() {
			for range 20 {
				// If both updaters sign at the same time, the higher number may be recorded first. The store then
				// refuses the other CRL, and it is not published.
				if err := s.PublishNow(t.Context()); err != nil && !strings.Contains(err.Error(), string(pki.RuleCRL)) {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { publishing.Wait(); close(done) }()
	path, last := one.path(dir, 0, false), int64(0)
	var newest int64
	for over := false; !over || last != newest; {
		select {
		case <-done:
			over = true
			all, err := one.book.CRLs(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			newest = all[0].Number.Int64()
		default:
		}
		n := numberIn(t, path)
		if n < last {
			t.Fatalf("CRL %d follows CRL %d in the directory", n, last)
		}
		last = n
		time.Sleep(time.Millisecond)
	}
}

// TestMirrorIsLockedByAnotherProcess publishes to a directory that another process has locked.
func TestMirrorIsLockedByAnotherProcess(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		dir := t.TempDir()
		s.further = []string{dir}
		s.start(t, revtest.Never)
		lock, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		s.running(t)
		wait(time.Minute)
		if n := numberIn(t, s.path(dir, 0, false)); n != 0 || s.Mirrors()[dir] == nil {
			t.Errorf("CRL %d is published to a locked directory, with the error %v", n, s.Mirrors()[dir])
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		wait(time.Minute)
		if n := numberIn(t, s.path(dir, 0, false)); n != 1 {
			t.Errorf("after the lock is released, CRL %d is published, want 1", n)
		}
	})
}

func TestPaths(t *testing.T) {
	id := revtest.NewRoot(t, "Root", "p256").ID()
	var got []string
	for _, s := range []crl.Scope{{Issuer: id}, {Issuer: id, Partition: 7}, {Issuer: id, Partition: 7, Delta: true}} {
		got = append(got, s.Path())
	}
	want := []string{id.Short() + ".crl", id.Short() + "/7.crl", id.Short() + "/7-delta.crl"}
	if !slices.Equal(got, want) {
		t.Errorf("the paths are %q, want %q", got, want)
	}
	if tag := (&crl.CRL{Number: big.NewInt(1)}).ETag(); tag != fmt.Sprintf("%q", strings.Repeat("0", 32)) {
		t.Errorf("the entity tag is %s", tag)
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
