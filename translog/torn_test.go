package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// appended returns an archive with the first six of a store's entries, before and after an append of further records.
func appended(t *testing.T, entries []string, records int) (before, after []byte, store *memory) {
	t.Helper()
	store = &memory{}
	for _, e := range entries {
		store.commit(e)
	}
	if _, err := store.Sequence(t.Context(), len(entries)); err != nil {
		t.Fatal(err)
	}
	before = appendBatch(header(), store.sequenced[:6])
	after = bytes.Clone(before)
	for batch := range batches(store.sequenced[6 : 6+records]) {
		after = appendBatch(after, batch)
	}
	return before, after, store
}

// variedEntries returns n entries of different lengths.
func variedEntries(n int) []string {
	var entries []string
	for i := range n {
		entries = append(entries, fmt.Sprintf("%d %s", i, bytes.Repeat([]byte{'x'}, 200*(i%8))))
	}
	return entries
}

// torn returns the archive after the append, without the sectors whose bits are set in lost.
func torn(before, after []byte, lost int) []byte {
	content := bytes.Clone(after)
	for bit, from := 0, len(before); from < len(content); bit++ {
		to := min(len(content), from/sector*sector+sector)
		if lost&(1<<bit) != 0 {
			clear(content[from:to])
		}
		from = to
	}
	return content
}

// reconciled opens an archive and archives the store's remaining entries.
func reconciled(t *testing.T, content []byte, store Store) (path string, err error) {
	t.Helper()
	path = file0600(t, content)
	a, err := OpenArchiveOf(t.Context(), store, path, quiet())
	if err != nil {
		return path, err
	}
	defer a.Close()
	return path, NewSequencer(store, a, quiet()).Reconcile(context.Background())
}

func TestTornAppendIsRepaired(t *testing.T) {
	for _, c := range []struct{ stored, records int }{
		{9, 3}, // all entries of the store
		{9, 2}, // the store has one more entry
		{14, 1},
		{14, 4},
	} {
		before, after, store := appended(t, variedEntries(c.stored), c.records)
		parts := (len(after)-1)/sector - len(before)/sector + 1
		if parts < 3 || parts > 8 {
			t.Fatalf("an append of %d spans %d sectors", c.records, parts)
		}
		for lost := range 1 << parts {
			path, err := reconciled(t, torn(before, after, lost), store)
			if err != nil {
				t.Fatalf("sectors %b of an append of %d lost: %v", lost, c.records, err)
			}
			got, err := os.ReadFile(path)
			if whole := c.records == c.stored-6; err != nil || whole && !bytes.Equal(got, after) {
				t.Fatalf("sectors %b of an append of %d lost: the archive differs from the complete one (%v)",
					lost, c.records, err)
			}
			if got := archived(t, path); !slices.Equal(got, variedEntries(c.stored)) {
				t.Fatalf("sectors %b of an append of %d lost: %d entries are archived", lost, c.records, len(got))
			}
		}
	}
}

// A power failure may lose any sectors of an append, also if the append consists of several batches.
func TestTornAppendOfSeveralBatchesIsRepaired(t *testing.T) {
	entries := variedEntries(6)
	for i := range 6 {
		entries = append(entries, fmt.Sprint(i)+strings.Repeat("y", MaxEntrySize/3))
	}
	for _, records := range []int{4, 6} {
		before, after, store := appended(t, entries, records)
		size := len(after) - len(before)
		for _, hole := range [][2]int{{0, 1}, {1, 2}, {0, size / 3}, {size / 3, size / 2}, {size / 2, size}, {MaxEntrySize, MaxEntrySize + 2000}, {size - 1, size}, {0, size - 1}} {
			content := bytes.Clone(after)
			from, to := (len(before)+hole[0])/sector*sector, min(len(after), (len(before)+hole[1]+sector-1)/sector*sector)
			clear(content[max(from, len(before)):to])
			path, err := reconciled(t, content, store)
			if err != nil {
				t.Fatalf("bytes %v of an append of %d lost: %v", hole, records, err)
			}
			if got := archived(t, path); !slices.Equal(got, entries) {
				t.Fatalf("bytes %v of an append of %d lost: %d entries are archived", hole, records, len(got))
			}
		}
		altered := bytes.Clone(after)
		clear(altered[len(before) : len(before)/sector*sector+sector])
		altered[len(before)+size/3] ^= 1
		path, err := reconciled(t, altered, store)
		var corrupt *CorruptError
		if got, readErr := os.ReadFile(path); !errors.As(err, &corrupt) || readErr != nil || !bytes.Equal(got, altered) {
			t.Errorf("an altered append of %d: %v, file unchanged: %v",
				records, err, bytes.Equal(got, altered))
		}
	}
}

// Damage that a lost append cannot explain is left unchanged as evidence.
func TestOtherDamageIsNotRepaired(t *testing.T) {
	before, after, store := appended(t, variedEntries(9), 3)
	hole := torn(before, after, 1<<1)
	altered := bytes.Clone(hole)
	altered[len(altered)-1] ^= 1
	early := bytes.Clone(after)
	// early lacks a sector of the durable part, and its tail is longer than the store's next entries.
	clear(early[sector : 2*sector])
	// two has two appends. The first has a hole, although it was durable before the second began.
	two := bytes.Clone(before)
	two = appendBatch(two, store.sequenced[6:8])
	clear(two[len(before)/sector*sector+sector : len(before)/sector*sector+2*sector])
	two = appendBatch(two, store.sequenced[8:9])
	older := &memory{sequenced: store.sequenced[:7]}
	longer := append(bytes.Clone(hole), "more"...)
	for name, c := range map[string]struct {
		content []byte
		store   *memory
	}{
		"a byte altered too":           {altered, store},
		"a store from an older backup": {hole, older},
		"a store at the archive's end": {hole, &memory{sequenced: store.sequenced[:6]}},
		"more than the store has":      {longer, store},
		"an append before the last":    {two, store},
		"altered, and a sector lost":   {early, &memory{sequenced: store.sequenced[:8]}},
	} {
		path, err := reconciled(t, c.content, c.store)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, c.content) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
	}
}
