package translog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// start runs a sequencer until the test ends. The test fails if Run returns earlier.
func start(t *testing.T, records Store, a *Archive) *Sequencer {
	t.Helper()
	s := NewSequencer(records, a, quiet())
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func synced(t *testing.T, s *Sequencer) {
	t.Helper()
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// archived returns the entries of an archive file.
func archived(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var entries []string
	if _, err := Read(f, func(s Sequenced) error { entries = append(entries, string(s.Entry)); return nil }); err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestSyncArchivesEarlierCommits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	m, a := &memory{}, open(t, path)
	s := start(t, m, a)
	var committed atomic.Int64
	var group sync.WaitGroup
	const callers, each = 8, 60
	for c := range callers {
		group.Go(func() {
			for i := range each {
				m.commit(fmt.Sprintf("%d/%d", c, i))
				before := committed.Add(1)
				if err := s.Sync(context.Background()); err != nil {
					t.Error(err)
				} else if size := a.Head().Size; size < uint64(before) {
					t.Errorf("%d entries archived, %d were committed", size, before)
				}
			}
		})
	}
	group.Wait()
	checkOnce(t, archived(t, path), callers, each)
}

// onePerPage is a Store with one entry on each page.
type onePerPage struct{ *memory }

func (s onePerPage) Sequence(ctx context.Context, _ int) ([]Sequenced, error) {
	return s.memory.Sequence(ctx, 1)
}

func (s onePerPage) Entries(ctx context.Context, from uint64, _ int) ([]Sequenced, error) {
	return s.memory.Entries(ctx, from, 1)
}

// A page that ends because of its size is not the last page.
func TestSyncArchivesLargeEntries(t *testing.T) {
	m, a := &memory{}, open(t, filepath.Join(t.TempDir(), "log"))
	const entries = 5
	for n := range entries {
		m.commit(strings.Repeat(fmt.Sprint(n), PageSize))
	}
	synced(t, start(t, onePerPage{m}, a))
	if size := a.Head().Size; size != entries {
		t.Errorf("%d entries archived, %d were committed", size, entries)
	}
}

// checkOnce checks that each caller's entries are present exactly once, in the order of its commits.
func checkOnce(t *testing.T, entries []string, callers, each int) {
	t.Helper()
	next := make([]int, callers)
	for _, e := range entries {
		var c, i int
		if _, err := fmt.Sscanf(e, "%d/%d", &c, &i); err != nil || i != next[c] {
			t.Fatalf("entry %q is out of order, want number %d", e, next[c])
		}
		next[c]++
	}
	for c, n := range next {
		if n != each {
			t.Errorf("caller %d: %d entries archived of %d", c, n, each)
		}
	}
}

func TestRunWorksWithoutKick(t *testing.T) {
	m, a := &memory{}, open(t, filepath.Join(t.TempDir(), "log"))
	s := start(t, m, a)
	synced(t, s)
	m.commit("alone")
	for a.Head().Size == 0 { // if Run never sequences it, the test times out
		time.Sleep(5 * time.Millisecond)
	}
}

func TestArchiveCatchesUpAfterCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	m, a := &memory{}, open(t, path)
	const n = 2*batchSize + 7
	for i := range n {
		m.commit(fmt.Sprintf("0/%d", i))
	}
	// The process that sequenced these entries crashed after archiving the first.
	var lost []Sequenced
	for range 3 {
		batch, err := m.Sequence(context.Background(), batchSize)
		if err != nil {
			t.Fatal(err)
		}
		lost = append(lost, batch...)
	}
	appendTo(t, a, lost[:1])
	s := NewSequencer(m, a, quiet())
	if err := s.Reconcile(context.Background()); err != nil {
		t.Fatal(err)
	}
	if a.Head() != m.head() {
		t.Fatalf("head %+v, the store's is %+v", a.Head(), m.head())
	}
	checkOnce(t, archived(t, path), 1, n)
}

// Another process may sequence entries, too. The Sequencer must read those from the store.
func TestEntriesSequencedByAnotherProcessAreArchived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		m, a := &memory{}, open(t, path)
		s := start(t, m, a)
		synced(t, s)
		for i := range 20 {
			m.commit(fmt.Sprintf("0/%d", i))
			if i%2 == 0 {
				if _, err := m.Sequence(context.Background(), 1); err != nil {
					t.Fatal(err)
				}
			}
			if i%5 == 0 {
				synced(t, s)
			}
		}
		synced(t, s)
		synced(t, s)
		checkOnce(t, archived(t, path), 1, 20)
	})
}

