package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
)

// appended is an archive before and after an append of two records over several sectors, and a store with all of it.
func appended(t *testing.T) (before, after []byte, store *memory) {
	t.Helper()
	store = &memory{}
	for i := range 9 {
		store.commit(fmt.Sprintf("%d %s", i, bytes.Repeat([]byte{'x'}, 200*(i%8))))
	}
	if _, err := store.Sequence(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	before = []byte(archiveHeader)
	for _, s := range store.sequenced[:6] {
		before = appendRecord(before, s)
	}
	after = bytes.Clone(before)
	for _, s := range store.sequenced[6:] {
		after = appendRecord(after, s)
	}
	return before, after, store
}

// torn is the archive after the append, without the sectors of it that lost has a bit for.
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

// reconciled opens an archive and brings it up to the store.
func reconciled(t *testing.T, content []byte, store Records) (path string, err error) {
	t.Helper()
	path = file0600(t, content)
	a, err := OpenArchiveOf(t.Context(), store, path, quiet())
	if err != nil {
		return path, err
	}
	defer a.Close()
	return path, NewSequencer(store, a, quiet()).Reconcile(context.Background())
}

func TestAppendsAreMendedHoweverTheyWereTorn(t *testing.T) {
	before, after, store := appended(t)
	parts := (len(after)-1)/sector - len(before)/sector + 1
	if parts < 5 || parts > 8 {
		t.Fatalf("the append lies in %d sectors", parts)
	}
	for lost := range 1 << parts {
		path, err := reconciled(t, torn(before, after, lost), store)
		if err != nil {
			t.Fatalf("sectors %b lost: %v", lost, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, after) {
			t.Fatalf("sectors %b lost: the archive is not what it was (%v)", lost, err)
		}
	}
}

// What the store cannot explain stays as evidence.
func TestOtherDamageIsNotMended(t *testing.T) {
	before, after, store := appended(t)
	hole := torn(before, after, 1<<1)
	altered := bytes.Clone(hole)
	altered[len(altered)-1] ^= 1
	early := bytes.Clone(after)
	clear(early[sector : 2*sector]) // a sector of what was durable, and more behind it than the store has
	older := &memory{sequenced: store.sequenced[:7]}
	longer := append(bytes.Clone(hole), "more"...)
	for name, c := range map[string]struct {
		content []byte
		store   *memory
	}{
		"another octet altered":        {altered, store},
		"a store of an older backup":   {hole, older},
		"a store at the archive's end": {hole, &memory{sequenced: store.sequenced[:6]}},
		"more than the store has":      {longer, store},
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
