package storetest

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// testLogRemoval removes old entries from the log. A replay is tested elsewhere, because the store alone does not have
// the whole log afterwards.
func testLogRemoval(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(t *testing.T, w *world){
		"old entries leave": oldEntriesLeave, "a removal is checked": removalIsChecked, "a skip list stays": skipListStays,
		"readers see no gap": readersSeeNoGap, "an archive is completed": archiveIsCompleted, "removal model": removalModel,
		"a lost commit": lostRemoval,
	} {
		t.Run(name, func(t *testing.T) { test(t, newWorld(t, open(t))) })
	}
}

// mustHaveLeft checks that an entry has left the store, and which one is the first there.
func mustHaveLeft(t rapid.TB, err error, first uint64) {
	t.Helper()
	var left *translog.RemovedError
	if !errors.As(err, &left) || left.First != first {
		t.Fatalf("got the error %v, want a RemovedError with the first entry %d", err, first)
	}
}

// headAt returns the head at an index.
func (w *world) headAt(t rapid.TB, index uint64) translog.Head {
	t.Helper()
	page, err := w.Log.Entries(context.Background(), index, 1)
	must(t, err)
	mustEqual(t, "the index", page[0].Index, index)
	return translog.Head{Size: index, Chain: page[0].Chain}
}

// logBatches writes batches of so many entries, and sequences each of them.
func (w *world) logBatches(t rapid.TB, sizes ...int) {
	t.Helper()
	for _, n := range sizes {
		for range n {
			w.logRefusal(t, "no")
		}
		w.sequence(t)
	}
}

func (w *world) remove(t rapid.TB, from uint64, to translog.Head) bool {
	t.Helper()
	removed, err := w.Log.Remove(context.Background(), from, to)
	must(t, err)
	return removed
}

func oldEntriesLeave(t *testing.T, w *world) {
	ctx := context.Background()
	w.logBatches(t, 3, 4, 1, 2)
	head, seventh := w.headAt(t, 10), w.headAt(t, 7)
	must(t, w.Log.Archived(ctx, 10))
	sixth := w.headAt(t, 6) // within a batch
	mustEqual(t, "whether entries were removed", w.remove(t, 1, sixth), true)
	mustEqual(t, "whether entries were removed twice", w.remove(t, 1, sixth), false)
	w.reopen(t)
	for from := range uint64(7) {
		_, err := w.Log.Entries(ctx, from, 100)
		mustHaveLeft(t, err, 7)
	}
	mustEqual(t, "the first entry", w.headAt(t, 7), seventh)
	kept, err := w.Log.Checkpoint(ctx, 6)
	must(t, err)
	mustEqual(t, "the chain value that stays", kept, sixth)
	kept, err = w.Log.Checkpoint(ctx, 5)
	must(t, err)
	mustEqual(t, "a chain value before it", kept, translog.Head{})
	if w.Feed != nil {
		ignore := func([]pki.StatusChange) {}
		_, err := w.Feed.Changes(ctx, 5, 10, ignore)
		mustHaveLeft(t, err, 7)
		if needs, ok := errors.AsType[interface {
			error
			NeedsSnapshot() bool
		}](err); !ok || !needs.NeedsSnapshot() {
			t.Errorf("the error %v does not say that a snapshot is needed", err)
		}
		last, err := w.Feed.Changes(ctx, 6, 10, ignore)
		must(t, err)
		mustEqual(t, "the last entry of the feed", last, 10)
	}
	now, err := w.Log.Head(ctx)
	must(t, err)
	mustEqual(t, "the head", now, head)
	mustEqual(t, "whether more were removed", w.remove(t, 7, w.headAt(t, 9)), true)
	w.logBatches(t, 1)
	written, err := w.Log.Written(ctx)
	must(t, err)
	mustEqual(t, "the number of entries", written, 11)
	page, err := w.Log.Entries(ctx, 10, 5)
	must(t, err)
	mustEqual(t, "the entries that stay", len(page), 2)
	mustEqual(t, "the chain value of the next entry", page[1].Chain, translog.Chain(head.Chain, page[1].Entry))
}

func removalIsChecked(t *testing.T, w *world) {
	ctx := context.Background()
	w.logBatches(t, 5)
	w.logRefusal(t, "not sequenced")
	third, fifth := w.headAt(t, 3), w.headAt(t, 5)
	mustEqual(t, "before they are archived", w.remove(t, 1, third), false)
	must(t, w.Log.Archived(ctx, 2))
	mustEqual(t, "before all are archived", w.remove(t, 1, third), false)
	must(t, w.Log.Archived(ctx, 5))
	mustEqual(t, "with the head", w.remove(t, 1, fifth), false)
	mustEqual(t, "beyond the head", w.remove(t, 1, translog.Head{Size: 6, Chain: fifth.Chain}), false)
	mustEqual(t, "not from the first on", w.remove(t, 2, third), false)
	mustEqual(t, "the size of the log", w.verifyChain(t).Size, 5)
	mustEqual(t, "when all is well", w.remove(t, 1, third), true)
}