// Any failure of store or disk, whether or not the call took effect, leads to the same log.
func TestFailuresNeitherLoseNorRepeatEntries(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			var mu sync.Mutex
			random := rand.New(rand.NewPCG(seed, 1))
			chance := func() bool { mu.Lock(); defer mu.Unlock(); return random.IntN(3) == 0 }
			m, a := &memory{}, open(t, path)
			m.fault = func(string) (bool, error) {
				if chance() {
					return chance(), errStore
				}
				return true, nil
			}
			disk := &faulty{file: a.file}
			disk.write = func(b []byte) (int, error) {
				if chance() {
					return len(b) / 2, syscall.ENOSPC
				}
				return len(b), nil
			}
			a.file = disk
			s := start(t, m, a)
			for i := range 30 {
				m.commit(fmt.Sprintf("0/%d", i))
				if chance() {
					synced(t, s)
				}
			}
			synced(t, s)
			checkOnce(t, archived(t, path), 1, 30)
		})
	}
}

// Clients that follow the log receive an entry only once it has an index. A full disk must not delay revocations there.
func TestSequencingContinuesIfArchiveFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		m, a := &memory{}, open(t, path)
		var full atomic.Bool
		disk := &faulty{file: a.file}
		disk.write = func(b []byte) (int, error) {
			if full.Load() {
				return 0, syscall.ENOSPC
			}
			return len(b), nil
		}
		a.file = disk
		s := start(t, m, a)
		synced(t, s)
		full.Store(true)
		for i := range 50 {
			m.commit(fmt.Sprintf("0/%d", i))
			time.Sleep(time.Second) // in the time of the synctest bubble
			if head, err := m.Head(context.Background()); err != nil || head.Size != uint64(i+1) {
				t.Fatalf("%d entries are sequenced, want %d (%v)", head.Size, i+1, err)
			}
		}
		if a.Head().Size != 0 {
			t.Fatalf("the archive has %d entries while the disk is full", a.Head().Size)
		}
		full.Store(false)
		synced(t, s)
		checkOnce(t, archived(t, path), 1, 50)
	})
}

