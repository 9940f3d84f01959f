package translog

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// TestArchiveFollowsAnotherSequencer has another process sequence every entry, as the only server of several with work to do.
func TestArchiveFollowsAnotherSequencer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		m, a := &memory{}, open(t, path)
		s := start(t, m, a)
		synced(t, s)
		for i := range 20 {
			m.commit(fmt.Sprintf("0/%d", i))
			if _, err := m.Sequence(context.Background(), 1); err != nil {
				t.Fatal(err)
			}
			synced(t, s)
			if got := a.Head().Size; got != uint64(i)+1 {
				t.Fatalf("the archive has %d entries after Sync, want %d", got, i+1)
			}
		}
		checkOnce(t, archived(t, path), 1, 20)
	})
}
