package audit

import (
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// maxRecent is how many certificates each of the two sets of recent holds.
const maxRecent = 10_000

// recent remembers the last certificates added to it: at least maxRecent, at most twice as many. It is safe for concurrent use.
type recent struct {
	mu             sync.Mutex
	newest, before map[pki.Serial]bool
}

// add adds a certificate, and reports whether it was not there.
func (r *recent) add(s pki.Serial) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newest[s] || r.before[s] {
		return false
	}
	if r.newest == nil || len(r.newest) == maxRecent {
		r.newest, r.before = map[pki.Serial]bool{}, r.newest
	}
	r.newest[s] = true
	return true
}
