package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testLog(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"sequence and read":              sequenceAndRead,
		"pages of large entries":         pagesOfLargeEntries,
		"many writers and sequencers":    manyWriters,
		"refused changes leave no entry": refusedLeavesNoEntry,
	})
}

// verifyChain recomputes the chain over the whole log and compares it with the head.
func (w *world) verifyChain(t rapid.TB) translog.Head {
	t.Helper()
	var head translog.Head
	for {
		page, err := w.Log.Entries(context.Background(), head.Size+1, 7)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			if s.Index != head.Size+1 || s.Chain != translog.Chain(head.Chain, s.Entry) {
				t.Fatalf("entry %d follows %d, with a chain value of %s", s.Index, head.Size, s.Chain)
			}
			head = translog.Head{Size: s.Index, Chain: s.Chain}
		}
	}
	want, err := w.Log.Head(context.Background())
	must(t, err)
	mustEqual(t, "the end of the log", head, want)
	return head
}

// mustReplay replays the log into an empty store. Its records must equal those of the original.
func (w *world) mustReplay(t *testing.T) {
	t.Helper()
	if w.Replay == nil || t.Failed() || t.Skipped() {
		return
	}
	w.sequence(t)
	var log []translog.Sequenced
	for {
		page, err := w.Log.Entries(context.Background(), uint64(len(log))+1, 100)
		must(t, err)
		if len(page) == 0 {
			break
		}
		log = append(log, page...)
	}
	original, replayed := w.Replay(t, log)
	if diff := cmp.Diff(original, replayed); diff != "" {
		t.Errorf("the replayed records differ (- original, + replayed):\n%s", diff)
	}
}

// logRefusal writes a log entry about a refused request.
func (w *world) logRefusal(t rapid.TB, detail string) {
	t.Helper()
	must(t, w.Audit.Refused(context.Background(), audit.Refusal{By: operator, Why: pki.Refuse(pki.RuleAccess, "", "%s", detail), At: w.now}))
}

func sequenceAndRead(t *testing.T, w *world) {
	ctx := context.Background()
	mustEqual(t, "the head of an empty log", w.verifyChain(t), translog.Head{})
	none, err := w.Log.Sequence(ctx, 10)
	must(t, err)
	mustEqual(t, "the sequenced entries of an empty log", len(none), 0)
	nothing, err := w.Log.Written(ctx)
	must(t, err)
	mustEqual(t, "the written entries of an empty log", nothing, uint64(0))
	want := []string{"a", "b", "c", "d", "e"}
	for _, detail := range want {
		w.logRefusal(t, detail)
	}
	unsequenced, err := w.Log.Entries(ctx, 1, 10)
	must(t, err)
	mustEqual(t, "the entries before they are sequenced", len(unsequenced), 0)
	written, err := w.Log.Written(ctx)
	must(t, err)
	mustEqual(t, "the number of written entries", written, uint64(len(want)))

	first, err := w.Log.Sequence(ctx, 2)
	must(t, err)
	mustEqual(t, "the first entries sequenced", len(first), 2)
	w.reopen(t)
	rest, err := w.Log.Sequence(ctx, 10)
	must(t, err)
	all := slices.Concat(first, rest)
	var got []string
	for i, s := range all {
		e, err := translog.ParseEntry(s.Entry)
		must(t, err)
		got = append(got, e.Facts()["detail"])
		if s.Index != uint64(i)+1 {
			t.Errorf("entry %d has the index %d", i+1, s.Index)
		}
	}
	mustEqual(t, "the entries in commit order", got, want)
	w.verifyChain(t)
	read, err := w.Log.Entries(ctx, 2, 3)
	must(t, err)
	mustEqual(t, "a page of entries", read, all[1:4])
	none, err = w.Log.Entries(ctx, 6, 10)
	must(t, err)
	mustEqual(t, "the entries after the end", len(none), 0)
	epoch, err := w.Log.Epoch(ctx)
	must(t, err)
	w.reopen(t)
	again, err := w.Log.Epoch(ctx)
	must(t, err)
	if epoch != again || epoch == (translog.Epoch{}) {
		t.Errorf("the epoch of the log is %s, and after it was opened again %s", epoch, again)
	}
	for _, limit := range []int{0, -1} {
		if page, err := w.Log.Sequence(ctx, limit); err == nil && len(page) > 0 {
			t.Errorf("with the limit %d, %d entries were sequenced", limit, len(page))
		}
	}
}

