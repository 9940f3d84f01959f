package tables_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// Every read of an altered log returns a ChainError with the index of the altered entry, whichever entries are read.
func TestAnAlteredLogIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		change  string
		at      uint64 // the index in the error
		visible func(from, to uint64) bool
	}{
		"an entry that was altered":      {`UPDATE log SET entry = CAST(entry || x'00' AS BLOB) WHERE id = 8`, 10, func(_, to uint64) bool { return to > 5 }},
		"an entry that is missing":       {`DELETE FROM log WHERE id = 8`, 8, func(_, to uint64) bool { return to > 5 }},
		"entries missing at the end":     {`DELETE FROM log WHERE id > 8`, 9, func(_, to uint64) bool { return to > 5 }},
		"a chain value that was altered": {`UPDATE chain SET value = zeroblob(32) WHERE id = 10`, 10, func(_, to uint64) bool { return to > 5 }},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "brevet.db")
			m := newMill(t, path)
			var ids []pki.SPIFFEID
			for n := range uint64(5) { // five entries, which are sequenced together, and five more
				ids = append(ids, m.identity(n))
			}
			if n := unsequenced(t, m.db); n != 5 {
				t.Fatalf("%d entries", n)
			}
			m.issue(ids, nil)
			if n := unsequenced(t, m.db); n != 5 {
				t.Fatalf("%d entries", n)
			}
			if _, err := raw(t, path).Exec(c.change); err != nil {
				t.Fatal(err)
			}
			for from := uint64(0); from <= 10; from++ {
				for limit := 1; limit <= 10; limit++ {
					to := min(10, max(from, 1)+uint64(limit)-1)
					found, err := m.db.Log().Entries(t.Context(), from, limit)
					var broken *translog.ChainError
					switch visible := c.visible(from, to); {
					case visible && (!errors.As(err, &broken) || broken.Index != c.at):
						t.Errorf("entries %d to %d: %v, want a ChainError at %d", from, to, err, c.at)
					case !visible && (err != nil || uint64(len(found)) != to-max(from, 1)+1):
						t.Errorf("entries %d to %d: %d, %v", from, to, len(found), err)
					}
				}
			}
		})
	}
}
