package translog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// open opens an archive and closes it when the test ends.
func open(t *testing.T, path string) *Archive {
	t.Helper()
	a, err := OpenArchive(path, testEpoch, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func appendTo(t *testing.T, a *Archive, records []Sequenced) {
	t.Helper()
	if err := a.Append(context.Background(), records); err != nil {
		t.Fatal(err)
	}
}

// written returns the bytes of an archive of n records in batches of different sizes.
func written(t *testing.T, n int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	a := open(t, path)
	for size := 1; n > 0; size++ {
		appendTo(t, a, extend(a.Head(), min(size, n)))
		n -= min(size, n)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func file0600(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkArchive checks that a file is an archive of exactly the first n records of extend.
func checkArchive(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := extend(Head{}, n)
	i := 0
	head, err := Read(f, func(s Sequenced) error {
		if i >= len(want) || s.Index != want[i].Index || !bytes.Equal(s.Entry, want[i].Entry) || s.Chain != want[i].Chain {
			return fmt.Errorf("record %d is %+v", i, s)
		}
		i++
		return nil
	})
	if err != nil || i != n || head.Size != uint64(n) {
		t.Fatalf("archive of %d records up to %+v: %v; want %d", i, head, err, n)
	}
}

func TestAppendedRecordsAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	a := open(t, path)
	if a.Head() != (Head{}) {
		t.Errorf("the head of a new archive is %+v", a.Head())
	}
	appendTo(t, a, nil)
	appendTo(t, a, extend(Head{}, 3))
	if _, err := OpenArchive(path, testEpoch, quiet()); !errors.Is(err, ErrLocked) {
		t.Errorf("a second open: %v, want ErrLocked", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Append(context.Background(), extend(a.Head(), 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("append after Close: %v", err)
	}
	a = open(t, path)
	appendTo(t, a, extend(a.Head(), 2))
	checkArchive(t, path, 5)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
}

func TestAppendRefusesRecordsThatDoNotContinue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	a := open(t, path)
	appendTo(t, a, extend(Head{}, 2))
	next := extend(a.Head(), 3)
	wrongChain := []Sequenced{next[0], {Index: next[1].Index, Entry: []byte("another"), Chain: next[1].Chain}}
	long := make([]byte, MaxEntrySize+1)
	for name, c := range map[string]struct {
		records []Sequenced
		index   uint64
	}{
		"a gap":             {next[1:], 3},
		"a gap within":      {[]Sequenced{next[0], next[2]}, 4},
		"a repetition":      {extend(Head{}, 2), 3},
		"a wrong chain":     {wrongChain, 4},
		"an empty entry":    {[]Sequenced{{Index: 3, Chain: Chain(a.Head().Chain, nil)}}, 3},
		"a too large entry": {[]Sequenced{{Index: 3, Entry: long, Chain: Chain(a.Head().Chain, long)}}, 3},
	} {
		err := a.Append(context.Background(), c.records)
		var broken *ChainError
		if !errors.As(err, &broken) || broken.Index != c.index || pki.IsTemporary(err) {
			t.Errorf("%s: %v, want a ChainError at %d", name, err, c.index)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.Append(ended, next); !errors.Is(err, context.Canceled) {
		t.Errorf("append with a canceled context: %v", err)
	}
	checkArchive(t, path, 2)
	appendTo(t, a, next)
	checkArchive(t, path, 5)
}

// A power failure can leave any prefix of the last append, or a prefix followed by zeros.
func TestOpenRemovesTornBatch(t *testing.T) {
	whole := written(t, 6) // the last batch contains entries 4 to 6
	last := len(whole) - batchBytes(3)
	for _, zeros := range []bool{false, true} {
		for cut := last; cut < len(whole); cut++ {
			if cut == last && !zeros {
				continue // the file ends between two batches
			}
			torn := bytes.Clone(whole[:cut])
			if zeros {
				torn = append(torn, make([]byte, len(whole)-cut+5000)...)
			}
			head, err := Read(bytes.NewReader(torn), nil)
			var tornErr *TornError
			if !errors.As(err, &tornErr) || tornErr.Offset != int64(last) || tornErr.Index != 4 || head.Size != 3 {
				t.Fatalf("cut at %d, zeros %v: Read gives %+v, %v", cut, zeros, head, err)
			}
			path := file0600(t, torn)
			var warning bytes.Buffer
			a, err := OpenArchive(path, testEpoch, slog.New(slog.NewTextHandler(&warning, nil)))
			if err != nil {
				t.Fatalf("cut at %d, zeros %v: %v", cut, zeros, err)
			}
			if !strings.Contains(warning.String(), "level=WARN") || !strings.Contains(warning.String(), "index=4") {
				t.Fatalf("cut at %d: logged %q", cut, warning.String())
			}
			checkArchive(t, path, 3)
			appendTo(t, a, extend(a.Head(), 3))
			a.Close()
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, whole) {
				t.Fatalf("cut at %d, zeros %v: the completed archive differs", cut, zeros)
			}
		}
	}
}

func TestOpenCompletesInterruptedHeader(t *testing.T) {
	for n := range headerSize {
		path := file0600(t, header()[:n])
		appendTo(t, open(t, path), extend(Head{}, 1))
		checkArchive(t, path, 1)
	}
}

// faulty is a real file. Each of its methods fails as configured, after doing all or part of its work.
type faulty struct {
	file
	write    func(b []byte) (applied int, err error)
	sync     error
	truncate error
}

func (f *faulty) WriteAt(b []byte, at int64) (int, error) {
	if f.write == nil {
		return f.file.WriteAt(b, at)
	}
	n, err := f.write(b)
	if _, failed := f.file.WriteAt(b[:n], at); failed != nil {
		return 0, failed
	}
	return n, err
}

func (f *faulty) Sync() error { return errors.Join(f.file.Sync(), f.sync) }

func (f *faulty) Truncate(size int64) error {
	if f.truncate != nil {
		return f.truncate
	}
	return f.file.Truncate(size)
}

func TestFailedAppendLeavesNothing(t *testing.T) {
	full := func(applied func(b []byte) int) func([]byte) (int, error) {
		return func(b []byte) (int, error) { return applied(b), syscall.ENOSPC }
	}
	for name, fault := range map[string]faulty{
		"disk full":                   {write: full(func([]byte) int { return 0 })},
		"disk full, half written":     {write: full(func(b []byte) int { return len(b) / 2 })},
		"all written, error":          {write: full(func(b []byte) int { return len(b) })},
		"sync fails":                  {sync: syscall.EIO},
		"sync and cleanup fail":       {sync: syscall.EIO, truncate: syscall.EIO},
		"half written, cleanup fails": {write: full(func(b []byte) int { return len(b) / 2 }), truncate: syscall.EROFS},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			a := open(t, path)
			appendTo(t, a, extend(Head{}, 2))
			before := a.Head()
			real := a.file
			fault.file = real
			a.file = &fault
			for range 3 {
				if err := a.Append(context.Background(), extend(before, 4)); !pki.IsTemporary(err) || a.Head() != before {
					t.Fatalf("append: %v, head %+v; want a temporary failure and head %+v", err, a.Head(), before)
				}
			}
			a.file = real
			appendTo(t, a, extend(before, 1)) // shorter than the failed append
			checkArchive(t, path, 3)
		})
	}
}

// If this environment variable is set, the test binary appends to the file of this name in that directory.
const (
	appenderEnv  = "BREVET_TEST_APPENDER"
	appenderFile = "log"
)

// largeRecords returns records large enough that a kill is likely to interrupt their append.
func largeRecords(head Head) []Sequenced {
	var batch []Sequenced
	for range 3 {
		entry := bytes.Repeat([]byte{byte(head.Size + 1)}, 100_000)
		head = Head{Size: head.Size + 1, Chain: Chain(head.Chain, entry)}
		batch = append(batch, Sequenced{Index: head.Size, Entry: entry, Chain: head.Chain})
	}
	return batch
}

func appendUntilKilled() int {
	a, err := OpenArchive(appenderFile, testEpoch, quiet())
	for err == nil {
		if err = a.Append(context.Background(), largeRecords(a.Head())); err == nil {
			fmt.Println(a.Head().Size)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func TestArchiveAfterKillDuringAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), appenderFile)
	for range 15 {
		cmd := exec.Command(os.Args[0])
		cmd.Dir = filepath.Dir(path)
		cmd.Env = append(os.Environ(), appenderEnv+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		acknowledged := 0
		for range 1 + rand.IntN(4) {
			if !lines.Scan() {
				t.Fatalf("the appender exited: %v", cmd.Wait())
			}
			acknowledged, _ = strconv.Atoi(lines.Text())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			acknowledged, _ = strconv.Atoi(lines.Text())
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the appender exited before it was killed")
		}
		a := open(t, path)
		if size := a.Head().Size; acknowledged == 0 || size < uint64(acknowledged) {
			t.Fatalf("the archive has %d entries, %d were acknowledged", size, acknowledged)
		}
		a.Close()
	}
}

// BenchmarkOpenArchive opens an archive of 100 MB with entries of 250 bytes, as the start of a server does.
func BenchmarkOpenArchive(b *testing.B) {
	const entries = 400_000
	path := filepath.Join(b.TempDir(), "log.archive")
	a, err := OpenArchive(path, testEpoch, quiet())
	if err != nil {
		b.Fatal(err)
	}
	head := Head{}
	for head.Size < entries {
		var page []Sequenced
		for range batchSize {
			entry := bytes.Repeat(fmt.Appendf(nil, "%010d", head.Size), 25)
			head = Head{Size: head.Size + 1, Chain: Chain(head.Chain, entry)}
			page = append(page, Sequenced{Index: head.Size, Entry: entry, Chain: head.Chain})
		}
		if err := a.Append(b.Context(), page); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(a.size)
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if a, err = OpenArchive(path, testEpoch, quiet()); err != nil {
			b.Fatal(err)
		}
		if err := a.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