// pagesOfLargeEntries checks that pages of the log are limited by number and size, and those of the feed by number
// only.
func pagesOfLargeEntries(t *testing.T, w *world) {
	ctx := context.Background()
	create := func(size int) {
		id := w.newIdentity(t)
		id.Labels = map[string]string{}
		for n := range (size + pki.MaxText - 1) / pki.MaxText {
			id.Labels[fmt.Sprint("text ", n)] = strings.Repeat("x", min(size, pki.MaxText))
		}
		_, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: id}, operator)
		must(t, err)
	}
	for range 5 {
		create(translog.PageSize / 2) // two entries of this size fill a page
	}
	create(2 * translog.PageSize) // larger than a page
	create(1)
	var sequenced, read []int
	var all []translog.Sequenced
	for {
		batch, err := w.Log.Sequence(ctx, 100)
		must(t, err)
		if len(batch) == 0 {
			break
		}
		sequenced, all = append(sequenced, len(batch)), append(all, batch...)
	}
	mustEqual(t, "the entries of each batch", sequenced, []int{2, 2, 2, 1})
	for from := uint64(2); ; {
		page, err := w.Log.Entries(ctx, from, 100)
		must(t, err)
		if len(page) == 0 {
			break
		}
		mustEqual(t, "a page", page, all[from-1:from-1+uint64(len(page))])
		read, from = append(read, len(page)), from+uint64(len(page))
	}
	mustEqual(t, "the entries of each page", read, []int{2, 2, 1, 1})
	w.verifyChain(t)
	if w.Feed == nil {
		return
	}
	_, last := w.changes(t, 0, 100)
	mustEqual(t, "the last entry that the feed reads", last, uint64(len(all)))
}

func manyWriters(t *testing.T, w *world) {
	const writers, entries = 4, 12
	var run []func()
	for range writers {
		run = append(run, func() {
			for range entries {
				if err := w.Audit.Refused(context.Background(), audit.Refusal{By: operator, Why: pki.Refuse(pki.RuleAccess, "", "no"), At: w.now}); err != nil {
					t.Errorf("write an entry: %v", err)
				}
			}
		})
	}
	var mu sync.Mutex
	var indexes []uint64
	for range 2 {
		run = append(run, func() {
			for range entries {
				batch, err := w.Log.Sequence(context.Background(), 3)
				if err != nil {
					t.Errorf("sequence: %v", err)
				}
				mu.Lock()
				for _, s := range batch {
					indexes = append(indexes, s.Index)
				}
				mu.Unlock()
			}
		})
	}
	together(run...)
	for {
		batch, err := w.Log.Sequence(context.Background(), 10)
		must(t, err)
		if len(batch) == 0 {
			break
		}
		for _, s := range batch {
			indexes = append(indexes, s.Index)
		}
	}
	slices.Sort(indexes)
	var want []uint64
	for i := range uint64(writers * entries) {
		want = append(want, i+1)
	}
	mustEqual(t, "the assigned indexes", indexes, want)
	mustEqual(t, "the size of the log", w.verifyChain(t).Size, writers*entries)
}

// refusedLeavesNoEntry makes changes that fail or are refused. They must leave neither an entry nor a gap in the log.
func refusedLeavesNoEntry(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.enrollNew(t)
	before := w.sequenceAndVerify(t)
	if w.LoseCommit != nil {
		w.LoseCommit(false)
		id := w.unique()
		tokenID, err := pki.TokenIDFromBytes(id[:])
		must(t, err)
		token := ra.Token{ID: tokenID, Identity: r.Identity, ExpiresAt: w.now, CreatedBy: operator, CreatedAt: w.now}
		if _, err := w.RA.CreateToken(ctx, token); err == nil {
			t.Error("a commit that did not apply succeeded")
		}
	}
	_, err := w.Statuses.Apply(ctx, revocation.Change{Action: revoke, Certificate: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}, Actor: operator, At: w.now})
	mustNotFind(t, err)
	mustEqual(t, "the end of the log", w.sequenceAndVerify(t), before)
	w.logRefusal(t, "next")
	mustEqual(t, "the size of the log", w.sequenceAndVerify(t).Size, before.Size+1)
}

// sequenceAndVerify sequences all entries and verifies the chain.
func (w *world) sequenceAndVerify(t *testing.T) translog.Head {
	t.Helper()
	w.sequence(t)
	return w.verifyChain(t)
}
