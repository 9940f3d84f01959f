package memory_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/brevet-pki/brevet/store/memory"
	"github.com/brevet-pki/brevet/store/storetest"
	"github.com/brevet-pki/brevet/translog"
)

func TestConformance(t *testing.T) {
	storetest.RunRegistration(t, func(*testing.T) storetest.Store { return handle(&memory.Store{}) })
}

// handle returns a storetest.Store for s. A reopened or second handle uses the same s.
func handle(s *memory.Store) storetest.Store {
	again := func(*testing.T) storetest.Store { return handle(s) }
	return storetest.Store{
		Journal: s, RA: s, Policies: s, Keys: s, ACME: s.ACME(), Audit: s, Statuses: s, Counts: s, Rotations: s, Feed: s, Log: s, Reopen: again, Second: again,
		Replay: func(t *testing.T, log []translog.Sequenced) (original, fromLog map[string][]string) {
			empty := &memory.Store{}
			if err := empty.Replay(t.Context(), log); err != nil {
				t.Fatal(err)
			}
			return sorted(s.Rows()), sorted(empty.Rows())
		},
	}
}

func sorted(rows map[string][]string) map[string][]string {
	for table := range maps.Keys(rows) {
		slices.Sort(rows[table])
	}
	return rows
}