func TestSyncReturnsLastFailure(t *testing.T) {
	m, a := &memory{}, open(t, filepath.Join(t.TempDir(), "log"))
	m.fault = func(string) (bool, error) { return false, errStore }
	s := NewSequencer(m, a, quiet())
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	canceled, cancel := context.WithCancel(context.Background())
	for s.withCause(nil) == nil { // until Run has recorded the failure
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := s.Sync(canceled); !pki.IsTemporary(err) || !errors.Is(err, context.Canceled) || !errors.Is(err, errStore) {
		t.Errorf("Sync: %v, want a temporary error with the store's error", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := s.Sync(context.Background()); !pki.IsTemporary(err) {
		t.Errorf("Sync after the end: %v", err)
	}
}

func TestMismatchErrorNamesEntry(t *testing.T) {
	store := func(entries ...string) *memory {
		m := &memory{}
		for _, e := range entries {
			m.commit(e)
		}
		if _, err := m.Sequence(context.Background(), 100); err != nil {
			t.Fatal(err)
		}
		return m
	}
	whole := store("a", "b", "c", "d").sequenced
	altered := store("a", "b", "c", "d")
	altered.sequenced[2].Entry = []byte("C")
	holed := store("a", "b", "c", "d")
	holed.sequenced = append(holed.sequenced[:2:2], holed.sequenced[3:]...)
	pruned := store("a", "b", "c", "d")
	pruned.sequenced = pruned.sequenced[1:]
	for name, c := range map[string]struct {
		archive []Sequenced
		store   *memory
		index   uint64
		says    string
	}{
		"an old backup":                            {whole, store("a", "b"), 3, "brevet restore"},
		"an empty store":                           {whole, store(), 1, "older backup"},
		"another history":                          {whole[:2], store("a", "x", "c"), 2, "differ at entry 2"},
		"another history of the same size":         {whole, store("a", "b", "c", "x"), 4, "differ at entry 4"},
		"an entry that was altered":                {whole[:1], altered, 3, "differ at entry 3"},
		"an entry that is missing":                 {whole[:1], holed, 3, "differ at entry 3"},
		"the next entry is missing":                {whole[:2], holed, 3, "does not hold it"},
		"entries removed from the store":           {nil, pruned, 1, "does not hold it"},
		"the store lacks the archive's last entry": {whole[:1], pruned, 1, "does not hold it"},
	} {
		t.Run(name, func(t *testing.T) {
			a := open(t, filepath.Join(t.TempDir(), "log"))
			appendTo(t, a, c.archive)
			s := NewSequencer(c.store, a, quiet())
			for call, run := range map[string]func(context.Context) error{"Reconcile": s.Reconcile, "Run": s.Run} {
				err := run(context.Background())
				var mismatch *MismatchError
				if !errors.As(err, &mismatch) || mismatch.Index != c.index || pki.IsTemporary(err) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %v, want a MismatchError at %d that says %q", call, err, c.index, c.says)
				}
			}
			if got, had := a.Head().Size, uint64(len(c.archive)); got < had || got > max(had, c.index-1) {
				t.Errorf("the archive now has %d entries", got)
			}
			if err := s.Sync(context.Background()); err == nil {
				t.Error("Sync succeeds after Run returned an error")
			}
		})
	}
}

func TestVerifierContinuesFromHead(t *testing.T) {
	records := extend(Head{}, 5)
	v := NewVerifier(Head{Size: 2, Chain: records[1].Chain})
	if err := v.Add(records[3]); err == nil {
		t.Error("a gap was accepted")
	}
	for _, r := range records[2:] {
		if err := v.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if want := (Head{Size: 5, Chain: records[4].Chain}); v.Head() != want {
		t.Errorf("head %+v, want %+v", v.Head(), want)
	}
}

// follower is the store as a server sees it that does not lead, until it does.
type follower struct {
	*memory
	leads atomic.Bool
}

func (f *follower) Sequence(ctx context.Context, limit int) ([]Sequenced, error) {
	if f.leads.Load() {
		return f.memory.Sequence(ctx, limit)
	}
	return nil, fmt.Errorf("sequence the log: %w", pki.ErrNotLeader)
}

// busy is a store in which another server writes and the leader sequences all the time, always one entry late.
type busy struct{ follower }

func (b *busy) Sequence(ctx context.Context, limit int) ([]Sequenced, error) {
	if _, err := b.memory.Sequence(ctx, limit); err != nil {
		return nil, err
	}
	b.commit("0/0")
	return b.follower.Sequence(ctx, limit)
}

// TestFollowerSyncsUnderLoad waits at a server that does not lead, while there is always an entry that is not sequenced.
func TestFollowerSyncsUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		b := &busy{follower{memory: &memory{}}}
		a := open(t, path)
		s := start(t, b, a)
		for range 3 {
			written, err := b.Written(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := s.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
			if got := a.Head().Size; got < written {
				t.Errorf("after Sync the archive ends at %d, want %d at least", got, written)
			}
		}
	})
}

// TestFollowerArchives runs the sequencer of a server that does not lead. It archives what the leader has sequenced, Sync waits
// for the leader, and nothing is logged. Then it leads.
func TestFollowerArchives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		m, a := &memory{}, open(t, filepath.Join(t.TempDir(), "log"))
		f := &follower{memory: m}
		s := NewSequencer(f, a, slog.New(slog.NewTextHandler(&logged, nil)))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		synced(t, s)
		for n := range 3 {
			m.commit(fmt.Sprintf("0/%d", n))
			result := make(chan error, 1)
			go func() { result <- s.Sync(t.Context()) }()
			time.Sleep(time.Minute)
			select {
			case err := <-result:
				t.Fatalf("Sync returned %v before the leader sequenced the entry", err)
			default:
			}
			advanced, _ := s.Advanced()
			if _, err := m.Sequence(t.Context(), 10); err != nil {
				t.Fatal(err)
			}
			<-advanced
			if err := <-result; err != nil || a.Head().Size != uint64(n+1) {
				t.Fatalf("Sync returned %v, and the archive has %d entries", err, a.Head().Size)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m.commit("0/3")
		if err := s.Sync(short); !pki.IsTemporary(err) || !errors.Is(err, ErrUnsequenced) {
			t.Errorf("Sync without a leader returned %v", err)
		}
		f.leads.Store(true)
		synced(t, s)
		if size := a.Head().Size; size != 4 {
			t.Errorf("the new leader has archived %d entries, want 4", size)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if logged.Len() > 0 {
			t.Errorf("logged:\n%s", logged.String())
		}
	})
}