// skipListStays removes entries beyond the first index whose chain value stays.
func skipListStays(t *testing.T, w *world) {
	const writers, each = 64, translog.SkipEvery/64 + 1
	ctx := context.Background()
	var run []func()
	for range writers {
		run = append(run, func() {
			for range each {
				w.logRefusal(t, "no")
			}
		})
	}
	together(run...)
	w.sequence(t)
	archive := w.newArchive(t)
	first := w.headAt(t, translog.SkipEvery)
	remover := translog.NewRemover(w.Log, archive)
	removed := 0
	for {
		n, err := remover.Step(ctx, w.now.Add(time.Hour))
		must(t, err)
		if removed += n; n == 0 {
			break
		}
	}
	head, err := w.Log.Head(ctx)
	must(t, err)
	kept, err := w.Log.Checkpoint(ctx, translog.SkipEvery+1)
	must(t, err)
	mustEqual(t, "the chain value in the skip list", kept, first)
	kept, err = w.Log.Checkpoint(ctx, translog.SkipEvery-1)
	must(t, err)
	mustEqual(t, "the chain value before it", kept, translog.Head{})
	mustEqual(t, "the number of removed entries", removed, int(head.Size)-1) //nolint:gosec // a count
	w.mustBeWhole(t, archive, int(head.Size))                                //nolint:gosec // a count
}

// newArchive returns a new archive that has the log, which the store knows.
func (w *world) newArchive(t *testing.T) *translog.Archive {
	t.Helper()
	archive, err := translog.OpenArchiveOf(t.Context(), w.Log, filepath.Join(t.TempDir(), "log.archive"), slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { _ = archive.Close() })
	w.archiveAll(t, archive)
	return archive
}

// archiveAll completes an archive, and tells the store.
func (w *world) archiveAll(t rapid.TB, archive *translog.Archive) {
	t.Helper()
	must(t, translog.NewSequencer(w.Log, archive, slog.New(slog.DiscardHandler)).Reconcile(context.Background()))
	must(t, w.Log.Archived(context.Background(), archive.Head().Size))
}

// mustBeWhole reads the log from the store and the archive, and verifies it.
func (w *world) mustBeWhole(t rapid.TB, archive *translog.Archive, want int) {
	t.Helper()
	whole := translog.Whole{Store: w.Log, Archive: archive}
	v := translog.NewVerifier(translog.Head{})
	for {
		page, err := whole.Entries(context.Background(), v.Head().Size+1, 100)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			must(t, v.Add(s))
		}
	}
	head, err := w.Log.Head(context.Background())
	must(t, err)
	mustEqual(t, "the end of the log", v.Head(), head)
	mustEqual(t, "the number of entries", int(head.Size), want) //nolint:gosec // a count
}

// readersSeeNoGap reads the log while its entries leave the store.
func readersSeeNoGap(t *testing.T, w *world) {
	for range 20 {
		w.logBatches(t, 2, 3)
		w.now = w.now.Add(time.Minute)
	}
	archive := w.newArchive(t)
	end := make(chan struct{})
	var reading sync.WaitGroup
	for range 2 {
		reading.Go(func() {
			for {
				w.mustBeWhole(t, archive, 100)
				select {
				case <-end:
					return
				default:
				}
			}
		})
	}
	remover, removed := translog.NewRemover(w.Log, archive), 0
	for at := w.now.Add(-20 * time.Minute); at.Before(w.now.Add(time.Hour)); at = at.Add(time.Minute) {
		n, err := remover.Step(t.Context(), at)
		must(t, err)
		removed += n
	}
	close(end)
	reading.Wait()
	mustEqual(t, "the number of removed entries", removed, 99) // the head stays
	w.mustBeWhole(t, archive, 100)
}

// archiveIsCompleted starts with archives of which the store cannot have all that they lack.
func archiveIsCompleted(t *testing.T, w *world) {
	ctx := context.Background()
	log := slog.New(slog.DiscardHandler)
	w.logBatches(t, 10)
	archive := w.newArchive(t)
	part := func(n int) *translog.Archive {
		epoch, err := w.Log.Epoch(ctx)
		must(t, err)
		a, err := translog.OpenArchive(filepath.Join(t.TempDir(), "log.archive"), epoch, log)
		must(t, err)
		t.Cleanup(func() { _ = a.Close() })
		page, err := archive.Entries(ctx, 1, n)
		must(t, err)
		must(t, a.Append(ctx, page[:n]))
		return a
	}
	mustEqual(t, "whether entries were removed", w.remove(t, 1, w.headAt(t, 6)), true)
	for n := range 11 {
		a := part(n)
		err := translog.NewSequencer(w.Log, a, log).Reconcile(ctx)
		var behind *translog.BehindError
		switch {
		case n < 6 && (!errors.As(err, &behind) || behind.First != 7):
			t.Errorf("an archive of %d entries: %v", n, err)
		case n >= 6:
			must(t, err)
			w.mustBeWhole(t, a, 10)
		}
	}
}

