package translog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// fill appends n records to an archive, in appends of different sizes.
func fill(t *testing.T, a *Archive, n int) []Sequenced {
	t.Helper()
	records := extend(a.Head(), n)
	for at, size := 0, 1; at < n; at, size = at+size, size%700+97 {
		if err := a.Append(t.Context(), records[at:min(n, at+size)]); err != nil {
			t.Fatal(err)
		}
	}
	return records
}

// readAll reads an archive from an index on, in pages of at most limit, and compares the entries.
func readAll(t *testing.T, a *Archive, from, limit int, want []Sequenced) {
	t.Helper()
	for from <= len(want) {
		page, err := a.Entries(t.Context(), uint64(from), limit)
		if err != nil || len(page) != min(limit, len(want)-from+1) {
			t.Fatalf("from %d: %d entries, %v", from, len(page), err)
		}
		for _, s := range page {
			if w := want[from-1]; s.Index != w.Index || string(s.Entry) != string(w.Entry) || s.Chain != w.Chain {
				t.Fatalf("entry %d is %+v", from, s)
			}
			from++
		}
	}
	if page, err := a.Entries(t.Context(), uint64(from), limit); err != nil || len(page) > 0 {
		t.Fatalf("after the end: %d entries, %v", len(page), err)
	}
}

func TestArchiveEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.archive")
	a, err := OpenArchive(path, testEpoch, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if page, err := a.Entries(t.Context(), 0, 10); err != nil || len(page) > 0 {
		t.Errorf("an empty archive has %d entries, %v", len(page), err)
	}
	records := fill(t, a, 5*minStride)
	for range 2 { // with the marks of the appends, and with those of opening
		if n := len(a.marks.all); n < 4 || n > 6 {
			t.Errorf("%d marks", n)
		}
		for _, from := range []int{1, 2, minStride - 1, minStride, minStride + 1, 3*minStride + 7, 5 * minStride} {
			readAll(t, a, from, 300, records)
			if page, err := a.Entries(t.Context(), uint64(from), 1); err != nil || len(page) != 1 || page[0].Chain != records[from-1].Chain {
				t.Errorf("entry %d alone: %d entries, %v", from, len(page), err)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Entries(t.Context(), 1, 1); !errors.Is(err, os.ErrClosed) {
			t.Errorf("reading a closed archive: %v", err)
		}
		if a, err = OpenArchive(path, testEpoch, quiet()); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = a.Close() }()
	readAll(t, a, 1, maxBatchEntries, records)
	if n := len(a.marks.recent); n > maxRecent {
		t.Errorf("%d recent marks", n)
	}
}

func TestMarksAreBounded(t *testing.T) {
	var m marks
	for n := range uint64(5 * maxMarks) {
		m.add(mark{Head{Size: n * minStride}, int64(n)})
	}
	if n := len(m.all); n >= maxMarks || n < maxMarks/4 || m.all[0].before.Size != 0 {
		t.Errorf("%d marks, the first one %+v", n, m.all[0])
	}
	for _, index := range []uint64{1, minStride, minStride + 1, 5*maxMarks*minStride - 1} {
		if at := m.last(index); at.before.Size >= index || at.before.Size+2*m.stride < index {
			t.Errorf("the mark of entry %d is %d", index, at.before.Size)
		}
	}
}

// TestArchiveThatIsAlteredWhileOpen alters the file of an open archive. No altered entry is returned.
func TestArchiveThatIsAlteredWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.archive")
	a, err := OpenArchive(path, testEpoch, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	records := fill(t, a, 20)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{'x'}, size-40); err != nil {
		t.Fatal(err)
	}
	last := records[len(records)-1]
	_, err = a.Entries(t.Context(), 1, 100)
	if corrupt := new(CorruptError); !errors.As(err, &corrupt) {
		t.Errorf("reading: %v", err)
	}
	if err := a.Holds(t.Context(), 1, Head{Size: last.Index, Chain: last.Chain}); err == nil {
		t.Error("the archive holds an altered entry")
	}
	if err := f.Truncate(size - 41); err != nil {
		t.Fatal(err)
	}
	if err := a.Holds(t.Context(), 1, Head{Size: last.Index, Chain: last.Chain}); err == nil {
		t.Error("the archive holds an entry that was cut off")
	}
}

// TestRemoverComparesWithTheArchive removes entries from a store whose archive has other ones, or lacks them.
func TestRemoverComparesWithTheArchive(t *testing.T) {
	store := &memory{sequenced: loggable(t, 10)}
	a, err := OpenArchive(filepath.Join(t.TempDir(), "log.archive"), testEpoch, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	r := NewRemover(store, a)
	after := entryTime.AddDate(0, 0, 1)
	if n, err := r.Step(t.Context(), after); n != 0 || err != nil {
		t.Errorf("with an empty archive: %d removed, %v", n, err)
	}
	fill(t, a, 10)
	_, err = r.Step(t.Context(), after)
	if broken := new(ChainError); !errors.As(err, &broken) || broken.Index != 9 {
		t.Errorf("with another archive: %v", err)
	}
	if store.first != 0 {
		t.Errorf("%d entries have left", store.first)
	}
	if n, err := r.Step(t.Context(), entryTime); n != 0 || err != nil {
		t.Errorf("before the entries are old: %d removed, %v", n, err)
	}
}

// loggable returns n entries as the stores write them, all of entryTime.
func loggable(t *testing.T, n int) []Sequenced {
	t.Helper()
	var all []Sequenced
	var head Head
	for range n {
		entry, err := Entry{Time: entryTime, Action: RequestRefused, Outcome: Refused, Event: &Refusal{Rule: "x"}}.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		head = Head{Size: head.Size + 1, Chain: Chain(head.Chain, entry)}
		all = append(all, Sequenced{Index: head.Size, Entry: entry, Chain: head.Chain})
	}
	return all
}

// TestReconcileWhatHasLeft compares archives with a store whose first entries have left.
func TestReconcileWhatHasLeft(t *testing.T) {
	ctx := context.Background()
	records := extend(Head{}, 12)

	for n := range 13 {
		for _, c := range []struct {
			of    []Sequenced
			wrong bool
		}{{records, false}, {rechained(records), true}} {
			store := &memory{sequenced: records, first: 9}
			a, err := OpenArchive(filepath.Join(t.TempDir(), "log.archive"), testEpoch, quiet())
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Append(ctx, c.of[:n]); err != nil {
				t.Fatal(err)
			}
			err = NewSequencer(store, a, quiet()).Reconcile(ctx)
			var behind *BehindError
			var mismatch *MismatchError
			switch {
			case c.wrong && n >= 4: // up to there, the store has no chain value to compare with
				if !errors.As(err, &mismatch) {
					t.Errorf("another archive of %d entries: %v", n, err)
				}
			case n < 9:
				if !errors.As(err, &behind) || behind.First != 10 {
					t.Errorf("an archive of %d entries: %v", n, err)
				}
			case err != nil || a.Head().Size != 12:
				t.Errorf("an archive of %d entries: %v", n, err)
			}
			_ = a.Close()
		}
	}
}

// rechained returns other entries with a correct chain.
func rechained(records []Sequenced) []Sequenced {
	var head Head
	var all []Sequenced
	for _, s := range records {
		entry := append([]byte("other "), s.Entry...)
		head = Head{Size: s.Index, Chain: Chain(head.Chain, entry)}
		all = append(all, Sequenced{Index: s.Index, Entry: entry, Chain: head.Chain})
	}
	return all
}
