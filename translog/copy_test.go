package translog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// copied is an archive with n records and its copy, whose file does not exist yet.
type copied struct {
	*Copy
	t       *testing.T
	archive *Archive
	path    string
}

func newCopied(t *testing.T, n int) *copied {
	t.Helper()
	dir := t.TempDir()
	a, err := OpenArchive(filepath.Join(dir, "log.archive"), testEpoch, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	fill(t, a, n)
	path := filepath.Join(dir, "copy", "log.archive")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	return &copied{NewCopy(a, path, quiet()), t, a, path}
}

// create makes an empty file for the copy.
func (c *copied) create() {
	c.t.Helper()
	if err := os.WriteFile(c.path, nil, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// run runs the copy until the test ends.
func (c *copied) run() {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
}

// await waits for the end of a round in which a condition holds.
func (c *copied) await(what string, is func() bool) {
	c.t.Helper()
	deadline := time.After(time.Minute)
	for {
		c.mu.Lock()
		advanced := c.advanced
		c.mu.Unlock()
		if is() {
			return
		}
		select {
		case <-advanced:
		case <-deadline:
			c.t.Fatalf("no %s, the last failure is %v", what, c.Failure())
		}
	}
}

// mustFail waits until the copy fails with a text in its error.
func (c *copied) mustFail(text string) {
	c.t.Helper()
	c.await("failure", func() bool { return c.Failure() != nil })
	if err := c.Failure(); err == nil || !strings.Contains(err.Error(), text) {
		c.t.Errorf("the failure is %v, want %q", err, text)
	}
	if c.Await(c.t.Context(), c.archive.Head().Size) {
		c.t.Error("a copy that fails has the newest entry")
	}
}

// mustCatchUp waits until the copy is complete, and verifies its file.
func (c *copied) mustCatchUp() {
	c.t.Helper()
	want := c.archive.Head()
	c.await("complete copy", func() bool { return c.Failure() == nil && c.Size() == want.Size })
	if !c.Await(c.t.Context(), want.Size) {
		c.t.Error("a complete copy lacks the newest entry")
	}
	f, err := os.Open(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if head, epoch, err := ReadEpoch(f, nil); err != nil || head != want || epoch != testEpoch {
		c.t.Errorf("the copy ends with %+v, %v; want %+v", head, err, want)
	}
}

func TestCopyFollowsTheArchive(t *testing.T) {
	c := newCopied(t, 5000)
	c.create()
	if err := c.Reconcile(t.Context()); err != nil || c.Size() != 5000 {
		t.Fatalf("Reconcile: %v, %d entries", err, c.Size())
	}
	c.run()
	for range 5 {
		fill(t, c.archive, 100)
		if !c.Await(t.Context(), c.archive.Head().Size) {
			t.Fatal(c.Failure())
		}
	}
	c.mustCatchUp()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if c.Await(canceled, c.archive.Head().Size+1) {
		t.Error("the copy has an entry that does not exist")
	}
}

// The server starts without the file, does not create it, and fills it when it is there.
func TestCopyIsNeverCreated(t *testing.T) {
	c := newCopied(t, 10)
	if err := c.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.run()
	c.mustFail("is missing")
	if _, err := os.Stat(c.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy was created: %v", err)
	}
	c.create()
	c.mustCatchUp()
	other := c.path + ".old"
	if err := os.Rename(c.path, other); err != nil { // as if its mount had vanished
		t.Fatal(err)
	}
	fill(t, c.archive, 3)
	c.mustFail("is missing")
	if err := os.Rename(other, c.path); err != nil {
		t.Fatal(err)
	}
	c.mustCatchUp()
	if err := os.Remove(c.path); err != nil {
		t.Fatal(err)
	}
	c.create() // another file at the path
	fill(t, c.archive, 3)
	c.await("copy in the new file", func() bool {
		info, err := os.Stat(c.path)
		return err == nil && info.Size() > 0
	})
	c.mustCatchUp()
}

// A copy with wrong contents is left as it is.
func TestCopyWithOtherContents(t *testing.T) {
	for name, content := range map[string]struct {
		make func(t *testing.T, c *copied)
		says string
	}{
		"no archive": {func(t *testing.T, c *copied) {
			if err := os.WriteFile(c.path, []byte("something else that is long enough for a header"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, ErrNotArchive.Error()},
		"an altered entry": {func(t *testing.T, c *copied) {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(c.path)), "log.archive"))
			if err != nil {
				t.Fatal(err)
			}
			b[headerSize+frameSize+5] ^= 1
			if err := os.WriteFile(c.path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damaged or was altered"},
		"other entries":              {func(t *testing.T, c *copied) { writeArchive(t, c.path, testEpoch, rechained(extend(Head{}, 7))) }, "differs from the archive at entry 7"},
		"more and other entries":     {func(t *testing.T, c *copied) { writeArchive(t, c.path, testEpoch, rechained(extend(Head{}, 30))) }, "differs from the archive at entry 20"},
		"another log with no entry":  {func(t *testing.T, c *copied) { writeArchive(t, c.path, Epoch{1}, nil) }, "of another log"},
		"another log's same entries": {func(t *testing.T, c *copied) { writeArchive(t, c.path, Epoch{1}, extend(Head{}, 20)) }, "of another log"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCopied(t, 20)
			content.make(t, c)
			before, err := os.ReadFile(c.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.run()
			c.mustFail(content.says)
			if after, err := os.ReadFile(c.path); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed, %v", err)
			}
			c.create() // truncates it
			c.mustCatchUp()
		})
	}
}

func writeArchive(t *testing.T, path string, epoch Epoch, records []Sequenced) {
	t.Helper()
	a, err := OpenArchive(path, epoch, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Append(t.Context(), records), a.Close()); err != nil {
		t.Fatal(err)
	}
}

// A copy that continues the archive shows that store and archive are an old backup.
func TestCopyThatIsAhead(t *testing.T) {
	c := newCopied(t, 0)
	records := fill(t, c.archive, 20)
	writeArchive(t, c.path, testEpoch, append(records, extend(c.archive.Head(), 1)...))
	err := c.Reconcile(t.Context())
	if ahead := new(CopyAheadError); !errors.As(err, &ahead) || ahead.Copy.Size != 21 || ahead.Archive.Size != 20 {
		t.Errorf("Reconcile: %v", err)
	}
}

// A copy that could not be read at the start shows later that store and archive are an old backup.
func TestCopyThatIsAheadLater(t *testing.T) {
	c := newCopied(t, 0)
	records := fill(t, c.archive, 20)
	if err := c.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeArchive(t, c.path, testEpoch, append(records, extend(c.archive.Head(), 1)...))
	err := c.Run(t.Context())
	if ahead := new(CopyAheadError); !errors.As(err, &ahead) || ahead.Copy.Size != 21 {
		t.Errorf("Run: %v", err)
	}
}

// hang mounts a file system that never responds, and returns a function that ends it.
func hang(t *testing.T, dir string) (end func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("mount a file system: %v", err)
	}
	t.Cleanup(func() { _ = fuse.Close() }) // if the test has failed
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())
	if err := syscall.Mount("hang", dir, "fuse", 0, options); err != nil {
		t.Skipf("mount a file system: %v", err)
	}
	return func() {
		t.Helper()
		if err := errors.Join(fuse.Close(), syscall.Unmount(dir, syscall.MNT_DETACH)); err != nil {
			t.Fatal(err)
		}
	}
}

// The disk of the copy hangs. A server starts and stops nevertheless, and the next one copies when the disk responds.
func TestCopyOnADiskThatHangs(t *testing.T) {
	c := newCopied(t, 10)
	end := hang(t, filepath.Dir(c.path))
	c.timeout = 20 * time.Millisecond
	if err := c.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mustFail("does not respond")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.mustFail("does not respond")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	c.Copy = NewCopy(c.archive, c.path, quiet())
	c.timeout = 20 * time.Millisecond
	if err := c.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.run()
	fill(t, c.archive, 10)
	c.mustFail("does not respond")
	end()
	c.create()
	c.mustCatchUp()
}

// A copy whose last append was interrupted is completed.
func TestCopyThatIsTorn(t *testing.T) {
	c := newCopied(t, 0)
	records := fill(t, c.archive, 20)
	writeArchive(t, c.path, testEpoch, records[:12])
	info, err := os.Stat(c.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(c.path, info.Size()-9); err != nil {
		t.Fatal(err)
	}
	if err := c.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.run()
	c.mustCatchUp()
}

// The disk of the copy fills up, vanishes and becomes read-only. Each time the copy fails, and is completed later.
func TestCopyOnADiskThatFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	c := newCopied(t, 0)
	dir := filepath.Dir(c.path)
	mount := func(flags uintptr, options string) {
		t.Helper()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Skipf("mount a file system: %v", err)
		}
	}
	mount(0, "size=64k")
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	c.create()
	c.run()
	fill(t, c.archive, 100)
	c.mustCatchUp()

	fill(t, c.archive, 9000) // of 11 bytes and more
	c.mustFail(syscall.ENOSPC.Error())
	mount(syscall.MS_REMOUNT, "size=8m")
	c.mustCatchUp()

	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	c.mustFail("is missing")
	mount(0, "size=8m") // another disk
	c.mustFail("is missing")
	c.create()
	c.mustCatchUp()

	kept, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	c.mustFail("is missing")
	mount(0, "size=8m")
	if err := os.WriteFile(c.path+".new", kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(c.path+".new", c.path); err != nil {
		t.Fatal(err)
	}
	c.mustCatchUp()
}

// TestCopyOnAReadOnlyDisk starts with a disk that is read-only.
func TestCopyOnAReadOnlyDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	c := newCopied(t, 10)
	dir := filepath.Dir(c.path)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("mount a file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	c.create()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.run()
	c.mustFail(syscall.EROFS.Error())
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	c.mustCatchUp()
}

// TestSequencerReportsTheCopy reports what both the archive and its copy have.
func TestSequencerReportsTheCopy(t *testing.T) {
	store := &memory{}
	c := newCopied(t, 0)
	for _, with := range []bool{false, true} {
		s := NewSequencerWithCopy(store, c.archive, c.Copy, quiet())
		store.commit("entry")
		if with {
			c.create()
		}
		if _, err := s.advance(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if err := c.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		for with && c.round(t.Context()) != nil { // until the pause after the failure has ended
		}
		s.report(t.Context())
		if want := map[bool]uint64{false: 0, true: 2}[with]; store.archived != want {
			t.Errorf("the store knows %d entries as archived, want %d", store.archived, want)
		}
	}
	_ = c.Close()
}