// lostRemoval removes entries in a transaction whose COMMIT is ambiguous.
func lostRemoval(t *testing.T, w *world) {
	need(t, w.LoseCommit != nil, "lost commits")
	archive := w.newArchive(t)
	for _, applies := range []bool{false, true} {
		w.logBatches(t, 10)
		w.archiveAll(t, archive)
		remover := translog.NewRemover(w.Log, archive)
		all := int(archive.Head().Size) //nolint:gosec // a count
		w.LoseCommit(applies)
		_, err := remover.Step(t.Context(), w.now.Add(time.Hour))
		mustBeTemporary(t, err)
		w.mustBeWhole(t, archive, all)
		w.logBatches(t, 1)
		_, err = remover.Step(t.Context(), w.now.Add(time.Hour))
		must(t, err)
		w.mustBeWhole(t, archive, all+1)
	}
}

// maxRemovalChecks is the maximum number of runs of the removal model, because each run writes and reads more.
const maxRemovalChecks = 20

// removalModel writes, sequences, archives, removes and restarts in any order. Each entry that was ever written must be
// in the store or in the archive.
func removalModel(t *testing.T, w *world) {
	path := filepath.Join(t.TempDir(), "log.archive")
	log := slog.New(slog.DiscardHandler)
	archive, err := translog.OpenArchiveOf(t.Context(), w.Log, path, log)
	must(t, err)
	t.Cleanup(func() { _ = archive.Close() })
	remover := translog.NewRemover(w.Log, archive)
	w.logBatches(t, 1)
	written, sequenced, checks := 1, 1, 0
	rapid.Check(t, func(rt *rapid.T) {
		if checks++; checks > maxRemovalChecks {
			return
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				for range rapid.IntRange(1, 3).Draw(rt, "entries") {
					w.logRefusal(rt, "no")
					written++
				}
				w.now = w.now.Add(time.Minute)
			},
			"sequence": func(rt *rapid.T) {
				page, err := w.Log.Sequence(context.Background(), rapid.IntRange(1, 9).Draw(rt, "limit"))
				must(rt, err)
				sequenced += len(page)
			},
			"archive": func(rt *rapid.T) {
				must(rt, translog.NewSequencer(w.Log, archive, log).Reconcile(context.Background()))
			},
			"report": func(rt *rapid.T) { must(rt, w.Log.Archived(context.Background(), archive.Head().Size)) },
			"remove": func(rt *rapid.T) {
				age := time.Duration(rapid.IntRange(-5, 20).Draw(rt, "age")) * time.Minute
				_, err := remover.Step(context.Background(), w.now.Add(-age))
				must(rt, err)
			},
			"restart": func(rt *rapid.T) {
				must(rt, archive.Close())
				w.reopen(t)
				w.begin(t)
				archive, err = translog.OpenArchiveOf(context.Background(), w.Log, path, log)
				must(rt, err)
				remover = translog.NewRemover(w.Log, archive)
			},
			"read": func(rt *rapid.T) { w.mustBeWhole(rt, archive, sequenced) },
		})
		have, err := w.Log.Written(context.Background())
		must(rt, err)
		mustEqual(rt, "the number of entries", int(have), written) //nolint:gosec // a count
		w.mustBeWhole(rt, archive, sequenced)
	})
}

// removalWaitsForOthers removes entries that the archive of another server lacks. They leave when that has them, or when the
// server has no epoch any more. A server that begins another epoch is waited for again.
func removalWaitsForOthers(t *testing.T, first, second *world) {
	ctx := context.Background()
	first.logBatches(t, 3, 4, 5)
	third, fifth, seventh, tenth := first.headAt(t, 3), first.headAt(t, 5), first.headAt(t, 7), first.headAt(t, 10)
	must(t, first.Log.Archived(ctx, 12))
	mustEqual(t, "before the other server has archived any", first.remove(t, 1, third), false)
	must(t, second.Log.Archived(ctx, 5))
	mustEqual(t, "up to an entry that the other server has archived", first.remove(t, 1, third), true)
	mustEqual(t, "up to one that it has not", first.remove(t, 4, seventh), false)
	mustEqual(t, "up to its last one", first.remove(t, 4, fifth), true)
	waitForLease()
	mustEqual(t, "when its lease has ended, and it may continue", first.remove(t, 6, seventh), false)
	first.fenceOthers(t)
	mustEqual(t, "when it is fenced", first.remove(t, 6, seventh), true)
	epoch, _, err := second.Journal.BeginAgain(ctx, second.epoch)
	must(t, err)
	second.epoch = epoch
	mustEqual(t, "when it has another epoch", first.remove(t, 8, tenth), false)
	_, err = second.Log.Entries(ctx, 6, 1) // its archive needs it
	mustHaveLeft(t, err, 8)
	must(t, second.Log.Archived(ctx, 11)) // with the archive of the other server
	mustEqual(t, "when it has a newer archive", first.remove(t, 8, tenth), true)
}
